"""What a later run costs: it reads what has changed, and edits tree and table in place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cart_qdrant.index import identify
from cart_qdrant.index import index as index_module
from cart_qdrant.index.identify import assign_new
from cart_qdrant.index.index import Index
from cart_qdrant.index.report import IngestOptions
from cart_qdrant.progress import Silent
from cart_qdrant.storage.factory import open_store
from cart_qdrant_cli.ingest import Ingested, run_ingest
from cart_qdrant_cli.options import Target
from tests import media_factory as media
from tests.unit.index.test_identifier_updates import saved

FILES = 30


class Watched:
    """A store that lists how it is read."""

    def __init__(self, store: Any, reads: list[tuple[str, Any, int]]) -> None:
        self._store, self._reads = store, reads

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def scroll(self, filter: Any = None, **options: Any) -> Any:
        count = 0
        for record in self._store.scroll(filter, **options):
            count += 1
            yield record
        self._reads.append(("scroll", options.get("with_vectors", ()), count))

    def retrieve(self, ids: Any, **options: Any) -> Any:
        self._reads.append(("retrieve", options.get("with_vectors", ()), len(ids)))
        return self._store.retrieve(ids, **options)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any, int]]:
    """All reads of stores that are opened from now on: method, vectors, number of points."""
    found: list[tuple[str, Any, int]] = []
    monkeypatch.setattr(index_module, "open_store", lambda *args: Watched(open_store(*args), found))
    return found


@pytest.fixture
def run(tmp_path: Path, text_encoder: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`cartq ingest` of the folder `m`, with vectors from a file."""
    monkeypatch.setattr(Index, "text_encoder", lambda self: text_encoder)
    rng = np.random.default_rng(0)
    vectors = tmp_path / "vectors.npz"
    np.savez(
        vectors, vectors=rng.normal(size=(FILES + 5, 16)).astype(np.float32),
        paths=np.asarray([f"m/p{n:02}.png" for n in range(FILES + 5)]),
        model="made",  # else stored vectors are read to find out whether they are the same
    )  # fmt: skip
    for n in range(FILES):
        picture(tmp_path, n)
    fields: dict[str, Any] = dict.fromkeys(Target.__dataclass_fields__)
    target = Target(**{**fields, "index": tmp_path / ".cartq", "verbose": False})

    def ingest(**options: Any) -> Ingested:
        wanted = IngestOptions(paths=[tmp_path / "m"], **options)
        silent: Any = Silent()
        return run_ingest(target, wanted, silent, embedder="precomputed", vectors=vectors)

    return ingest


def picture(folder: Path, n: int, scene: int | None = None) -> Path:
    path = folder / "m" / f"p{n:02}.png"
    path.parent.mkdir(exist_ok=True)
    return media.write_image(path, media.scene(n if scene is None else scene))


def assert_as_rebuilt(folder: Path) -> None:
    """Tree and table are those that are built from all payloads."""
    with Index.open(folder / ".cartq") as index, index.folder.lock():
        edited = saved(index)
        assign_new(index, rebuild=True)
        assert saved(index) == edited


def test_a_run_that_changes_nothing_reads_each_payload_once_and_no_vector(
    run: Callable[..., Any], reads: list[tuple[str, Any, int]]
) -> None:
    first = run().to_json()
    reads.clear()
    second = run().to_json()
    assert second["unchanged"] == FILES and second["segments"] == 0
    assert reads == [("scroll", (), FILES)]
    assert second["identifiers"] == first["identifiers"]
    known = second["identifiers"]
    assert (known["count"], known["clashes"], known["problems"]) == (FILES, 0, [])
    assert known["sizes"] == known["fitted_on"] == {"media": FILES}


def test_vectors_of_new_files_alone_let_no_stored_point_be_read(
    tmp_path: Path, run: Callable[..., Any], reads: list[tuple[str, Any, int]]
) -> None:
    """Neither file nor index names a model, and no stored file is in the file of vectors."""
    vectors = tmp_path / "vectors.npz"
    whole = dict(np.load(vectors))
    whole.pop("model")
    np.savez(vectors, **whole)
    run()
    picture(tmp_path, FILES)
    np.savez(vectors, vectors=whole["vectors"][FILES:], paths=whole["paths"][FILES:])
    reads.clear()
    assert run().report.segments == 1
    assert reads[0] == ("scroll", (), FILES)
    assert sum(count for _, _, count in reads[1:]) <= 4  # of the new one


def test_one_changed_file_is_replaced_in_tree_and_table(
    tmp_path: Path,
    run: Callable[..., Any],
    reads: list[tuple[str, Any, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run()
    reads.clear()

    def refuse(*args: Any) -> Any:
        raise AssertionError("built from all payloads")

    picture(tmp_path, 7, scene=90)
    with monkeypatch.context() as patched:
        patched.setattr(identify, "built_parts", refuse)
        done = run()
        assert (done.report.segments, done.report.unchanged) == (1, FILES - 1)
        assert sum(count for _, _, count in reads if count > 1) == FILES  # the stored hashes
        # New, deleted, renamed and captioned files, together and with --prune.
        picture(tmp_path, FILES)
        (tmp_path / "m" / "p03.png").unlink()
        (tmp_path / "m" / "p04.png").rename(tmp_path / "m" / f"p{FILES + 1}.png")
        (tmp_path / "m" / "p05.txt").write_text("a harbour")
        report = run(prune=True).report
        assert (report.segments, report.removed, report.renamed, report.recaptioned) == (2, 1, 1, 1)
    assert_as_rebuilt(tmp_path)


class Killed(BaseException):
    """Ends a run as a kill does; `test_crash.py` kills processes."""


def test_a_run_that_was_killed_is_noticed(
    tmp_path: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run()
    picture(tmp_path, 8, scene=91)

    def kill(*args: Any) -> Any:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(identify, "save_part", kill)
        with pytest.raises(Killed):
            run()
    mark = tmp_path / ".cartq" / "work" / "changed"
    assert mark.exists()
    assert run().report.unchanged == FILES
    assert not mark.exists()
    assert_as_rebuilt(tmp_path)


def test_points_that_others_deleted_are_noticed_at_the_next_change(
    tmp_path: Path, run: Callable[..., Any]
) -> None:
    run()
    with Index.open(tmp_path / ".cartq") as index:
        index.store.delete([str(record.id) for record in index.store.scroll()][:3])
    picture(tmp_path, FILES)
    run()
    with Index.open(tmp_path / ".cartq") as index:
        info = index.manifest.identifiers
        assert info is not None and info.count == index.store.count()
    assert_as_rebuilt(tmp_path)
