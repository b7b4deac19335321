"""The pipeline yields every file once, whole, whatever some of them hold."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cart_qdrant.config import SegmentConfig
from cart_qdrant.errors import MediaError
from cart_qdrant.index import pipeline as pipeline_module
from cart_qdrant.index.embedders import Clip
from cart_qdrant.index.pipeline import FileResult, Pipeline
from cart_qdrant.index.scan import content_hash, scan
from cart_qdrant.records import Modality
from tests import media_factory as media

ALL = tuple(Modality)


def mean_colour(clips: Sequence[Clip]) -> Any:
    """Features (B, 3): the mean colour, or the level of a sound."""
    rows = []
    for clip in clips:
        if clip.samples is not None:
            rows.append(np.full(3, np.abs(clip.samples).mean()))
        else:
            rows.append(np.mean([f.mean(axis=(0, 1)) for f in clip.frames], axis=0))
    return np.asarray(rows, np.float32)


def run(
    folder: Path, features: Any = mean_colour, modalities: Sequence[Modality] = ALL
) -> dict[str, FileResult]:
    entries = scan([folder], base=folder).entries
    made = Pipeline(features, modalities=modalities, config=SegmentConfig())
    results = list(made.run(entries))
    assert sorted(r.entry.rel for r in results) == [e.rel for e in entries]
    return {r.entry.rel: r for r in results}


def alive() -> int:
    return threading.active_count()


def test_every_file_comes_once_and_whole(tmp_path: Path) -> None:
    for n in range(70):  # more than a batch and than the queue holds
        media.write_image(tmp_path / f"{n:02}.png", media.scene(n))
    media.write_video(tmp_path / "clip.mp4", media.moving(1, 24), sound=media.tone(3.0))
    results = run(tmp_path)
    for n in range(70):
        result = results[f"{n:02}.png"]
        assert result.failure is None and result.notes == []
        assert [s.path for s in result.segments] == [f"{n:02}.png"]
        np.testing.assert_allclose(result.features[0], media.scene(n).mean(axis=(0, 1)), atol=1e-3)
        assert result.hash == content_hash(tmp_path / f"{n:02}.png")
    modalities = [s.modality for s in results["clip.mp4"].segments]
    assert set(modalities) == {Modality.VIDEO, Modality.AUDIO}
    assert results["clip.mp4"].stacked(3).shape == (len(modalities), 3)


def test_no_file() -> None:
    assert list(Pipeline(mean_colour, modalities=ALL, config=SegmentConfig()).run([])) == []


def test_a_bad_file_is_a_failure_and_stops_nothing(tmp_path: Path) -> None:
    media.write_image(tmp_path / "good.png")
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    (tmp_path / "empty.mp4").touch()
    results = run(tmp_path)
    assert len(results["good.png"].segments) == 1
    for name in ("bad.jpg", "empty.mp4"):
        assert results[name].failure and results[name].segments == []
        assert results[name].stacked(7).shape == (0, 7)
    assert "0 bytes" in (results["empty.mp4"].failure or "")


def test_a_clip_that_cannot_be_embedded_fails_its_own_file_only(tmp_path: Path) -> None:
    for n in range(5):
        media.write_image(tmp_path / f"{n}.png", media.scene(n))

    def picky(clips: Sequence[Clip]) -> Any:
        if any(clip.key == "3.png" for clip in clips):
            raise MediaError("has no vector.")
        return mean_colour(clips)

    results = run(tmp_path, picky)
    assert {rel for rel, r in results.items() if r.failure} == {"3.png"}
    assert results["3.png"].failure == "has no vector."
    assert all(len(r.segments) == (rel != "3.png") for rel, r in results.items())


def test_an_unexpected_error_while_decoding_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(3):
        media.write_image(tmp_path / f"{n}.png", media.scene(n))
    real = pipeline_module.decode

    def decode(path: Path, *rest: Any) -> Any:
        if path.name == "1.png":
            raise ZeroDivisionError("a bug")
        return real(path, *rest)

    monkeypatch.setattr(pipeline_module, "decode", decode)
    results = run(tmp_path)
    assert results["1.png"].failure == "unexpected ZeroDivisionError: a bug"
    assert results["0.png"].failure is results["2.png"].failure is None


def test_modalities_that_the_embedder_lacks_are_noted(tmp_path: Path) -> None:
    media.write_video(tmp_path / "clip.mp4", media.moving(1, 24), sound=media.tone(3.0))
    result = run(tmp_path, modalities=[Modality.VIDEO])["clip.mp4"]
    assert {s.modality for s in result.segments} == {Modality.VIDEO}
    assert any("audio is not known" in note for note in result.notes)


def test_leaving_early_stops_the_threads(tmp_path: Path) -> None:
    for n in range(90):
        media.write_image(tmp_path / f"{n:02}.png", media.scene(n))
    before = alive()
    entries = scan([tmp_path], base=tmp_path).entries
    results = Pipeline(mean_colour, modalities=ALL, config=SegmentConfig()).run(entries)
    next(results)
    results.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 10
    while alive() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert alive() <= before


def test_an_error_of_the_embedder_reaches_the_caller_and_stops_the_threads(tmp_path: Path) -> None:
    for n in range(60):
        media.write_image(tmp_path / f"{n:02}.png", media.scene(n))
    before = alive()

    def broken(clips: Sequence[Clip]) -> Any:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        run(tmp_path, broken)
    assert alive() <= before


def test_time_in_the_embedder_is_counted(tmp_path: Path) -> None:
    media.write_image(tmp_path / "a.png")

    def slow(clips: Sequence[Clip]) -> Any:
        time.sleep(0.05)
        return mean_colour(clips)

    made = Pipeline(slow, modalities=ALL, config=SegmentConfig())
    list(made.run(scan([tmp_path], base=tmp_path).entries))
    assert made.embed_seconds >= 0.05
