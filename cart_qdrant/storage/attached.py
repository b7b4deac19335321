"""`AttachedStore`: a collection that others fill, read as one of ours.

Everything above speaks of our payload fields and vectors; `AttachedMapping` puts those of the
collection in their place. Only identifiers are written, and caption vectors where the collection
was given room for them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from cart_qdrant.errors import StoreError
from cart_qdrant.storage import requests as qdrant
from cart_qdrant.storage.attached_mapping import AttachedMapping
from cart_qdrant.storage.attachment import Attachment
from cart_qdrant.storage.protocol import (
    CAPTION_SLOTS,
    CAPTION_TEXTS,
    CollectionInfo,
    CollectionSpec,
    RangeKind,
    Store,
)

if TYPE_CHECKING:
    from qdrant_client import models


class AttachedStore:
    """The `Store` of a collection that others fill.

    Args:
        inner: The store of the collection, with its own names.
        how: Which field and vector of the collection holds what.
    """

    def __init__(self, inner: Store, how: Attachment) -> None:
        self._inner = inner
        self._mapping = AttachedMapping(how)
        self._identifier_field = re.compile(rf"{re.escape(how.key)}(_\d+)?")

    @property
    def location(self) -> str:
        """Path or URL, for messages."""
        return self._inner.location

    def read_as(self, how: Attachment) -> None:
        """Read the collection's payload fields in another way from now on."""
        self._mapping = AttachedMapping(how)

    def sample(self, count: int, filter: qdrant.AnyFilter | None = None) -> list[dict[str, Any]]:
        """Payloads of the first points that match, with the collection's own names."""
        chosen = self._mapping.filter(qdrant.to_client(filter))
        found = islice(self._inner.scroll(chosen, batch=count), count)
        return [dict(record.payload or {}) for record in found]

    def exists(self) -> bool:
        """Whether the collection is there."""
        return self._inner.exists()

    # Schema

    def info(self) -> CollectionInfo:
        """Vectors, indexed payload fields and metadata, with the collection's own names."""
        return self._inner.info()

    def create(self, spec: CollectionSpec) -> None:
        """Make the payload indexes that searches need and the collection lacks."""
        indexed, fields = self.info().indexed, self._mapping.fields
        ours = [key for key in spec.keywords if self._is_ours(key.split(".")[0])]
        theirs = [fields[key] for key in ("path", "modality") if key in fields]
        for field in (*ours, *theirs):
            if field not in indexed:
                self._inner.create_keyword_index(field)
        words = fields.get(CAPTION_TEXTS)
        if words is not None and words not in indexed:
            self._inner.create_text_index(words)

    def create_keyword_index(self, field: str) -> None:
        """Index one more payload field for exact matches, unless it has an index."""
        if field not in self.info().indexed:
            self._inner.create_keyword_index(field)

    def create_range_index(self, field: str, kind: RangeKind) -> None:
        """Index the numbers or the dates of one more payload field, unless it has an index."""
        self._inner.create_range_index(field, kind)

    def create_text_index(self, field: str) -> None:
        """Index the words of one more payload field, unless it has an index."""
        if field not in self.info().indexed:
            self._inner.create_text_index(field)

    def drop_index(self, field: str) -> None:
        """Remove the index of an identifier's payload field; other fields are refused."""
        self._check_ours(field.split(".")[0])
        self._inner.drop_index(field)

    def add_vector(self, name: str, size: int) -> None:
        """Let points have one more caption vector, compared by cosine; others are refused."""
        self._inner.add_vector(self._caption_vector(f"add a vector {name!r}", name), size)

    def set_metadata(self, key: str, value: Mapping[str, Any]) -> None:
        """Put a value into the collection's metadata."""
        self._inner.set_metadata(key, value)

    # Writing: identifiers and caption vectors alone

    def guard_writes(self, check: Callable[[], None]) -> None:
        """Call `check` before identifiers or caption vectors are written."""
        self._inner.guard_writes(check)

    def upsert(self, points: Sequence[models.PointStruct]) -> None:  # noqa: ARG002
        """Refuse: others write the points."""
        raise self._refusal("write points")

    def delete(self, ids: Sequence[str]) -> None:  # noqa: ARG002
        """Refuse: others delete the points."""
        raise self._refusal("delete points")

    def set_payload(self, updates: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        """Set identifiers of each named point; other payload fields are refused."""
        for _, payload in updates:
            for key in payload:
                self._check_ours(key)
        self._inner.set_payload(updates)

    def delete_payload_key(self, key: str) -> None:
        """Remove identifiers from every point; other payload fields are refused."""
        self._check_ours(key)
        self._inner.delete_payload_key(key)

    def update_vectors(self, name: str, updates: Sequence[tuple[str, Sequence[float]]]) -> None:
        """Replace the caption vector of each named point; other vectors are refused."""
        self._inner.update_vectors(self._caption_vector(f"write vectors {name!r}", name), updates)

    def delete_vectors(self, name: str, ids: Sequence[str]) -> None:
        """Remove the caption vector of each named point; other vectors are refused."""
        self._inner.delete_vectors(self._caption_vector(f"delete vectors {name!r}", name), ids)

    def clear_vector(self, name: str) -> None:
        """Remove one caption vector of all points; other vectors are refused."""
        self._inner.clear_vector(self._caption_vector(f"delete vectors {name!r}", name))

    def _caption_vector(self, action: str, name: str) -> str:
        vectors = self._mapping.vectors
        if name not in CAPTION_SLOTS or name not in vectors:
            raise self._refusal(action)
        return vectors[name]

    def _is_ours(self, key: str) -> bool:
        return self._identifier_field.fullmatch(key) is not None

    def _check_ours(self, key: str) -> None:
        if not self._is_ours(key):
            raise self._refusal(f"write the payload field {key!r}")

    def _refusal(self, action: str) -> StoreError:
        return StoreError(
            f"The collection at {self.location} is filled by others: this index may not {action}.",
            "Change the points where they come from, then `cartq sync`.",
        )

    # Reading

    def retrieve(
        self, ids: Sequence[str], *, with_payload: bool = True, with_vectors: Sequence[str] = ()
    ) -> list[qdrant.AnyRecord]:
        """Points by id, in the order asked; unknown ids are left out."""
        rows = self._inner.retrieve(
            ids, with_payload=with_payload, with_vectors=self._mapping.vector_names(with_vectors)
        )
        return [self._mapping.record(row, with_payload=with_payload) for row in rows]

    def scroll(
        self,
        filter: qdrant.AnyFilter | None = None,
        *,
        with_payload: bool | Sequence[str] = True,
        with_vectors: Sequence[str] = (),
        batch: int = 1000,
    ) -> Iterator[qdrant.AnyRecord]:
        """Every point that matches, in order of id, read in pages of `batch`."""
        for row in self._inner.scroll(
            self._mapping.filter(qdrant.to_client(filter)),
            with_payload=self._mapping.payload_fields(with_payload),
            with_vectors=self._mapping.vector_names(with_vectors),
            batch=batch,
        ):
            yield self._mapping.record(row, with_payload=with_payload is not False)

    def query_batch(self, requests: Sequence[qdrant.AnyQuery]) -> Sequence[Sequence[qdrant.AnyHit]]:
        """Answers of several searches, each best first; a search in what the collection lacks, such
        as caption vectors, has no hits."""
        asked = [self._mapping.request(qdrant.to_client(request)) for request in requests]
        answers = iter(self._inner.query_batch([one for one in asked if one is not None]))
        out: list[Sequence[qdrant.AnyHit]] = []
        for request, one in zip(requests, asked, strict=True):
            points = [] if one is None else next(answers)
            if request.with_payload:
                points = [
                    qdrant.ScoredPoint(
                        id=str(point.id),
                        score=point.score,
                        payload=self._mapping.payload(point.id, point.payload),
                        vector=point.vector,
                    )
                    for point in points
                ]
            out.append(points)
        return out

    def query_ids(self, requests: Sequence[qdrant.AnyQuery]) -> list[qdrant.FoundIds]:
        """The answers of `query_batch`, ids and scores alone."""
        return qdrant.ids_alone(self.query_batch(requests))

    def count(self, filter: qdrant.AnyFilter | None = None) -> int:
        """Exact number of points that match."""
        return self._inner.count(self._mapping.filter(qdrant.to_client(filter)))

    # End

    def flush(self) -> None:
        """Return when all that was written survives a crash of the machine."""
        self._inner.flush()

    def close(self) -> None:
        """Close the store of the collection."""
        self._inner.close()
