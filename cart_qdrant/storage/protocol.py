"""The `Store` protocol: the little of Qdrant that this package needs, in the names of its client.

It has three implementations: `edge.EdgeStore` (the engine in this process, the default),
`server.ServerStore` (a server, a cloud, or `:memory:`), and `attached.AttachedStore` (one of these
whose collection others fill). The congruence tests hold the first two to the same answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from qdrant_client import models

    from cart_qdrant.storage import requests as qdrant

MEDIA = "media"
"""Name of the vector that the embedder made of an item."""
CAPTION = "caption"
"""Name of the first of the two vectors that may hold an item's captions."""
CAPTION_2 = "caption_2"
"""Name of the second one."""
CAPTION_SLOTS = (CAPTION, CAPTION_2)
"""The vectors that hold captions in turn: one is in force, a training writes the other one."""
CAPTION_TEXTS = "captions[].text"
"""Payload field whose words are indexed."""


RangeKind = Literal["float", "datetime"]
"""What an index for ranges holds. Numbers are always `float`: an index of integers lacks 2020.5,
which `year>=2020` would then not find."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionSpec:
    """What a collection of ours is made with.

    Attributes:
        vectors: Width of each named vector; all are compared by cosine.
        slots: Width of vectors that come and go, the needed one first. A new collection gets that
            one, and the others only where none can be added later: each takes its room on the disk
            also while it is empty (docs/experiments.md).
        keywords: Payload fields with a keyword index, made before the first upsert.
        texts: Payload fields with a full-text index.
    """

    vectors: Mapping[str, int]
    slots: Mapping[str, int] = field(default_factory=dict)
    keywords: Sequence[str] = field(default=())
    texts: Sequence[str] = field(default=())


@dataclass(frozen=True, slots=True)
class VectorInfo:
    """One named vector of a collection.

    Attributes:
        size: Width.
        distance: How it is compared, in Qdrant's words: `Cosine`, `Dot`, ...
        multi: Whether a point has several of it.
    """

    size: int
    distance: str = "Cosine"
    multi: bool = False

    @property
    def is_usable(self) -> bool:
        """Whether scores of unit vectors are cosines."""
        return not self.multi and self.distance in ("Cosine", "Dot")


@dataclass(frozen=True, slots=True)
class CollectionInfo:
    """What a collection holds, whoever made it.

    Attributes:
        vectors: Dense vectors by name; "" is the one without a name.
        indexes: Kind of the index of each payload field that has one: `keyword`, `text`, `float`...
        metadata: Values about the whole collection; empty in an embedded store.
    """

    vectors: Mapping[str, VectorInfo]
    indexes: Mapping[str, str]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def indexed(self) -> frozenset[str]:
        """Payload fields with an index of any kind."""
        return frozenset(self.indexes)


class Store(Protocol):
    """A collection of points. Ids are strings: UUIDs, or whole numbers of 64 bits.

    Every method raises `StoreError` (locked, full, unreachable, corrupt, missing) or
    `VectorError` (wrong name, width, zero or non-finite values: checked before anything of the
    batch is written), and no exception of another library.
    """

    @property
    def location(self) -> str:
        """Path or URL, for messages."""

    def exists(self) -> bool:
        """Whether the collection is there."""

    def create(self, spec: CollectionSpec) -> None:
        """Create the collection with its payload indexes; in an existing one, make those indexes,
        and the first of the slots, where it lacks them.

        Raises:
            MismatchError: It exists with other vectors; both widths are named.
        """

    def info(self) -> CollectionInfo:
        """Vectors, indexed payload fields and metadata of the collection, read at each call."""

    def create_keyword_index(self, field: str) -> None:
        """Index one more payload field for exact matches."""

    def create_range_index(self, field: str, kind: RangeKind) -> None:
        """Index the numbers or the dates of one more payload field, unless it has an index."""

    def drop_index(self, field: str) -> None:
        """Remove the index of a payload field; nothing happens where there is none."""

    def create_text_index(self, field: str) -> None:
        """Index the words of one more payload field, to rank by them where the store can."""

    def add_vector(self, name: str, size: int) -> None:
        """Let points have one more named vector, compared by cosine."""

    def set_metadata(self, key: str, value: Mapping[str, Any]) -> None:
        """Put a value into the collection's metadata; an embedded store keeps none."""

    def guard_writes(self, check: Callable[[], None]) -> None:
        """Call `check` before points are written, to refuse it; an embedded store, which belongs to
        one folder, never does."""

    def upsert(self, points: Sequence[models.PointStruct]) -> None:
        """Write points whole (vectors and payload), replacing those with the same id."""

    def delete(self, ids: Sequence[str]) -> None:
        """Remove points by id; unknown ids are ignored."""

    def set_payload(self, updates: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        """Set top-level payload keys of each named point, keeping its other keys."""

    def delete_payload_key(self, key: str) -> None:
        """Remove a top-level payload key from every point."""

    def update_vectors(self, name: str, updates: Sequence[tuple[str, Sequence[float]]]) -> None:
        """Replace one named vector of each named point."""

    def delete_vectors(self, name: str, ids: Sequence[str]) -> None:
        """Remove one named vector of each named point."""

    def clear_vector(self, name: str) -> None:
        """Remove one named vector of all points. An embedded store gives its room back, too: it is
        there again after `add_vector`. Nothing happens where the collection lacks it."""

    def retrieve(
        self, ids: Sequence[str], *, with_payload: bool = True, with_vectors: Sequence[str] = ()
    ) -> Sequence[qdrant.AnyRecord]:
        """Points by id, in the order asked; unknown ids are left out."""

    def scroll(
        self,
        filter: qdrant.AnyFilter | None = None,
        *,
        with_payload: bool | Sequence[str] = True,
        with_vectors: Sequence[str] = (),
        batch: int = 1000,
    ) -> Iterator[qdrant.AnyRecord]:
        """Every point that matches, in order of id, read in pages of `batch`."""

    def query_batch(self, requests: Sequence[qdrant.AnyQuery]) -> Sequence[Sequence[qdrant.AnyHit]]:
        """Answers of several searches in one round trip, each best first."""

    def query_ids(self, requests: Sequence[qdrant.AnyQuery]) -> list[qdrant.FoundIds]:
        """The answers of `query_batch`, ids and scores alone."""

    def count(self, filter: qdrant.AnyFilter | None = None) -> int:
        """Exact number of points that match."""

    def flush(self) -> None:
        """Return when all that was written survives a crash of the machine."""

    def close(self) -> None:
        """Flush and release the store; using it afterwards raises `StoreError`."""
