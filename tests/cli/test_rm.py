"""`cartq rm`: what goes, what stays, and what it says."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from qdrant_client import QdrantClient
from rich.console import Console

from cart_qdrant.embedders.registry import lite_available
from cart_qdrant.errors import UsageError
from cart_qdrant.index.health import check
from cart_qdrant.index.identifier_files import load_trie
from cart_qdrant.index.index import Index
from cart_qdrant.index.migrate import migrate
from cart_qdrant.index.remove import choose, remove
from cart_qdrant.index.writer import PointWriter
from cart_qdrant.search.query import Part, Query
from cart_qdrant.search.retriever import Retriever
from cart_qdrant.storage.attachment import Attachment
from cart_qdrant.storage.store_info import StoreInfo
from cart_qdrant_cli import rm
from tests import media_factory as media
from tests.cli.conftest import Run
from tests.conftest import TEST_COLLECTIONS, points, tree_of

pytestmark = pytest.mark.skipif(
    not lite_available(), reason='not installed: pip install "cart-qdrant[lite]"'
)
NAMES = ["a/1.png", "a/2.png", "a/deep/3.png", "b/1.png", "b/dög.png", "c.gif"]


@pytest.fixture
def base(tmp_path: Path, cartq: Run, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `media` of six files in three folders, and an index beside it."""
    for n, name in enumerate(NAMES):
        path = tmp_path / "media" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        media.write_image(path, media.scene(n))
    vectors = np.random.default_rng(0).normal(size=(len(NAMES), 16))
    np.savez(tmp_path / "v.npz", vectors=vectors, paths=np.asarray(NAMES))
    words = ["--embedder", "precomputed", "--vectors", tmp_path / "v.npz"]
    done = cartq("ingest", tmp_path / "media", "--index", tmp_path / ".cartq", *words)
    assert done.code == 0, done.err
    monkeypatch.chdir(tmp_path)
    return tmp_path


def left(base: Path) -> set[str]:
    """Stored paths below `media`, each with an identifier that the tree holds."""
    with Index.open(base / ".cartq") as index:
        return names_of(index)


def names_of(index: Index) -> set[str]:
    found, info, trie = points(index), index.manifest.identifiers, load_trie(index)
    assert info is not None and trie is not None
    assert info.count == len(trie) == len(found)
    assert all(info.field in p for p in found.values())
    assert not PointWriter(index).changed
    return {p["path"].removeprefix("media/") for p in found.values()}


@pytest.mark.parametrize(
    ("given", "gone"),
    [
        (["media/a/1.png"], {"a/1.png"}),
        (
            ["media/a", "media/a/1.png", "media/c.gif"],
            {"a/1.png", "a/2.png", "a/deep/3.png", "c.gif"},
        ),
        (["./media/a/deep/"], {"a/deep/3.png"}),
        (["*.gif"], {"c.gif"}),
        (["1.*"], {"a/1.png", "b/1.png"}),
        (["media/a/*.png"], set(NAMES[:3])),
        (["media/b/do\u0308g.png"], {"b/dög.png"}),
        (["."], set(NAMES)),
    ],
)
def test_files_folders_and_patterns(
    base: Path, cartq: Run, given: list[str], gone: set[str]
) -> None:
    files = tree_of(base / "media")
    done = cartq("rm", *given, "--json")
    assert done.code == 0, done.err
    assert done.json["paths"] == sorted(f"media/{name}" for name in gone)
    assert (done.json["removed"], done.json["segments"]) == (len(gone), len(gone))
    assert done.json["identifiers"]["count"] == len(NAMES) - len(gone)
    assert left(base) == set(NAMES) - gone
    assert tree_of(base / "media") == files, "files of the user are never touched"
    again = cartq("rm", *given, "--json")
    assert again.code == 1 and len(again.json["failed"]) == len(given)


