"""A collection of hundreds of points with given vectors, in each kind of store: one film of many
segments that are all nearer to the query than any other file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from qdrant_client import QdrantClient, models

from cart_qdrant.arrays.types import FloatArray
from cart_qdrant.index.attach import AttachOptions, attach
from cart_qdrant.index.collection import TEXT_DIM
from cart_qdrant.index.identify import refit
from cart_qdrant.index.index import Index
from cart_qdrant.index.migrate import migrate
from cart_qdrant.index.sync import sync
from cart_qdrant.media.clip import Clip
from cart_qdrant.records import Modality, Segment
from cart_qdrant.search.retriever import Retriever
from cart_qdrant.search.searcher import Searcher
from cart_qdrant.storage.protocol import CAPTION, MEDIA
from cart_qdrant.storage.store_info import StoreInfo
from tests.conftest import TEST_COLLECTIONS

DIM = 16
FILM, SEGMENTS, PHOTOS, SOUNDS = "film.mp4", 200, 50, 20
COLLECTION = f"{TEST_COLLECTIONS}film"
STORES = ("embedded", "memory", "server", "attached")


class GivenEmbedder:
    """Its vectors are given: every text is the first axis of the space."""

    name = "given"
    version = "1"
    dim = DIM
    spaces = dict.fromkeys(Modality, "visual")

    def embed_media(self, clips: Sequence[Clip]) -> FloatArray:
        raise NotImplementedError

    def embed_text(self, texts: Sequence[str], space: str) -> FloatArray:
        return axis(len(texts), DIM)


class GivenTexts:
    """A text encoder for which every text is the same."""

    def embed(self, texts: Sequence[str], *, batch: int = 64) -> FloatArray:
        return axis(len(texts), TEXT_DIM)


def axis(count: int, width: int) -> FloatArray:
    return np.eye(1, width, dtype=np.float32).repeat(count, axis=0)


def at_cosine(cosine: float, width: int, n: int) -> list[float]:
    """A unit vector of that cosine to the first axis; its other part depends on `n`."""
    x = np.random.default_rng(n).normal(size=width)
    x[0] = 0.0
    x *= np.sqrt(1 - cosine**2) / np.linalg.norm(x)
    x[0] = cosine
    return [float(one) for one in x]


@dataclass(frozen=True)
class One:
    """A segment, its cosines to every query, and the words of its caption."""

    segment: Segment
    media: float
    caption: float | None
    text: str = ""


def film_and_others() -> list[One]:
    """The film first by every measure, then photos and sounds that fall off evenly; every second
    photo has a caption."""
    out = [
        One(Segment(FILM, Modality.VIDEO, 2.0 * n, 2.0 * n + 2), 0.95 - n / 4000, 0.9 - n / 4000,
            "waves waves waves")
        for n in range(SEGMENTS)
    ]  # fmt: skip
    for n in range(PHOTOS):
        caption = 0.7 - n / 200 if n % 2 else None
        text = "waves and a harbour" if n % 2 else ""
        out.append(One(Segment(f"photo-{n:02}.jpg", Modality.IMAGE), 0.8 - n / 200, caption, text))
    for n in range(SOUNDS):
        segment = Segment(f"sound-{n:02}.wav", Modality.AUDIO, 0.0, 3.0)
        out.append(One(segment, 0.45 - n / 200, 0.4 - n / 200, "the noise of waves"))
    return out


def points(ones: Sequence[One]) -> list[models.PointStruct]:
    out = []
    for n, one in enumerate(ones):
        vector: dict[str, Any] = {MEDIA: at_cosine(one.media, DIM, n)}
        if one.caption is not None:
            vector[CAPTION] = at_cosine(one.caption, TEXT_DIM, n)
        captions = [{"text": one.text, "source": "explicit"}] if one.text else []
        payload = {
            "path": one.segment.path, "modality": str(one.segment.modality),
            "start": one.segment.start, "end": one.segment.end, "captions": captions,
            "hash": f"{n:032x}", "size": 1, "mtime": 0.0, "parity": n % 2,
        }  # fmt: skip
        out.append(models.PointStruct(id=one.segment.id, vector=vector, payload=payload))
    return out


def make_index(
    root: Path,
    kind: str,
    ones: Sequence[One] | None = None,
    *,
    client: QdrantClient | None = None,
    caption_vectors: bool = True,
) -> Index:
    """The index of some segments in a kind of store, with identifiers.

    Args:
        client: Client of the server, of the kind `server`.
    """
    stored = points(film_and_others() if ones is None else ones)
    if kind == "attached":
        return _attached(root, stored, caption_vectors=caption_vectors)
    index = Index.create(root, GivenEmbedder())
    index.store.upsert(stored)
    with index.folder.lock():
        refit(index)
        if kind != "embedded":
            place = StoreInfo(kind="client", collection=COLLECTION)
            migrate(index, place, client=client or QdrantClient(":memory:"))
    return index


def _attached(root: Path, stored: Sequence[models.PointStruct], *, caption_vectors: bool) -> Index:
    """Over a collection that others fill, whose fields have other names."""
    client = QdrantClient(":memory:")
    params = models.VectorParams(size=DIM, distance=models.Distance.COSINE)
    client.create_collection(COLLECTION, {"theirs": params})
    renamed = []
    for point in stored:
        payload, vector = dict(point.payload or {}), dict(point.vector)  # type: ignore[arg-type]
        vector = {"theirs": vector[MEDIA]}
        renamed.append(
            models.PointStruct(
                id=point.id,
                vector=vector,
                payload={
                    "file": payload["path"], "kind": payload["modality"], "from": payload["start"],
                    "to": payload["end"], "parity": payload["parity"],
                    **({"words": payload["captions"][0]["text"]} if payload["captions"] else {}),
                },
            )
        )  # fmt: skip
    client.upsert(COLLECTION, renamed)
    fields = {"path": "file", "modality": "kind", "start": "from", "end": "to", "captions": "words"}
    options = AttachOptions(fields=fields, vector="theirs", caption_vectors=caption_vectors)
    index = attach(root, COLLECTION, client=client, options=options)
    sync(index)
    return index


def open_retriever(index: Index, **calibration: Any) -> Retriever:
    """A retriever, with some values of the calibration replaced."""
    retriever = Retriever(index)
    version = retriever._follower.current()
    loaded = version.loaded
    changed = replace(loaded, calibration=replace(loaded.calibration, **calibration))
    retriever._follower._version = replace(version, loaded=changed, searcher=Searcher(changed))
    return retriever
