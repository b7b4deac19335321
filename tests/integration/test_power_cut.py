"""After a power cut at any moment of a run, an index opens at its old or its new version."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cart_qdrant.embedders.registry import lite_available
from cart_qdrant.errors import CartError
from cart_qdrant.index.backup import backup, restore
from cart_qdrant.index.caption_vectors import caption_means
from cart_qdrant.index.collection import TEXT_DIM
from cart_qdrant.index.folder import IndexFolder
from cart_qdrant.index.identifier_files import load_codec, load_table, load_trie
from cart_qdrant.index.identify import refit
from cart_qdrant.index.index import Index
from cart_qdrant.index.ingest import Ingest
from cart_qdrant.index.manifest import Manifest
from cart_qdrant.index.points import has_identifier, vector_of
from cart_qdrant.index.report import IngestOptions
from cart_qdrant.records import Caption, Identifier
from cart_qdrant.search.retriever import Retriever
from cart_qdrant.storage.edge import EdgeStore
from cart_qdrant.storage.protocol import CAPTION, CAPTION_2
from cart_qdrant.training.stages import activation, captions, tower
from cart_qdrant.training.train import train
from tests import media_factory as media
from tests.conftest import PatchEmbedder, short_training
from tests.power_cut import PowerCut

pytestmark = pytest.mark.skipif(
    not lite_available(), reason='needs pip install "cart-qdrant[lite]"'
)
PHOTOS = 24
"""Photos with captions: enough for a training to hold some out."""


@pytest.fixture(autouse=True)
def one_encoder(text_encoder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Index, "text_encoder", lambda self: text_encoder)


def photos(folder: Path, numbers: range) -> None:
    folder.mkdir(exist_ok=True)
    for n in numbers:
        media.write_image(folder / f"{n:02}.png", media.scene(n))
        (folder / f"{n:02}.txt").write_text(f"a dog on surfboard {n}\n")


def ingest(root: Path) -> None:
    """Ingest the photos beside an index, which is made if there is none."""
    folder = IndexFolder(root)
    with folder.lock():
        embedder = PatchEmbedder()
        index = Index.open(root) if folder.exists() else Index.create(root, embedder)
        with index:
            index.set_embedder(embedder)
            Ingest(index, IngestOptions(paths=[root.parent / "photos"])).run()


def refitted(root: Path) -> None:
    with Index.open(root) as index, index.folder.lock():
        refit(index)


def trained(root: Path) -> None:
    with Index.open(root) as index, index.folder.lock():
        train(index, short_training())


def faults(root: Path, valid: list[Manifest]) -> list[str]:
    """What is wrong with the index that a power cut has left."""
    try:
        with Index.open(root) as index:
            if index.manifest not in valid:
                return ["its manifest was never in force"]
            for artifact in index.manifest.artifacts():
                index.folder.path(artifact, rehash=True)
            return _wrong_identifiers(index) + _wrong_captions(index) + _wrong_answers(index)
    except CartError as error:
        return [f"it does not open: {error}"]


def _wrong_identifiers(index: Index) -> list[str]:
    info, trie = index.manifest.identifiers, load_trie(index)
    load_codec(index), load_table(index)
    if info is None or trie is None:
        return []
    stored = {
        (*one.codes, one.u)
        for record in index.store.scroll(has_identifier(info.field))
        for one in [Identifier.from_payload((record.payload or {})[info.field])]
    }
    lost = set(map(tuple, trie.rows().tolist())) - stored
    return [f"{len(lost)} identifiers of the tree are not in the store"] if lost else []


def _wrong_captions(index: Index) -> list[str]:
    """Points whose caption vector is missing, or not by the encoder in force: int8 stays within two
    percent of the sentence vectors."""
    slot = index.caption_vector
    records = list(index.store.scroll(with_payload=["captions"], with_vectors=[slot]))
    texts = [[Caption.from_payload(c) for c in (r.payload or {})["captions"]] for r in records]
    means = caption_means(index.query_caption_encoder(), texts)
    wrong = 0
    for record, mean in zip(records, means, strict=True):
        x = vector_of(record, slot)
        if (x is None) != (mean is None) or (x is not None and mean @ np.float32(x) < 0.98):
            wrong += 1
    return [f"{wrong} caption vectors are not those in force"] if wrong else []


def _wrong_answers(index: Index) -> list[str]:
    if index.manifest.identifiers is None:
        return []
    index.set_embedder(PatchEmbedder())
    with Retriever(index) as retriever:
        found = retriever.search("a dog on surfboard 3", k=3)
    return [] if found.hits else ["a search finds nothing"]


class Replay:
    """A recorded run, and the indexes that power cuts during it leave.

    Args:
        root: The index folder.
        scratch: Folder for what is replayed.
        run: The run, which is recorded.
        made: The manifest that the run puts in force, where it does not write one.
        without: As for `PowerCut`.
    """

    def __init__(
        self,
        root: Path,
        scratch: Path,
        run: Callable[[Path], None],
        made: Manifest | None = None,
        without: str = "work",
    ) -> None:
        self.power = PowerCut(root, scratch / "blobs", without)
        self.existed = IndexFolder(root).exists()
        self.valid = [IndexFolder(root).read()] if self.existed else []
        self._root, self._scratch = root, scratch / "replayed"
        self._scratch.mkdir()
        (self._scratch / "photos").symlink_to(root.parent / "photos")
        write = IndexFolder.write

        def recorded(folder: IndexFolder, manifest: Manifest) -> None:
            self.valid.append(manifest)
            write(folder, manifest)

        with pytest.MonkeyPatch.context() as patch, self.power.recording():
            patch.setattr(IndexFolder, "write", recorded)
            run(root)
        self.valid += [] if made is None else [made]

    def left(self) -> Iterator[tuple[str, Path]]:
        """Each folder that a cut leaves, with the operation that came next."""
        target = self._scratch / ".cartq"
        for cut in self.power.cuts:
            shutil.rmtree(target, ignore_errors=True)
            cut.write(target)
            yield cut.moment, target

    def faults(self) -> dict[str, list[str]]:
        """What is wrong after a cut, by the operation that came next."""
        out: dict[str, list[str]] = {}
        for moment, root in self.left():
            if IndexFolder(root).exists():
                found = faults(root, self.valid)
            else:
                found = ["the index is gone"] if self.existed else []
            if found:
                out.setdefault(moment, []).extend(found)
        last = self._scratch / "last"
        self.power.acknowledged.write(last)
        if not IndexFolder(last).exists() or IndexFolder(last).read() != self.valid[-1]:
            out["the end"] = ["the version that was acknowledged is not in force"]
        return out


def test_first_ingest(tmp_path: Path) -> None:
    photos(tmp_path / "photos", range(6))
    replay = Replay(tmp_path / ".cartq", tmp_path, ingest)
    assert replay.faults() == {}
    assert len(replay.power.cuts) > 10
    for number, (moment, root) in enumerate(replay.left()):
        if number % 3:
            continue
        ingest(root)
        with Index.open(root) as index:
            assert index.store.count() == 6, moment
            assert index.manifest.identifiers is not None, moment
            assert index.manifest.identifiers.count == 6, moment


def tuned(root: Path) -> None:
    """A training that encodes captions anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tower, "may_tune_captions", lambda data: True)
        patch.setattr(tower, "tuning_pays", lambda data, queries: True)
        trained(root)


