"""Stored caption vectors that a training encodes anew: written beside the old ones, put in force
with the identifiers, and made by the same encoder for whatever comes later."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from qdrant_client import QdrantClient, models

import cart_qdrant.training.train as training
from cart_qdrant.identifiers.item_table import file_number
from cart_qdrant.index.attach import AttachOptions, attach
from cart_qdrant.index.backup import backup, restore
from cart_qdrant.index.caption_vectors import caption_means, write_caption_vectors
from cart_qdrant.index.identify import refit, remove_stale
from cart_qdrant.index.index import Index
from cart_qdrant.index.manifest import CaptionVectors
from cart_qdrant.index.migrate import migrate
from cart_qdrant.index.points import vector_of
from cart_qdrant.index.sync import sync
from cart_qdrant.progress import Silent
from cart_qdrant.records import Caption
from cart_qdrant.search.retriever import Retriever
from cart_qdrant.storage.protocol import CAPTION, CAPTION_2
from cart_qdrant.storage.store_info import StoreInfo
from cart_qdrant.training.query_encoder import QueryEncoder
from cart_qdrant.training.stages import tower
from cart_qdrant_cli.doctor import diagnose, repair
from tests import media_factory as media
from tests.conftest import TEST_COLLECTIONS, PatchEmbedder, copy_of, short_training

PHOTOS = 24
TEXTS = [f"a {thing} in the {place}" for thing in ("dog", "cat", "boat", "child", "truck", "bird")
         for place in ("snow", "river", "street", "grass")]  # fmt: skip


def let_tune(patch: pytest.MonkeyPatch) -> None:
    """Trainings encode captions anew, each in a way of its own: one caption an item moves nothing
    in so short a training."""
    real = tower.query_graph

    def turned(encoder: QueryEncoder) -> bytes:
        bias = encoder.tuned[-1].norm2.bias  # type: ignore[union-attr]
        with torch.no_grad():
            bias += 0.02 * torch.randn(bias.shape)
        return real(encoder)

    patch.setattr(tower, "may_tune_captions", lambda data: True)
    patch.setattr(tower, "tuning_pays", lambda data, queries: True)
    patch.setattr(tower, "query_graph", turned)


@pytest.fixture(autouse=True)
def tunes(monkeypatch: pytest.MonkeyPatch, text_encoder: Any) -> None:
    monkeypatch.setattr(Index, "text_encoder", lambda self: text_encoder)
    let_tune(monkeypatch)


def photos(folder: Path, numbers: range) -> None:
    folder.mkdir(exist_ok=True)
    for n in numbers:
        media.write_image(folder / f"{n:02}.png", media.scene(n))
        (folder / f"{n:02}.txt").write_text(TEXTS[n % PHOTOS] + "\n")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, text_encoder: Any) -> Path:
    """The `.cartq` folder of an index of photos with captions; copy it."""
    from cart_qdrant.index.ingest import Ingest
    from cart_qdrant.index.report import IngestOptions

    folder = tmp_path_factory.mktemp("made")
    photos(folder / "photos", range(PHOTOS - 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Index, "text_encoder", lambda self: text_encoder)
        with Index.create(folder / ".cartq", PatchEmbedder()) as index, index.folder.lock():
            Ingest(index, IngestOptions(paths=[folder / "photos"])).run()
    return folder / ".cartq"


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A copy of the index, beside its photos."""
    shutil.copytree(made.parent / "photos", tmp_path / "photos")
    return copy_of(made, tmp_path / ".cartq")


@pytest.fixture(scope="module")
def tuned(made: Path, tmp_path_factory: pytest.TempPathFactory, text_encoder: Any) -> Path:
    """A copy of the index after a training; copy it."""
    root = copy_of(made, tmp_path_factory.mktemp("tuned") / ".cartq")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Index, "text_encoder", lambda self: text_encoder)
        let_tune(patch)
        with Index.open(root) as index:
            train(index)
    return root


@pytest.fixture
def trained_root(tuned: Path, made: Path, tmp_path: Path) -> Path:
    """A copy of the trained index, beside its photos."""
    shutil.copytree(made.parent / "photos", tmp_path / "photos")
    return copy_of(tuned, tmp_path / ".cartq")


def train(index: Index) -> None:
    with index.folder.lock():
        training.train(index, short_training())


def stored(index: Index, slot: str) -> dict[str, list[float] | None]:
    """Caption vector of each point in one of the two vectors."""
    found = index.store.scroll(with_payload=False, with_vectors=[slot])
    return {str(record.id): vector_of(record, slot) for record in found}


