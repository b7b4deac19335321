"""`cartq ingest` on real files: what is stored of them, what is left out, and what goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cart_qdrant.embedders.registry import lite_available
from cart_qdrant.index.index import Index
from tests import media_factory as media
from tests.cli.conftest import Run
from tests.conftest import points

pytestmark = pytest.mark.skipif(
    not lite_available(), reason='not installed: pip install "cart-qdrant[lite]"'
)


def write_vectors(path: Path, rows: list[tuple[Any, ...]], **more: Any) -> Path:
    """A file of vectors, each an axis of its own, for rows of path, start and end (or less)."""
    columns = zip(("paths", "start", "end"), zip(*rows, strict=True), strict=False)
    arrays: dict[str, Any] = {name: np.asarray(column) for name, column in columns}
    np.savez(path, vectors=np.eye(len(rows), 16, dtype=np.float32), **arrays, **more)
    return path


def ingest_words(base: Path, *words: object) -> list[object]:
    """The words of an ingest of `media` with precomputed vectors."""
    given = ["--embedder", "precomputed", "--vectors", base / "vectors.npz", "--json"]
    return ["ingest", base / "media", "--index", base / ".cartq", *given, *words]


def stored(base: Path) -> list[dict[str, Any]]:
    """Payloads and vectors in order of path, modality and start."""
    with Index.open(base / ".cartq") as index:
        found = points(index).values()
    return sorted(found, key=lambda p: (p["path"], p["modality"], p["start"]))


def film(folder: Path) -> Path:
    """A film of three shots, of three seconds each, with sound."""
    folder.mkdir(exist_ok=True)
    frames = [frame for seed in (60, 61, 62) for frame in media.moving(seed, 24)]
    return media.write_video(folder / "film.mp4", frames, sound=media.tone(9.0))


def test_each_segment_gets_the_vector_of_its_own_time(tmp_path: Path, cartq: Run) -> None:
    film(tmp_path / "media")
    write_vectors(
        tmp_path / "vectors.npz", [("film.mp4", 0.0), ("film.mp4", 3.0), ("film.mp4", 6.0)]
    )
    done = cartq(*ingest_words(tmp_path))
    assert done.code == 0, done.err
    found = {
        (p["modality"], round(p["start"])): int(np.argmax(p["vector"]["media"]))
        for p in stored(tmp_path)
    }
    assert found == {("audio", 0): 0, ("video", 0): 0, ("video", 3): 1, ("video", 6): 2}


def test_a_time_without_a_vector_is_named(tmp_path: Path, cartq: Run) -> None:
    film(tmp_path / "media")
    rows = [("film.mp4", 0.0, 3.0), ("film.mp4", 3.0, 5.9)]
    write_vectors(tmp_path / "vectors.npz", rows)
    done = cartq(*ingest_words(tmp_path))
    assert done.code == 1
    (failed,) = done.json["failed"]
    assert "no vector from 6 to 9 s" in failed["reason"] and "3 to 5.9 s" in failed["reason"]
    assert {round(p["start"]) for p in stored(tmp_path)} == {0, 3}


def test_prune_with_a_disk_away_is_1_and_keeps_all(tmp_path: Path, cartq: Run) -> None:
    film(tmp_path / "media")
    write_vectors(tmp_path / "vectors.npz", [("film.mp4",)])
    assert cartq(*ingest_words(tmp_path)).code == 0
    before = stored(tmp_path)
    (tmp_path / "media").rename(tmp_path / "elsewhere")
    (tmp_path / "media").mkdir()
    for words in (("--prune", "--dry-run"), ("--prune",)):
        done = cartq(*ingest_words(tmp_path, *words))
        assert done.code == 1
        assert done.json["removed"] == 0 and done.json["failed"] == []
        (held,) = done.json["held_back"]
        assert held["path"] == "media" and "--force" in held["reason"]
    plain = ingest_words(tmp_path, "--prune")
    plain.remove("--json")
    shown = cartq(*plain)
    assert shown.code == 1 and "Not removed" in shown.out and "not mounted" in shown.out
    assert stored(tmp_path) == before
    assert cartq(*ingest_words(tmp_path, "--force")).code == 2
    done = cartq(*ingest_words(tmp_path, "--prune", "--force"))
    assert (done.code, done.json["removed"], stored(tmp_path)) == (0, 1, [])
