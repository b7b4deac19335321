"""Statistics are fitted once, on what is there, and work that was done is not done twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cart_qdrant.config import SegmentConfig
from cart_qdrant.index import warmup
from cart_qdrant.index.embedders import Clip
from cart_qdrant.index.library import Library
from cart_qdrant.index.pipeline import Pipeline
from cart_qdrant.index.scan import scan
from cart_qdrant.index.warmup import WORK, fitted_features
from cart_qdrant.records import Modality
from tests import media_factory as media
from tests.conftest import PatchEmbedder

Open = Callable[..., Library]


class Fitted(PatchEmbedder):
    """`PatchEmbedder` that takes the mean of the corpus off."""

    raw_dim = PatchEmbedder.dim

    def __init__(self) -> None:
        super().__init__()
        self.fits: list[dict[str, Any]] = []
        self.mean = np.zeros(self.dim, np.float32)

    def features(self, clips: Sequence[Clip]) -> Any:
        return self.embed_media(clips)

    def fit(self, features: Mapping[str, Any]) -> None:
        self.fits.append(dict(features))
        self.mean = features["visual"].mean(axis=0)

    def project(self, x_BR: Any, space: str) -> Any:
        z = x_BR - self.mean
        return z / np.linalg.norm(z, axis=1, keepdims=True)

    def to_arrays(self) -> dict[str, Any]:
        return {"mean": self.mean}

    def load_arrays(self, arrays: Mapping[str, Any]) -> None:
        self.mean = arrays["mean"]


class Count:
    def __init__(self) -> None:
        self.units = 0

    def advance(self, units: int = 1) -> None:
        self.units += units


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warmup, "PART", 4)


def folder_of(path: Path, count: int) -> Path:
    path.mkdir()
    for n in range(count):
        media.write_image(path / f"{n:02}.png", media.scene(n))
    return path


def start(library: Library, embedder: Fitted, folder: Path, count: Count | None = None) -> Any:
    entries = scan([folder], base=folder.parent).entries
    pipeline = Pipeline(embedder.features, modalities=list(embedder.spaces), config=SegmentConfig())
    return fitted_features(library, embedder, pipeline, entries, count or Count())


def test_statistics_come_before_the_first_result(tmp_path: Path, open_library: Open) -> None:
    embedder, count = Fitted(), Count()
    library = open_library(tmp_path / ".cartq", embedder)
    folder = folder_of(tmp_path / "m", 10)
    results = []
    for result in start(library, embedder, folder, count):
        assert library.manifest.embedder.statistics is not None
        results.append(result)
    assert sorted(r.entry.rel for r in results) == [f"m/{n:02}.png" for n in range(10)]
    assert [len(f["visual"]) for f in embedder.fits] == [10]
    assert count.units == 10


def test_a_full_sample_leaves_the_rest_to_the_stream(
    tmp_path: Path, open_library: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warmup, "SAMPLE", 6)
    embedder, count = Fitted(), Count()
    library = open_library(tmp_path / ".cartq", embedder)
    results = list(start(library, embedder, folder_of(tmp_path / "m", 15), count))
    assert len({r.entry.rel for r in results}) == len(results) == 15
    (fitted,) = embedder.fits
    assert 6 <= len(fitted["visual"]) < 15
    assert count.units == 15 and len(embedder.calls) == 15


def test_a_killed_run_does_not_embed_twice(tmp_path: Path, open_library: Open) -> None:
    folder = folder_of(tmp_path / "m", 12)
    first = Fitted()
    library = open_library(tmp_path / ".cartq", first)
    stop_after = 8

    class Killed(BaseException):
        pass

    real = first.features

    def dying(clips: Sequence[Clip]) -> Any:
        if len(first.calls) + len(clips) > stop_after:
            raise Killed
        return real(clips)

    first.features = dying  # type: ignore[method-assign]
    with pytest.raises(Killed):
        list(start(library, first, folder))
    assert library.manifest.embedder.statistics is None

    second = Fitted()
    library.set_embedder(second)
    results = list(start(library, second, folder))
    assert len(results) == 12
    assert not set(second.calls) & set(first.calls)
    whole = Fitted()
    other = open_library(tmp_path / "other" / ".cartq", whole)
    list(start(other, whole, folder))
    # The same statistics as without the interruption, to the last bit.
    np.testing.assert_array_equal(second.mean, whole.mean)


def test_a_file_that_changed_meanwhile_is_embedded_again(
    tmp_path: Path, open_library: Open
) -> None:
    folder = folder_of(tmp_path / "m", 4)
    first = Fitted()
    library = open_library(tmp_path / ".cartq", first)
    next(start(library, first, folder))  # all four are kept on disk, then left
    assert list((library.folder.work / WORK).iterdir())
    media.write_image(folder / "01.png", media.scene(99, width=170))
    second = Fitted()
    results = {r.entry.rel: r for r in start(library, second, folder)}
    assert second.calls == ["m/01.png"]
    wanted = second.embed_media([Clip(Modality.IMAGE, frames=(media.scene(99, width=170),))])
    np.testing.assert_allclose(results["m/01.png"].features[0], wanted[0], atol=1e-5)
    assert len(results) == 4


def test_nothing_is_frozen_when_all_files_fail(tmp_path: Path, open_library: Open) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "bad.jpg").write_text("no picture")
    embedder = Fitted()
    library = open_library(tmp_path / ".cartq", embedder)
    (result,) = start(library, embedder, tmp_path / "m")
    assert result.failure and embedder.fits == []
    assert library.manifest.embedder.statistics is None


def test_a_second_ingestion_keeps_the_statistics(tmp_path: Path, open_library: Open) -> None:
    embedder = Fitted()
    library = open_library(tmp_path / ".cartq", embedder)
    list(start(library, embedder, folder_of(tmp_path / "a", 3)))
    version = library.manifest.version
    list(start(library, embedder, folder_of(tmp_path / "b", 3)))
    assert len(embedder.fits) == 1 and library.manifest.version == version