def test_a_path_is_seen_from_here_or_as_stored(
    base: Path, cartq: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(base / "media" / "a")
    given = ["--index", base / ".cartq", "--json"]
    assert cartq("rm", "1.png", *given).json["paths"] == ["media/a/1.png"]
    assert cartq("rm", "media/b/1.png", *given).json["paths"] == ["media/b/1.png"]
    assert cartq("rm", base / "media" / "c.gif", *given).json["paths"] == ["media/c.gif"]
    (base / "media" / "a" / "2.png").unlink()
    assert cartq("rm", "2.png", *given).json["paths"] == ["media/a/2.png"], "it need not exist"


def test_a_name_that_fits_two_files_is_refused(
    base: Path, cartq: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    nested = base / "media" / "media" / "c.gif"
    nested.parent.mkdir()
    media.write_image(nested, media.scene(9))
    np.savez(base / "w.npz", vectors=np.eye(1, 16), paths=np.asarray(["media/media/c.gif"]))
    assert cartq("ingest", nested, "--vectors", base / "w.npz").code == 0
    monkeypatch.chdir(base / "media")
    done = cartq("rm", "media/c.gif", "--index", base / ".cartq")
    assert done.code == 2
    assert "media/c.gif as it is stored, and media/media/c.gif seen from" in done.err
    assert len(left(base)) == 7


def test_dry_run_and_what_fits_nothing(base: Path, cartq: Run) -> None:
    done = cartq("rm", "media/a", "none.png", "--dry-run", "--json")
    assert done.code == 1
    assert done.json["would_remove"] == ["media/a/1.png", "media/a/2.png", "media/a/deep/3.png"]
    assert done.json["removed"] == 0
    assert [f["path"] for f in done.json["failed"]] == ["none.png"]
    assert left(base) == set(NAMES)
    shown = cartq("rm", "media/a", "--dry-run")
    assert shown.code == 0 and "would remove  media/a/deep/3.png" in shown.out
    assert "3 files, 3 segments to remove. Nothing was written." in shown.out
    shown = cartq("rm", "media/a")
    assert "3 files, 3 segments removed" in shown.out and "takes them again" in shown.err
    assert cartq("rm").code == 2


@pytest.mark.parametrize("answer", ["y", "n"])
def test_a_terminal_is_asked(
    base: Path, cartq: Run, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    asked: list[str] = []

    def confirm(text: str, **_: Any) -> bool:
        asked.append(text)
        return answer == "y"

    monkeypatch.setattr(sys, "stdin", type("Terminal", (), {"isatty": lambda self: True})())
    monkeypatch.setattr(rm, "stderr", lambda: Console(force_terminal=True))
    monkeypatch.setattr(typer, "confirm", confirm)
    done = cartq("rm", "media/a")
    assert done.code == 0 and asked == ["Take 3 files (3 segments) out of the index?"]
    assert len(left(base)) == (3 if answer == "y" else 6)
    cartq("rm", "media/b", "--yes")
    assert len(asked) == 1 and len(left(base)) == (1 if answer == "y" else 4)


def test_removed_files_are_found_no_more_and_may_come_again(base: Path, cartq: Run) -> None:
    like = Query((Part("vector", "any", vector=(1.0,) * 16),))
    with Retriever.open(base / ".cartq") as retriever:
        assert "media/c.gif" in {hit.path for hit in retriever.search(like, k=10).hits}
    assert cartq("rm", "media/c.gif").code == 0
    with Retriever.open(base / ".cartq") as retriever:
        found = {hit.path for hit in retriever.search(like, k=10).hits}
        assert "media/c.gif" not in found and len(found) == 5
    words = ["ingest", "media", "--vectors", "v.npz", "--json"]
    done = cartq(*words, "--exclude", "*.gif")
    assert (done.json["unchanged"], done.json["segments"]) == (5, 0)
    done = cartq(*words)
    assert (done.json["unchanged"], done.json["segments"]) == (5, 1)
    assert left(base) == set(NAMES)


def test_a_killed_run_is_finished_by_the_next(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(index: Index) -> int:
        raise KeyboardInterrupt

    with Index.open(base / ".cartq") as index, index.folder.lock():
        with monkeypatch.context() as patch:
            patch.setattr("cart_qdrant.index.remove.update_identifiers", die)
            with pytest.raises(KeyboardInterrupt):
                remove(index, choose(index, ["media/a"]))
        assert PointWriter(index).changed
        remove(index, choose(index, ["media/none"]))
        assert names_of(index) == {"b/1.png", "b/dög.png", "c.gif"}


def test_an_index_on_a_server(base: Path, client: QdrantClient) -> None:
    place = StoreInfo(kind="client", collection=f"{TEST_COLLECTIONS}rm")
    with Index.open(base / ".cartq") as index, index.folder.lock():
        migrate(index, place, client=client)
        report = remove(index, choose(index, ["media/a"]))
        assert (len(report.paths), report.segments) == (3, 3)
        assert names_of(index) == {"b/1.png", "b/dög.png", "c.gif"}
        health = check(index)
        assert health is not None and health.items == 3


def test_a_collection_that_others_fill_is_refused(base: Path, cartq: Run) -> None:
    manifest = base / ".cartq" / "manifest.json"
    with Index.open(base / ".cartq") as index:
        attached = replace(index.manifest.store, attachment=Attachment(vector="media"))
        index.manifest = replace(index.manifest, store=attached)
        with pytest.raises(UsageError, match=r"filled by others.*cartq sync"):
            choose(index, ["media/a"])
    assert manifest.exists() and len(left(base)) == 6
