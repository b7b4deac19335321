"""The pipeline: every file comes back once, in parts of bounded memory, whatever happens."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cart_qdrant.config import SegmentConfig
from cart_qdrant.errors import MediaError, StoreError, VectorError
from cart_qdrant.index import pipeline as module
from cart_qdrant.index.pipeline import Pipeline
from cart_qdrant.media.clip import Clip
from cart_qdrant.media.scan import FileEntry, content_hash, scan
from cart_qdrant.records import Modality
from tests import media_factory as media

ALL = list(Modality)


def rows(clips: Sequence[Clip]) -> Any:
    """Features that tell the clips apart: brightness, and what kind it is."""
    return np.asarray(
        [
            [np.mean([f.mean() for f in clip.frames] or [0]), ALL.index(clip.modality)]
            for clip in clips
        ],
        np.float32,
    )


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> list[FileEntry]:
    folder = tmp_path_factory.mktemp("media")
    for n in range(9):
        media.write_image(folder / f"p{n}.png", np.full((20, 20, 3), 20 * n + 10, np.uint8))
    media.write_audio(folder / "bell.wav", media.tone(25.0))
    (folder / "broken.jpg").write_bytes(b"no picture")
    frames = media.moving(1, 16)
    media.write_video(folder / "clip.mp4", frames, sound=media.tone(2.0), tags={"title": "a name"})
    return list(scan([folder], base=folder).entries)


def run(entries: Sequence[FileEntry], features: Any = rows, modalities: Any = ALL) -> Any:
    pipeline = Pipeline(features, modalities=modalities, config=SegmentConfig())
    return {result.entry.rel: result for result in pipeline.run(entries)}, pipeline


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_every_file_once_with_its_own_features(
    entries: list[FileEntry], monkeypatch: Any, batch: int
) -> None:
    monkeypatch.setattr(module, "BATCH", batch)
    sizes: list[int] = []

    def watched(clips: Sequence[Clip]) -> Any:
        sizes.append(len(clips))
        return rows(clips)

    found, pipeline = run(entries, watched)
    assert found.keys() == {entry.rel for entry in entries}
    assert max(sizes) <= batch and pipeline.embed_seconds > 0
    for n in range(9):
        one = found[f"p{n}.png"]
        assert len(one.segments) == 1 and one.failure is None
        assert one.features[0][0] == pytest.approx(20 * n + 10, abs=1)
        assert one.hash == content_hash(one.entry.path)
    assert [s.start for s in found["bell.wav"].segments] == [0.0, 10.0, 20.0]
    assert {s.modality for s in found["clip.mp4"].segments} == {Modality.VIDEO, Modality.AUDIO}
    assert found["clip.mp4"].tags["title"] == "a name"
    assert "broken" not in found or found["broken.jpg"].failure


def test_failure_is_told_and_others_go_on(entries: list[FileEntry]) -> None:
    deleted = FileEntry(Path("/nowhere/x.png"), "x.png", 1, 1)
    found, _ = run([*entries, deleted])
    assert found["x.png"].failure and found["x.png"].segments == []
    assert "its content is no known media" in found["broken.jpg"].failure
    assert found["p0.png"].failure is None


def test_clip_without_vector_fails_alone(entries: list[FileEntry]) -> None:
    def picky(clips: Sequence[Clip]) -> Any:
        if any(clip.key == "p3.png" for clip in clips):
            raise MediaError("p3.png has no vector.")
        return rows(clips)

    found, _ = run(entries, picky)
    assert found["p3.png"].failure == "p3.png has no vector." and not found["p3.png"].segments
    assert all(len(found[f"p{n}.png"].segments) == 1 for n in range(9) if n != 3)


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes"), MemoryError(), VectorError("p3 is zero.")]
)
def test_any_error_of_one_clip_is_its_own(entries: list[FileEntry], error: Exception) -> None:
    def picky(clips: Sequence[Clip]) -> Any:
        if any(clip.key == "p3.png" for clip in clips):
            raise error
        return rows(clips)

    found, _ = run(entries, picky)
    assert type(error).__name__ in found["p3.png"].failure or "is zero" in found["p3.png"].failure
    assert not found["p3.png"].segments
    assert all(len(found[f"p{n}.png"].segments) == 1 for n in range(9) if n != 3)
    assert len(found["clip.mp4"].segments) == 2


def test_features_that_are_not_finite_are_left_out(entries: list[FileEntry]) -> None:
    def overflowing(clips: Sequence[Clip]) -> Any:
        x = rows(clips)
        x[[n for n, clip in enumerate(clips) if clip.modality is Modality.AUDIO]] = np.nan
        return x

    found, _ = run(entries, overflowing)
    assert found["bell.wav"].segments == []
    assert "no finite vector of its audio from" in found["bell.wav"].failure
    assert [s.modality for s in found["clip.mp4"].segments] == [Modality.VIDEO]
    assert len(found["clip.mp4"].features) == 1 and found["clip.mp4"].failure


@pytest.mark.parametrize("error", [RuntimeError("no kernel image"), StoreError("It is full.")])
def test_an_embedder_or_a_store_that_is_broken_ends_the_run(
    entries: list[FileEntry], error: Exception
) -> None:
    calls = 0

    def broken(clips: Sequence[Clip]) -> Any:
        nonlocal calls
        calls += 1
        raise error

    with pytest.raises(type(error), match=str(error)):
        run(entries, broken)
    assert calls <= module.PATIENCE + 9


def test_unknown_modality_is_noted(entries: list[FileEntry]) -> None:
    found, _ = run(entries, modalities=[Modality.IMAGE])
    assert found["bell.wav"].segments == []
    assert found["bell.wav"].notes == ["audio is not known to the embedder"]
    assert sorted(found["clip.mp4"].notes) == [
        "audio is not known to the embedder",
        "video is not known to the embedder",
    ]


def test_threads_end_when_the_reader_stops(entries: list[FileEntry], monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "WAITING", 1)
    before = threading.active_count()
    results = Pipeline(rows, modalities=ALL, config=SegmentConfig()).run(entries)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before

    def broken(clips: Sequence[Clip]) -> Any:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(entries, broken)
    assert threading.active_count() == before


def test_decoders_prepare_and_wait_for_what_they_made(
    entries: list[FileEntry], monkeypatch: Any
) -> None:
    """Each picture is half of what may wait, so no more than that is ever ready."""
    pictures = [entry for entry in entries if entry.rel.startswith("p")] * 4
    small = np.zeros((10, 10, 3), np.uint8)
    monkeypatch.setattr(module, "WAITING", 2 * small.nbytes)
    monkeypatch.setattr(module, "BATCH", 1)
    lock, ahead, most, by = threading.Lock(), 0, 0, set()

    def prepare(clip: Clip) -> Clip:
        nonlocal ahead, most
        with lock:
            ahead += 1
            most = max(most, ahead)
            by.add(threading.current_thread())
        return replace(clip, frames=(small + np.uint8(clip.frames[0].mean()),))

    def features(clips: Sequence[Clip]) -> Any:
        nonlocal ahead
        with lock:
            ahead -= len(clips)
        assert all(clip.frames[0].shape == small.shape for clip in clips)
        return rows(clips)

    pipeline = Pipeline(features, modalities=ALL, config=SegmentConfig(), prepare=prepare)
    found = list(pipeline.run(pictures))
    assert len(found) == len(pictures) and all(len(one.features) == 1 for one in found)
    for one in found:
        level = 20 * int(one.entry.rel[1]) + 10
        assert one.features[0][0] == pytest.approx(level, abs=1)
    # Two that are ready, one in the hand of each decoder, and one that is taken.
    assert most <= 2 + module.DECODERS + 1
    assert threading.current_thread() not in by


def test_length_of_files(entries: list[FileEntry]) -> None:
    found, _ = run(entries)
    assert found["bell.wav"].seconds == pytest.approx(25.0, abs=0.1)
    assert found["clip.mp4"].seconds == pytest.approx(2.0, abs=0.2)
    assert found["p0.png"].seconds == found["broken.jpg"].seconds == 0


def test_nothing_to_do() -> None:
    assert run([])[0] == {}