def test_a_training_after_one_that_encoded_captions_anew(tmp_path: Path) -> None:
    """It removes the sentence vectors, and writes where they were."""
    photos(tmp_path / "photos", range(PHOTOS))
    ingest(tmp_path / ".cartq")
    tuned(tmp_path / ".cartq")
    replay = Replay(tmp_path / ".cartq", tmp_path, tuned)
    assert replay.faults() == {}
    assert replay.valid[0].captions.vector == CAPTION_2
    assert replay.valid[-1].captions.vector == CAPTION


def test_the_replay_sees_captions_that_are_activated_too_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos(tmp_path / "photos", range(PHOTOS))
    ingest(tmp_path / ".cartq")

    def nothing(index: Index, *_: Any) -> str:
        index.store.add_vector(CAPTION_2, TEXT_DIM)
        return CAPTION_2

    monkeypatch.setattr(captions, "write_caption_vectors", nothing)
    found = Replay(tmp_path / ".cartq", tmp_path, tuned).faults()
    assert any("caption" in one for each in found.values() for one in each), found


@pytest.mark.parametrize("run", [ingest, refitted, trained, tuned])
def test_a_run_on_an_index(tmp_path: Path, run: Callable[[Path], None]) -> None:
    photos(tmp_path / "photos", range(PHOTOS))
    ingest(tmp_path / ".cartq")
    photos(tmp_path / "photos", range(PHOTOS + 3))
    replay = Replay(tmp_path / ".cartq", tmp_path, run)
    assert replay.faults() == {}
    assert {one.revision for one in replay.valid[1:]}


