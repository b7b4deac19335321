"""Every door to media files, with an item whose path leads to a picture outside of the index."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cart_qdrant.evaluation.compare import stored_files
from cart_qdrant.index.index import Index
from cart_qdrant.search.retriever import Retriever
from tests.conftest import copy_of

SHOWN = "media/picture-0.png"


@pytest.fixture(params=["up", "absolute", "link"])
def hostile(
    request: pytest.FixtureRequest, small_index: Path, small_media: Path, tmp_path: Path
) -> Iterator[tuple[Path, str]]:
    """An index, and the path that one of its items has by now: it leads to a secret picture."""
    home = tmp_path / "home"
    shutil.copytree(small_media, home / "media")
    root = copy_of(small_index, home / ".cartq")
    secret = tmp_path / "secret.png"
    Image.new("RGB", (64, 64), (250, 0, 0)).save(secret)
    (home / "link.png").symlink_to(secret)
    path = {"up": "../secret.png", "absolute": str(secret), "link": "link.png"}[request.param]
    with Index.open(root) as index:
        (one,) = (r for r in index.store.scroll() if (r.payload or {})["path"] == SHOWN)
        index.store.set_payload([(str(one.id), {"path": path})])
        assert not [file for file in stored_files(index) if file.samefile(secret)]
    yield root, path


def test_mcp_shows_no_picture_of_it(hostile: tuple[Path, str]) -> None:
    pytest.importorskip("mcp", reason='not installed: pip install "cart-qdrant[mcp]"')
    from cart_qdrant_mcp import make_server
    from tests.plugins.test_mcp import call

    root, path = hostile
    with Retriever.open(root) as retriever:
        answer = call(make_server(retriever), "get_segment", name=path)
        good = call(make_server(retriever), "get_segment", name="media/picture-1.png")
    assert [part.type for part in answer.content] == ["text"]
    assert "leads out" in answer.structured_content["picture"]
    assert [part.type for part in good.content] == ["text", "image"]


def test_llamaindex_gives_no_image_path(hostile: tuple[Path, str]) -> None:
    pytest.importorskip("llama_index.core", reason='pip install "cart-qdrant[llamaindex]"')
    from cart_qdrant_llamaindex import CartQdrantRetriever

    root, path = hostile
    with Retriever.open(root) as retriever:
        nodes: list[Any] = CartQdrantRetriever(retriever, k=10).retrieve("a dog on a surfboard")
    found = {node.node.metadata["path"]: node.node for node in nodes}
    assert found[path].image_path is None
    assert Path(found["media/picture-1.png"].image_path).is_file()


def test_a_contact_sheet_shows_no_picture_of_it(
    hostile: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from cart_qdrant_cli.main import main

    root, _ = hostile
    page = tmp_path / "x.html"
    words = ["search", "a dog", "-k", "30", "--html", str(page), "--index", str(root)]
    monkeypatch.setattr(sys, "argv", ["cartq", *words])
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code == 0
    text = page.read_text()
    assert "leads out" in text and "secret.png</a>" not in text.replace("<wbr>", "")
    assert text.count("<img ") >= 5