def expected(index: Index) -> dict[str, list[float] | None]:
    """Caption vector of each point by the encoder in force."""
    records = list(index.store.scroll(with_payload=["captions"]))
    captions = [[Caption.from_payload(c) for c in (r.payload or {})["captions"]] for r in records]
    means = caption_means(index.caption_encoder(), captions)
    return {
        str(r.id): None if mean is None else mean.tolist()
        for r, mean in zip(records, means, strict=True)
    }


def alike(found: dict[str, list[float] | None], wanted: dict[str, list[float] | None]) -> bool:
    """Whether the same points have a vector, and these are equal up to rounding."""
    there = {id for id, x in found.items() if x is not None}
    if there != {id for id, x in wanted.items() if x is not None} or not there:
        return False
    pairs = [(found[id], wanted[id]) for id in sorted(there)]
    return bool(np.allclose([a for a, _ in pairs], [b for _, b in pairs], atol=1e-5))


def assert_sound(index: Index) -> None:
    """The vectors in force are those of the encoder in force."""
    assert alike(stored(index, index.caption_vector), expected(index))


def similarities(root: Path) -> list[float]:
    """Similarity of the best hit of each caption, in the lane `caption`."""
    with Retriever.open(root) as retriever:
        found = retriever.search_many(TEXTS[:6], lane="caption", k=1)
    assert [one.hits[0].caption for one in found] == TEXTS[:6]
    return [one.hits[0].similarity or 0.0 for one in found]


def test_a_training_encodes_the_captions_anew(root: Path) -> None:
    with Index.open(root) as index:
        assert index.manifest.captions == CaptionVectors(vector=CAPTION)
        assert set(index.store.info().vectors) == {"media", CAPTION}
        before = stored(index, CAPTION)
        assert_sound(index)
        train(index)
        generator, bank = index.manifest.generator, index.query_bank()
        assert generator is not None and bank is not None
        assert index.manifest.captions == CaptionVectors(vector=CAPTION_2, encoder=generator.folder)
        assert_sound(index)
        after = stored(index, CAPTION_2)
        assert not alike(after, before)
        # What searches with the old manifest read is there until the next run that writes.
        assert alike(stored(index, CAPTION), before)
        info = index.manifest.identifiers
        assert info is not None
        for record in index.store.scroll(with_payload=["path", info.field]):
            own = np.asarray([file_number((record.payload or {})["path"])], np.uint64)
            hub = (record.payload or {})[info.field]["hub"]["caption"]
            x = np.asarray([after[str(record.id)]], np.float32)
            assert hub == pytest.approx(float(bank.hubness(x, "caption", own)[0]), abs=1e-4)
    assert min(similarities(root)) > 0.98  # a text is the same as a query and as a caption


def test_what_comes_later_is_encoded_by_the_same_encoder(
    trained_root: Path, tmp_path: Path, open_index: Any, ingest: Callable[..., Any]
) -> None:
    index = open_index(trained_root)
    photos(tmp_path / "photos", range(PHOTOS - 1, PHOTOS))
    (tmp_path / "photos" / "00.txt").write_text("a horse behind a fence\n")
    report = ingest(index, tmp_path / "photos")
    assert (report.segments, report.recaptioned) == (1, 1)
    assert_sound(index)
    # The room of the vectors that nobody reads any more is given back.
    assert set(index.store.info().vectors) == {"media", CAPTION_2}
    assert index.manifest.stale_vectors == []
    with Retriever.open(trained_root) as retriever:
        for text in (TEXTS[PHOTOS - 1], "a horse behind a fence"):
            (hit,) = retriever.search(text, lane="caption", k=1, explain=True).hits
            assert hit.caption == text and (hit.similarity or 0) > 0.98
            assert hit.why is not None
            assert hit.why["matched_caption"]["similarity"] == pytest.approx(
                hit.similarity, abs=1e-3
            )


def test_the_two_vectors_take_turns(trained_root: Path) -> None:
    with Index.open(trained_root) as index:
        (before,) = index.caption_encoder().embed([TEXTS[0]])
        train(index)
        (after,) = index.caption_encoder().embed([TEXTS[0]])
        assert not np.allclose(before, after, atol=1e-5)  # it is another encoder's
        generator = index.manifest.generator
        assert generator is not None
        assert index.manifest.captions == CaptionVectors(vector=CAPTION, encoder=generator.folder)
        assert_sound(index)
        with index.folder.lock():
            remove_stale(index)
        assert set(index.store.info().vectors) == {"media", CAPTION}
        assert [one.name for one in trained_root.glob("generator-*")] == [generator.folder.name]