def test_the_replay_sees_a_model_that_was_not_synchronised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos(tmp_path / "photos", range(PHOTOS))
    ingest(tmp_path / ".cartq")
    monkeypatch.setattr(activation, "rename_durably", lambda source, target: source.replace(target))
    found = Replay(tmp_path / ".cartq", tmp_path, trained).faults()
    assert any("generator-2" in one for each in found.values() for one in each), found


def test_a_restored_backup(tmp_path: Path) -> None:
    photos(tmp_path / "photos", range(6))
    made = tmp_path / "made" / ".cartq"
    made.parent.mkdir()
    (made.parent / "photos").symlink_to(tmp_path / "photos")
    ingest(made)
    with Index.open(made) as index, index.folder.lock():
        backup(index, tmp_path / "backup.tar.gz")

    def restored(root: Path) -> None:
        restore(tmp_path / "backup.tar.gz", root)

    replay = Replay(tmp_path / ".cartq", tmp_path, restored, IndexFolder(made).read())
    assert replay.faults() == {}


def test_the_replay_sees_a_store_that_was_not_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos(tmp_path / "photos", range(6))
    ingest(tmp_path / ".cartq")
    monkeypatch.setattr(EdgeStore, "flush", lambda self: None)
    found = Replay(tmp_path / ".cartq", tmp_path, refitted).faults()
    assert any("not in the store" in one for each in found.values() for one in each), found


@pytest.mark.parametrize("killed", [False, True])
def test_replaced_points_stay_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    photos(tmp_path / "photos", range(4))
    root = tmp_path / ".cartq"
    ingest(root)
    for path in (tmp_path / "photos").iterdir():  # another name is another id
        path.rename(path.with_name(f"new-{path.name}"))
    upsert, delete = EdgeStore.upsert, EdgeStore.delete

    def written_out(self: EdgeStore, points: Any) -> None:
        upsert(self, points)
        self.flush()  # as the engine may at any moment: the replaced points are on the disk still

    def interrupted(self: EdgeStore, ids: Any) -> None:
        raise RuntimeError("killed")

    monkeypatch.setattr(EdgeStore, "upsert", written_out)
    if killed:  # the run that is recorded finds the note, and removes what it names
        monkeypatch.setattr(EdgeStore, "delete", interrupted)
        with pytest.raises(RuntimeError, match="killed"):
            ingest(root)
        monkeypatch.setattr(EdgeStore, "delete", delete)
    replay = Replay(root, tmp_path, ingest, without="")
    monkeypatch.undo()
    checked: set[object] = set()
    for cut in replay.power.cuts:
        work = dict(dict(cut.folder.names or ())["work"].names or ())
        if "replaced.json" in work or cut.state() in checked:
            continue  # where there is a note, the next run removes what it names
        checked.add(cut.state())
        after = tmp_path / "after"
        shutil.rmtree(after, ignore_errors=True)
        cut.write(after)
        with closing(EdgeStore(after / "store")) as store:
            stored = [str((one.payload or {})["path"]) for one in store.scroll()]
        assert len(stored) == 4, f"{stored} after a power cut before: {cut.moment}"
    assert checked
