"""Which model made the vectors of an index, where they are precomputed; two models never mix."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from cart_qdrant.embedders.precomputed import PrecomputedEmbedder
from cart_qdrant.errors import MediaError, MismatchError
from cart_qdrant.index.index import Index
from cart_qdrant.index.plan import StoredFile
from cart_qdrant.index.points import vector_of
from cart_qdrant.media.clip import Clip
from cart_qdrant.media.scan import FileEntry, content_hash
from cart_qdrant.records import Modality, Segment
from cart_qdrant.storage.protocol import MEDIA

COMPARED = 64
"""Points whose stored vector is compared with that of the file, at most."""
ALIKE = 0.98
"""Median cosine from which two sets of vectors of the same media are taken for one model's."""
_REMEDY = "Take the vectors of the index's model, or ingest into another `--index`."


def check_model(
    index: Index,
    embedder: PrecomputedEmbedder,
    stored: dict[str, StoredFile],
    entries: Iterable[FileEntry],
    say: Callable[[str], None],
) -> str | None:
    """Compare the model of a vectors file with that of the index's vectors.

    Where both are named, the names decide. Else the vectors of unchanged files which both hold are
    compared. Nothing is written.

    Args:
        stored: What is stored of each file.
        entries: The files that are there.
        say: Is told what was decided without names.

    Returns:
        The name of the model of the index from now on; None where neither is named.

    Raises:
        MismatchError: They are of two models; both names, or the cosines, are given.
    """
    ours, theirs = index.manifest.embedder.model, embedder.model
    if ours is not None and theirs is not None:
        if ours != theirs:
            raise MismatchError(
                f"{embedder.source} holds vectors of the model {theirs!r}, but the index has those "
                f"of {ours!r}.",
                _REMEDY,
            )
        return ours
    if not stored:
        return theirs or ours
    cosines = _cosines(index, embedder, stored, entries)
    unnamed = f"{embedder.source} names no model" if theirs is None else "the index names no model"
    if not cosines:
        say(f"{unnamed}, and no stored file has a vector in both: taken for the same one")
        return theirs or ours
    median = float(np.median(cosines))
    if median < ALIKE:
        raise MismatchError(
            f"{embedder.source} gives {len(cosines)} stored segments of unchanged files other "
            f"vectors (median cosine {median:.2f}, but at least {ALIKE} is expected): they seem to "
            "be of another model.",
            _REMEDY,
        )
    say(
        f"{unnamed}, but the vectors of {len(cosines)} stored segments are the same (median cosine "
        f"{median:.3f}): taken for the same one"
    )
    return theirs or ours


def record_model(index: Index, model: str | None) -> None:
    """Write the name of the model into the manifest, if it is a new one."""
    info = index.manifest.embedder
    if model is not None and info.model != model:
        index.put(replace(index.manifest, embedder=replace(info, model=model)))


def _cosines(
    index: Index,
    embedder: PrecomputedEmbedder,
    stored: dict[str, StoredFile],
    entries: Iterable[FileEntry],
) -> list[float]:
    """Cosine of stored vectors with those of the file, of files that have not changed."""
    known = [entry for entry in entries if entry.rel in stored and stored[entry.rel].whole]
    random.Random(0).shuffle(known)
    cosines: list[float] = []
    for entry in known:
        if len(cosines) >= COMPARED:
            break
        rel = entry.rel
        if not embedder.holds(rel) or not _is_unchanged(entry, stored[rel]):
            continue
        for record in index.store.retrieve(stored[rel].ids[:1], with_vectors=[MEDIA]):
            data, vector = record.payload or {}, vector_of(record)
            segment = Segment(rel, Modality(data["modality"]), data["start"], data["end"])
            try:
                (found,) = embedder.embed_media([Clip.of(segment)])
            except MediaError:
                continue  # the file of vectors has none of it
            if vector is not None:
                cosines.append(float(np.dot(np.asarray(vector, np.float32), found)))
    return cosines


def _is_unchanged(entry: FileEntry, known: StoredFile) -> bool:
    """Whether a file has the content that is stored; it is read where its times differ."""
    if known.is_unopened(entry):
        return True
    try:
        return known.size == entry.size and content_hash(entry.path) == known.hash
    except MediaError:
        return False