def test_a_training_that_tunes_no_captions_brings_sentence_vectors_back(
    trained_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tower, "may_tune_captions", lambda data: False)
    monkeypatch.setattr(tower, "tuning_pays", lambda data, queries: False)
    with Index.open(trained_root) as index:
        train(index)
        assert index.manifest.captions == CaptionVectors(vector=CAPTION)
        assert_sound(index)
        revision = index.manifest.captions
        train(index)  # they stay where they are
        assert index.manifest.captions == revision


def test_a_refit_keeps_the_captions_and_their_encoder(trained_root: Path) -> None:
    before = similarities(trained_root)
    with Index.open(trained_root) as index, index.folder.lock():
        captions = index.manifest.captions
        refit(index)
        remove_stale(index)
        assert index.manifest.generator is None
        assert index.manifest.captions == captions and captions.encoder is not None
        assert (trained_root / captions.encoder.name).is_dir()
        assert_sound(index)
    assert similarities(trained_root) == pytest.approx(before, abs=1e-4)


def test_an_open_reader_sees_the_old_version_and_then_the_new_one(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = training.calibrate_search, []
    with Retriever.open(root) as retriever:

        def best() -> tuple[str | None, float]:
            (hit,) = retriever.search(TEXTS[3], lane="caption", k=1).hits
            return hit.caption, hit.similarity or 0.0

        def between(*args: Any) -> Any:
            seen.append(best())  # new identifiers and caption vectors are written
            return real(*args)

        before = best()
        monkeypatch.setattr(training, "calibrate_search", between)
        with Index.open(root) as index:
            train(index)
            assert seen == [before] and before[0] == TEXTS[3]
            with index.folder.lock():
                remove_stale(index)
            after = best()
            (x,) = index.caption_encoder().embed([TEXTS[3]])
            assert after == (TEXTS[3], pytest.approx(float(x @ x), abs=0.02))
        assert retriever._index.caption_vector == CAPTION_2


def test_a_search_that_has_begun_ends_on_the_old_version(trained_root: Path) -> None:
    """Its version is that of its begin, whatever is put in force meanwhile."""
    with Retriever.open(trained_root) as retriever, Index.open(trained_root) as index:
        version = retriever._follower.current()
        train(index)
        found = version.searcher.texts([TEXTS[3]], _request("caption"))[0]
        assert [hit.caption for hit in found.hits] == [TEXTS[3]]
        assert version.index.caption_vector != index.caption_vector


def _request(lane: Any) -> Any:
    from cart_qdrant.search.options import SearchRequest

    return SearchRequest(lane=lane, k=1)


def test_a_killed_run_leaves_what_is_in_force(root: Path) -> None:
    class Killed:
        """Ends the run in its middle."""

        def embed(self, texts: Any) -> Any:
            raise KeyboardInterrupt

    with Index.open(root) as index, index.folder.lock():
        before = stored(index, CAPTION)
        with pytest.raises(KeyboardInterrupt):
            write_caption_vectors(index, Killed(), Silent())
        assert alike(stored(index, CAPTION), before)
    with Index.open(root) as index, index.folder.lock():
        assert index.manifest.stale_vectors == [CAPTION_2]
        remove_stale(index)
        assert set(index.store.info().vectors) == {"media", CAPTION}
        assert_sound(index)


def test_a_text_is_encoded_once(root: Path) -> None:
    with Index.open(root) as index, index.folder.lock():
        encoder, asked = index.caption_encoder(), []

        class Counting:
            def embed(self, texts: Any) -> Any:
                asked.extend(texts)
                return encoder.embed(texts)

        import cart_qdrant.index.points as points

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(points, "BLOCK", 4)
            slot = write_caption_vectors(index, Counting(), Silent())
        assert sorted(asked) == sorted(set(TEXTS[: PHOTOS - 1]))
        assert alike(stored(index, slot), stored(index, CAPTION))


def test_backup_and_restore(trained_root: Path, tmp_path: Path) -> None:
    before = similarities(trained_root)
    with Index.open(trained_root) as index, index.folder.lock():
        refit(index)  # the encoder's folder is kept for its captions alone
        remove_stale(index)
        backup(index, tmp_path / "backup.tar.gz")
    restore(tmp_path / "backup.tar.gz", tmp_path / "restored")
    with Index.open(tmp_path / "restored") as index:
        assert index.caption_vector == CAPTION_2
        assert set(index.store.info().vectors) == {"media", CAPTION_2}
        assert_sound(index)
    assert similarities(tmp_path / "restored") == pytest.approx(before, abs=1e-4)


def test_migrate_there_and_back(trained_root: Path) -> None:
    client = QdrantClient(":memory:")
    there = StoreInfo(kind="client", collection=f"{TEST_COLLECTIONS}moved")
    with Index.open(trained_root) as index, index.folder.lock():
        wanted = stored(index, CAPTION_2)
        migrate(index, there, client=client)
        assert alike(stored(index, CAPTION_2), wanted)
        training.train(index, short_training())
        wanted = stored(index, CAPTION)
        migrate(index, StoreInfo())
        assert index.caption_vector == CAPTION
        assert alike(stored(index, CAPTION), wanted)
        assert_sound(index)
        remove_stale(index)
        assert_sound(index)
    client.close()


def test_the_doctor_goes_on_without_a_broken_encoder(trained_root: Path) -> None:
    with Index.open(trained_root) as index, index.folder.lock():
        folder = index.manifest.captions.encoder
        assert folder is not None
        refit(index)
        (trained_root / folder.name / "query.onnx").write_bytes(b"broken")
        found = diagnose(index)
        assert set(found.broken) == {"caption_encoder"}
        repair(index, found, Silent())  # type: ignore[arg-type]
        assert index.manifest.captions == CaptionVectors(vector=CAPTION)
        assert diagnose(index).broken == {}
        assert_sound(index)
    assert min(similarities(trained_root)) > 0.9


def test_the_doctor_goes_on_without_a_broken_model(trained_root: Path) -> None:
    with Index.open(trained_root) as index, index.folder.lock():
        folder = index.manifest.captions.encoder
        assert folder is not None
        (trained_root / folder.name / "query.onnx").write_bytes(b"broken")
        found = diagnose(index)
        assert set(found.broken) == {"generator"}
        repair(index, found, Silent())  # type: ignore[arg-type]
        assert index.manifest.generator is None
        assert index.manifest.captions == CaptionVectors(vector=CAPTION)
        assert_sound(index)
    assert min(similarities(trained_root)) > 0.9


INGEST = """
import json, sys
from pathlib import Path
from cart_qdrant.index.index import Index
from cart_qdrant.index.ingest import Ingest
from cart_qdrant.index.report import IngestOptions
root = Path(sys.argv[1])
with Index.open(root) as index, index.folder.lock():
    index.vectors_file = root.parent / "vectors.npz"
    report = Ingest(index, IngestOptions(paths=[root.parent / "photos"])).run()
print(json.dumps({"segments": report.segments, "torch": "torch" in sys.modules}))
"""


def test_a_captioned_photo_is_ingested_without_torch(tmp_path: Path) -> None:
    from cart_qdrant.index.ingest import Ingest
    from cart_qdrant.index.report import IngestOptions

    rng = np.random.default_rng(0)
    paths = [f"photos/{n:02}.png" for n in range(PHOTOS)]
    np.savez(
        tmp_path / "vectors.npz", paths=np.asarray(paths),
        vectors=rng.normal(size=(PHOTOS, 16)).astype(np.float32),
    )  # fmt: skip
    photos(tmp_path / "photos", range(PHOTOS - 1))
    from cart_qdrant.embedders.registry import open_embedder

    embedder = open_embedder("precomputed", vectors=tmp_path / "vectors.npz")
    with Index.create(tmp_path / ".cartq", embedder) as index, index.folder.lock():
        Ingest(index, IngestOptions(paths=[tmp_path / "photos"])).run()
        training.train(index, short_training())
    photos(tmp_path / "photos", range(PHOTOS - 1, PHOTOS))
    command = [sys.executable, "-c", INGEST, str(tmp_path / ".cartq")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"segments": 1, "torch": False}
    with Index.open(tmp_path / ".cartq") as index:
        assert_sound(index)


# Collections that others fill

DIM = 16
NAME = f"{TEST_COLLECTIONS}theirs"


def point(n: int) -> models.PointStruct:
    x = np.random.default_rng(n).normal(size=DIM)
    return models.PointStruct(
        id=n, vector={"clip": x.tolist()}, payload={"title": TEXTS[n % PHOTOS]}
    )


class Theirs:
    """A collection of others: of a client, or of an embedded engine."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        self.client = QdrantClient(":memory:") if kind == "memory" else None

    def make(self) -> None:
        if self.client is not None:
            params = models.VectorParams(size=DIM, distance=models.Distance.COSINE)
            self.client.create_collection(NAME, {"clip": params})
        else:
            import qdrant_edge as edge

            self.folder.mkdir()
            params = edge.EdgeVectorParams(DIM, edge.Distance.Cosine)
            config = edge.EdgeConfig(vectors={"clip": params})
            edge.EdgeShard.create(str(self.folder), config).close()
        self.write(range(PHOTOS))

    def write(self, numbers: Any) -> None:
        """Write whole points, as their owner does: what is ours is gone from them."""
        points = [point(n) for n in numbers]
        if self.client is not None:
            self.client.upsert(NAME, points)
            return
        import qdrant_edge as edge

        shard = edge.EdgeShard.load(str(self.folder))
        rows = [edge.Point(one.id, one.vector, one.payload) for one in points]
        shard.update(edge.UpdateOperation.upsert_points(rows))
        shard.flush()
        shard.close()

    def attach(self, root: Path, **options: Any) -> Index:
        given = AttachOptions(caption_vectors=True, fields={"captions": "title"}, **options)
        if self.client is not None:
            return attach(root, NAME, client=self.client, options=given)
        return attach(root, "", path=self.folder, options=given)

    def open(self, root: Path) -> Index:
        return Index.open(root, client=self.client)


@pytest.fixture(params=["memory", "embedded"])
def theirs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Theirs]:
    one = Theirs(request.param, tmp_path / "theirs")
    one.make()
    yield one
    if one.client is not None:
        one.client.close()


def test_an_attached_collection_and_those_who_write_to_it(theirs: Theirs, tmp_path: Path) -> None:
    root = tmp_path / ".cartq"
    with theirs.attach(root) as index, index.folder.lock():
        assert sync(index).captions == PHOTOS
        training.train(index, short_training())
        generator = index.manifest.generator
        assert generator is not None
        assert index.manifest.captions == CaptionVectors(vector=CAPTION_2, encoder=generator.folder)
        assert {"cart_caption", "cart_caption_2"} <= set(index.store.info().vectors)
        assert_sound(index)
    theirs.write(range(PHOTOS - 2, PHOTOS + 3))  # two are replaced, three are new
    with theirs.open(root) as index, index.folder.lock():
        report = sync(index)
        assert (report.items, report.captions) == (PHOTOS + 3, 5)
        assert_sound(index)
        if theirs.kind == "memory":
            assert not any(stored(index, CAPTION).values())
        else:
            assert "cart_caption" not in index.store.info().vectors
        assert sync(index, verify=True).captions == PHOTOS + 3
        assert_sound(index)
        training.train(index, short_training())
        assert index.caption_vector == CAPTION
        assert_sound(index)


def test_others_write_between_the_captions_and_their_activation(
    theirs: Theirs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if theirs.client is None:
        pytest.skip("an embedded engine belongs to one process")
    real = training.store_captions

    def then_others_write(*args: Any) -> Any:
        out = real(*args)
        theirs.write(range(PHOTOS - 2, PHOTOS + 3))
        return out

    monkeypatch.setattr(training, "store_captions", then_others_write)
    with theirs.attach(tmp_path / ".cartq") as index, index.folder.lock():
        sync(index)
        training.train(index, short_training())
        assert sync(index).captions == 5
        assert_sound(index)


def test_vectors_of_a_deleted_index_are_not_taken_over(theirs: Theirs, tmp_path: Path) -> None:
    with theirs.attach(tmp_path / "one") as index, index.folder.lock():
        sync(index)
        training.train(index, short_training())
        for field in [*index.manifest.stale_fields, index.field]:
            index.store.delete_payload_key(field)
            for name in (f"{field}.id", f"{field}.p1"):
                index.store.drop_index(name)
        index.store.set_metadata("cart-qdrant:cart", {})
    if theirs.client is not None:
        theirs.client.update_collection(NAME, metadata={"cart-qdrant:cart": None})
    shutil.rmtree(tmp_path / "one")
    with theirs.attach(tmp_path / "two") as index, index.folder.lock():
        assert sync(index).captions == PHOTOS
        assert_sound(index)


def test_two_indexes_on_one_collection_have_vectors_of_their_own(
    theirs: Theirs, tmp_path: Path
) -> None:
    if theirs.client is None:
        pytest.skip("an embedded engine belongs to one process")
    with (
        theirs.attach(tmp_path / "one") as one,
        theirs.attach(tmp_path / "two", key="other") as two,
    ):
        sync(one)
        sync(two)
        train(one)
        assert "other_caption" in two.store.info().vectors
        assert_sound(one)
        assert_sound(two)
        assert two.manifest.captions == CaptionVectors(vector=CAPTION)
