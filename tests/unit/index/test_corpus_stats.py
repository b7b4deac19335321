"""The first ingest of an embedder with statistics: fitted once, on a sample that a kill keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cart_qdrant.config import SegmentConfig
from cart_qdrant.index import corpus_stats as warmup
from cart_qdrant.index.corpus_stats import fitted_features
from cart_qdrant.index.index import Index
from cart_qdrant.index.pipeline import FileResult, Pipeline
from cart_qdrant.media.clip import Clip
from cart_qdrant.media.scan import FileEntry, scan
from cart_qdrant.progress import Silent
from cart_qdrant.records import Modality
from tests import media_factory as media
from tests.unit.index.test_index import _Fitted

Open = Callable[..., Index]


class _Counter(Silent):
    """Units of each step."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, int | None, int]] = []

    def phase(self, name: str, total: int | None) -> None:
        self.steps.append((name, total, 0))

    def advance(self, units: int = 1) -> None:
        name, total, done = self.steps.pop()
        self.steps.append((name, total, done + units))


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> list[FileEntry]:
    folder = tmp_path_factory.mktemp("media")
    for n in range(11):
        media.write_image(folder / f"p{n:02}.png", media.scene(n, width=32, height=24))
    (folder / "bad.png").write_bytes(b"no picture")
    return list(scan([folder], base=folder).entries)


def run(index: Index, embedder: Any, entries: Sequence[FileEntry]) -> Any:
    counter = _Counter()
    counter.phase("ingest", len(entries))
    first = index.manifest.embedder.statistics is None
    pipeline = Pipeline(embedder.features, modalities=list(Modality), config=SegmentConfig())
    found = list(fitted_features(index, embedder, pipeline, entries, counter))
    # Every file is told once where it is yielded, and of the sample also where it is embedded.
    told: dict[str, int] = {}
    for name, _, done in counter.steps:
        told[name] = told.get(name, 0) + done
    assert told["ingest"] + told.get("store", 0) == len(found)
    assert ("embed" in told) == first and told.get("embed") == told.get("store")
    assert all(done == total for name, total, done in counter.steps if name == "store")
    return {result.entry.rel: result for result in found}


def rows(found: dict[str, FileResult]) -> dict[str, list[float]]:
    return {rel: one.features[0].tolist() for rel, one in found.items() if one.features}


@pytest.mark.parametrize("sample", [1, 5, 100])
def test_every_file_once_and_statistics_frozen(
    tmp_path: Path, open_index: Open, entries: list[FileEntry], monkeypatch: Any, sample: int
) -> None:
    monkeypatch.setattr(warmup, "SAMPLE", sample)
    monkeypatch.setattr(warmup, "PART", 4)
    monkeypatch.setattr(warmup, "ROWS", 3)
    embedder = _Fitted()
    index = open_index(tmp_path / ".cartq", embedder)
    found = run(index, embedder, entries)
    assert found.keys() == {entry.rel for entry in entries}
    assert found["bad.png"].failure and len(rows(found)) == 11
    assert sorted(set(embedder.calls)) == sorted(embedder.calls), "nothing is embedded twice"
    statistics = index.manifest.embedder.statistics
    assert statistics is not None and embedder.mean is not None
    # Frozen: a later run keeps them.
    run(index, embedder, entries)
    assert index.manifest.embedder.statistics == statistics


def test_killed_sample_is_not_embedded_again(
    tmp_path: Path, open_index: Open, entries: list[FileEntry], monkeypatch: Any
) -> None:
    monkeypatch.setattr(warmup, "PART", 3)
    whole = _Fitted()
    wanted = rows(run(open_index(tmp_path / "a" / ".cartq", whole), whole, entries))

    class Killed(_Fitted):
        def features(self, clips: Sequence[Clip]) -> Any:  # type: ignore[override]
            if len(self.calls) >= 6:
                raise KeyboardInterrupt
            return super().embed_media(clips)

    killed, rest = Killed(), _Fitted()
    index = open_index(tmp_path / "b" / ".cartq", killed)
    with pytest.raises(KeyboardInterrupt):
        run(index, killed, entries)
    assert index.manifest.embedder.statistics is None
    assert rows(run(index, rest, entries)) == wanted
    assert len(rest.calls) < 11 and not set(rest.calls) >= set(killed.calls)
    np.testing.assert_allclose(rest.mean, whole.mean, atol=1e-6)
    # Killed again, after the freeze and before all was stored: the sample still serves.
    last = _Fitted()
    assert rows(run(index, last, entries)) == wanted and last.calls == []


def test_changed_file_of_the_sample_is_embedded_again(
    tmp_path: Path, open_index: Open, entries: list[FileEntry]
) -> None:
    embedder = _Fitted()
    index = open_index(tmp_path / ".cartq", embedder)
    run(index, embedder, entries)
    embedder.calls = []
    first = next(e for e in entries if e.rel == "p00.png")
    changed = FileEntry(first.path, first.rel, first.size, first.mtime_ns + 1)
    run(index, embedder, [changed, *[e for e in entries if e is not first]])
    assert embedder.calls == ["p00.png"]


def test_nothing_is_frozen_without_a_segment(
    tmp_path: Path, open_index: Open, entries: list[FileEntry]
) -> None:
    embedder = _Fitted()
    index = open_index(tmp_path / ".cartq", embedder)
    (bad,) = [entry for entry in entries if entry.rel == "bad.png"]
    assert run(index, embedder, [bad])["bad.png"].failure
    assert index.manifest.embedder.statistics is None


def test_a_few_long_files_do_not_fill_the_memory(
    tmp_path: Path, open_index: Open, entries: list[FileEntry], monkeypatch: Any
) -> None:
    """Of more segments than statistics need, evenly chosen ones are taken, the same every time."""
    fitted: list[Any] = []

    class Watched(_Fitted):
        def fit(self, features: Any) -> None:
            fitted.append(features)
            super().fit(features)

    for name in ("a", "b"):
        monkeypatch.setattr(warmup, "MOST", 100)
        run(open_index(tmp_path / name / "all" / ".cartq", Watched()), Watched(), entries)
        monkeypatch.setattr(warmup, "MOST", 4)
        run(open_index(tmp_path / name / "few" / ".cartq", Watched()), Watched(), entries)
    everything, few, _, again = (features["visual"] for features in fitted)
    assert len(everything) == 11
    np.testing.assert_array_equal(few, everything[::3])
    np.testing.assert_array_equal(few, again)
