"""The main job on each kind of media, as a user runs it; short, for any version of Python.

`.ci/versions.py newest` runs it with the newest of everything.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from cart_qdrant.embedders.registry import lite_available
from cart_qdrant.index.index import Index
from tests import media_factory as media
from tests.conftest import short_training

pytestmark = [
    pytest.mark.smoke,
    pytest.mark.skipif(
        not lite_available(), reason='not installed: pip install "cart-qdrant[lite]"'
    ),
]
PLUGINS = {
    "cart_qdrant_langchain": "langchain_core", "cart_qdrant_llamaindex": "llama_index.core",
    "cart_qdrant_haystack": "haystack", "cart_qdrant_dspy": "dspy", "cart_qdrant_mcp": "mcp",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an image, a video with sound, and audio in the formats that people have."""
    folder = tmp_path_factory.mktemp("smoke")
    (folder / "media").mkdir()
    for n, suffix in enumerate((".png", ".jpg", ".webp", ".gif")):
        media.write_image(folder / "media" / f"image-{n}{suffix}", media.scene(n))
        (folder / "media" / f"image-{n}.txt").write_text(f"a red boat number {n}")
    frames = media.moving(50, 24) + media.moving(51, 24)
    tags = {"title": "a beach at noon"}
    for suffix in (".mp4", ".mkv"):
        media.write_video(
            folder / "media" / f"clip{suffix}", frames, sound=media.tone(6.0), tags=tags
        )
    for suffix, codec in ((".wav", "pcm_s16le"), (".mp3", "libmp3lame"), (".flac", "flac")):
        path = folder / "media" / f"bell{suffix}"
        media.write_audio(path, media.tone(3.0, hertz=880), codec=codec, tags={"title": "a bell"})
    return folder


def cartq(folder: Path, *words: str) -> str:
    """Output of a command of the program, run in a folder."""
    command = [sys.executable, "-m", "cart_qdrant_cli.main", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_from_files_to_a_page(folder: Path) -> None:
    from cart_qdrant.training.train import train

    ingested = json.loads(cartq(folder, "ingest", "media", "--embedder", "lite", "--json"))
    assert ingested["files"] == 9 and not ingested["failed"], ingested
    with Index.open(folder / ".cartq") as index, index.folder.lock():
        assert train(index, short_training()).items == ingested["segments"]
    suffixes = {"image": ".jpg", "video": ".mp4", "audio": ".mp3"}
    for modality, query in (
        ("image", "a red boat"), ("video", "a beach"), ("audio", "a bell"),
    ):  # fmt: skip
        page = folder / f"{modality}.html"
        found = cartq(
            folder, "search", query, "--modality", modality, "--json", "--html", str(page)
        )
        hits = json.loads(found)["hits"]
        assert {hit["modality"] for hit in hits} == {modality}
        assert any(hit["path"].endswith(suffixes[modality]) for hit in hits)
        html = page.read_text()
        assert html.count("data:image/") >= len(hits), "a hit has no thumbnail"
        assert all(Path(hit["path"]).name in html for hit in hits)


@pytest.mark.parametrize("plugin", sorted(PLUGINS))
def test_each_plugin_is_imported(plugin: str) -> None:
    host = PLUGINS[plugin]
    pytest.importorskip(host, reason=f"not installed: {host}")
    module = importlib.import_module(plugin)
    assert all(getattr(module, name) is not None for name in module.__all__)
