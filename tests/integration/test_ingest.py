"""The ingestion on real files: what is done again, what is kept, what goes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_client import models

from cart_qdrant.embedders.zero_shot import TextAnchors
from cart_qdrant.errors import MismatchError, UsageError
from cart_qdrant.index import ingest as ingestion
from cart_qdrant.index import pipeline as decoding
from cart_qdrant.index import plan as planning
from cart_qdrant.index import writer
from cart_qdrant.index.health import check
from cart_qdrant.index.identifier_files import load_codec, load_trie
from cart_qdrant.index.identify import refit
from cart_qdrant.index.index import Index
from cart_qdrant.index.ingest import Ingest
from cart_qdrant.index.plan import file_state
from cart_qdrant.index.points import read_vectors
from cart_qdrant.index.report import IngestOptions
from cart_qdrant.media.scan import scan
from cart_qdrant.records import Identifier
from cart_qdrant.search.filters import parse_filter
from tests import media_factory as media
from tests.conftest import PatchEmbedder, points, tree_of
from tests.unit.index.test_index import _Fitted

Run = Callable[..., Any]


def pictures(folder: Path, count: int, first: int = 0) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    return [
        media.write_image(folder / f"p{n:03}.png", media.scene(n))
        for n in range(first, first + count)
    ]


def assert_named(index: Index) -> None:
    """Every point has an identifier of its own, and the tree holds exactly those."""
    info, trie = index.manifest.identifiers, load_trie(index)
    assert info is not None and trie is not None
    stored = [Identifier.from_payload(p[info.field]) for p in points(index).values()]
    rows = sorted((*one.codes, one.u) for one in stored)
    assert len(set(rows)) == len(rows) == info.count
    assert trie.rows().tolist() == [list(row) for row in rows]


def media_vectors(index: Index) -> dict[str, Any]:
    return {i: p["vector"]["media"] for i, p in points(index).items()}


@pytest.mark.parametrize("count", [1, 2, 3, 20])
def test_any_number_of_items(tmp_path: Path, open_index: Run, ingest: Run, count: int) -> None:
    pictures(tmp_path / "m", count)
    index = open_index(tmp_path / ".cartq")
    report = ingest(index, tmp_path / "m")
    assert (report.files, report.segments, report.failed) == (count, count, [])
    assert report.identifiers["count"] == count == len(points(index))
    assert_named(index)
    health = check(index)
    assert health is not None and health.items == count


def test_no_item(tmp_path: Path, open_index: Run, ingest: Run) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "notes.md").write_text("nothing here")
    index = open_index(tmp_path / ".cartq")
    report = ingest(index, tmp_path / "m")
    assert (report.files, report.segments, report.identifiers) == (0, 0, {})
    assert index.manifest.identifiers is None and check(index) is None
    with pytest.raises(UsageError, match="no path"):
        ingest(index)
    with pytest.raises(UsageError, match="no file or folder"):
        ingest(index, tmp_path / "absent")


def test_second_run_does_nothing(
    tmp_path: Path, small_media: Path, open_index: Run, ingest: Run, monkeypatch: Any
) -> None:
    shutil.copytree(small_media, tmp_path / "m")
    for n, path in enumerate(sorted((tmp_path / "m").iterdir())):
        # Times that a float in the store's JSON does not give back to the last bit.
        os.utime(path, ns=(0, 1_763_999_999_123_456_789 + 7_777_777_777 * n))
    index = open_index(tmp_path / ".cartq", PatchEmbedder())
    first = ingest(index, tmp_path / "m")
    assert first.unchanged == 0 and first.failed == []
    index.close()
    embedder = PatchEmbedder()
    index = open_index(tmp_path / ".cartq", embedder)
    before = points(index)
    for name in ("upsert", "set_payload", "delete", "update_vectors", "delete_payload_key"):
        monkeypatch.setattr(index.store, name, lambda *a, _n=name: pytest.fail(_n))
    again = ingest(index, tmp_path / "m")
    assert (again.unchanged, again.segments) == (first.files, 0)
    assert embedder.calls == [] and points(index) == before
    assert again.identifiers == first.identifiers


def test_unchanged_files_are_not_opened(
    tmp_path: Path, open_index: Run, ingest: Run, monkeypatch: Any
) -> None:
    (path,) = pictures(tmp_path / "m", 1)
    index = open_index(tmp_path / ".cartq")
    ingest(index, tmp_path / "m")
    path.chmod(0)
    monkeypatch.setattr(os, "access", lambda *_: True)
    for name in ("content_hash", "sniff"):
        monkeypatch.setattr(f"cart_qdrant.index.plan.{name}", lambda _: pytest.fail("opened"))
    (entry,) = scan([path], base=tmp_path).entries
    index.store.set_payload([(i, file_state(entry)) for i in points(index)])
    report = ingest(index, tmp_path / "m")
    assert (report.unchanged, report.hashed, report.failed) == (1, 0, [])


def replace_in_place(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def replace_by_another(path: Path, content: bytes) -> None:
    path.with_name("draft").write_bytes(content)
    path.with_name("draft").replace(path)


@pytest.mark.parametrize("put", [replace_in_place, replace_by_another])
def test_a_file_of_the_same_size_and_date_but_other_content_is_noticed(
    tmp_path: Path, open_index: Run, ingest: Run, put: Any
) -> None:
    """As `cp -p` and programs that keep dates do it."""
    a, b = (media.write_image(tmp_path / f"{n}.bmp", media.scene(n)) for n in (1, 2))
    (tmp_path / "m").mkdir()
    path = Path(shutil.copy2(a, tmp_path / "m" / "a.bmp"))
    index = open_index(tmp_path / ".cartq")
    ingest(index, tmp_path / "m")
    (before,) = points(index).values()
    info = path.stat()
    put(path, b.read_bytes())
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (info.st_size, info.st_mtime_ns)
    report = ingest(index, tmp_path / "m")
    (after,) = points(index).values()
    assert (report.segments, report.unchanged) == (1, 0)
    assert after["hash"] != before["hash"] and after["vector"] != before["vector"]
    assert ingest(index, tmp_path / "m").hashed == 0


def test_content_that_changed_unseen_is_found_by_verify(
    tmp_path: Path, open_index: Run, ingest: Run
) -> None:
    """As a failing disk changes it: the folder entry says nothing."""
    a, _ = pictures(tmp_path / "m", 2)
    index = open_index(tmp_path / ".cartq")
    ingest(index, tmp_path / "m")
    media.write_image(a, media.scene(40))
    (entry, _) = scan([tmp_path / "m"], base=tmp_path).entries
    (one,) = [i for i, p in points(index).items() if p["path"] == "m/p000.png"]
    index.store.set_payload([(one, file_state(entry))])
    assert ingest(index, tmp_path / "m").unchanged == 2
    dry = Ingest(index, IngestOptions(paths=[tmp_path / "m"], verify=True, dry_run=True)).run()
    assert dry.would_ingest == ["m/p000.png"] and dry.hashed == 2
    report = ingest(index, tmp_path / "m", verify=True)
    assert (report.hashed, report.segments, report.unchanged) == (2, 1, 1)
    assert [f.path for f in report.warnings] == ["m/p000.png"]
    assert "its size and times did not" in report.warnings[0].reason
    report = ingest(index, tmp_path / "m", verify=True)
    assert (report.hashed, report.segments, report.warnings) == (2, 0, [])


def test_copied_folders_are_hashed_once_and_embedded_never(
    tmp_path: Path, open_index: Run, ingest: Run
) -> None:
    """After a restore, or a move to another disk, every inode and ctime is another one."""
    pictures(tmp_path / "one" / "m", 3)
    index = open_index(tmp_path / "one" / ".cartq")
    ingest(index, tmp_path / "one" / "m")
    index.close()
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    embedder = PatchEmbedder()
    index = open_index(tmp_path / "two" / ".cartq", embedder)
    report = ingest(index, tmp_path / "two" / "m")
    assert (report.unchanged, report.hashed, report.segments) == (3, 3, 0)
    report = ingest(index, tmp_path / "two" / "m")
    assert (report.unchanged, report.hashed) == (3, 0) and embedder.calls == []


def test_a_disk_that_numbers_its_files_anew_is_not_read_whole(
    tmp_path: Path, open_index: Run, ingest: Run, monkeypatch: Any
) -> None:
    monkeypatch.setattr(planning, "FALSE_ALARMS", 2)
    made = pictures(tmp_path / "m", 6)
    index = open_index(tmp_path / ".cartq")
    ingest(index, tmp_path / "m")

    def remount() -> None:
        for i, p in points(index).items():
            index.store.set_payload([(i, {"inode": p["inode"] + 1})])

    remount()
    report = ingest(index, tmp_path / "m")
    assert (report.unchanged, report.hashed, report.segments) == (6, 2, 0)
    remount()
    assert ingest(index, tmp_path / "m", verify=True).hashed == 6
    remount()
    media.write_image(made[5], media.scene(50))
    report = ingest(index, tmp_path / "m")
    assert (report.segments, report.unchanged) == (1, 5)


def test_touch_keeps_everything_but_the_time(tmp_path: Path, open_index: Run, ingest: Run) -> None:
    a, _b = pictures(tmp_path / "m", 2)
    shutil.copy(a, tmp_path / "m" / "0-same.png")  # a copy must not take its place
    embedder = PatchEmbedder()
    index = open_index(tmp_path / ".cartq", embedder)
    ingest(index, tmp_path / "m")
    before, embedder.calls = points(index), []
    os.utime(a, ns=(1, 10**18))
    report = ingest(index, tmp_path / "m")
    after = points(index)
    assert report.unchanged == 3 and report.segments == 0 and embedder.calls == []
    changed = {i for i in before if before[i] != after[i]}
    assert {after[i]["path"] for i in changed} == {"m/p000.png"}
    (one,) = changed
    changed = {key for key in after[one] if after[one][key] != before[one][key]}
    assert changed == {"mtime", "ctime"} and after[one]["mtime"] == 1e9
    assert ingest(index, tmp_path / "m").unchanged == 3


def test_rename_keeps_the_vector(tmp_path: Path, open_index: Run, ingest: Run) -> None:
    a, *_ = pictures(tmp_path / "m", 4)
    embedder = PatchEmbedder()
    index = open_index(tmp_path / ".cartq", embedder)
    ingest(index, tmp_path / "m")
    before, embedder.calls = points(index), []
    a.rename(tmp_path / "m" / "other.png")
    report = ingest(index, tmp_path / "m")
    assert (report.renamed, report.removed, embedder.calls) == (1, 0, [])
    paths = {p["path"]: p["vector"]["media"] for p in points(index).values()}
    old = {p["path"]: p["vector"]["media"] for p in before.values()}
    assert "m/p000.png" not in paths and paths["m/other.png"] == old["m/p000.png"]
    assert len(paths) == 4
    assert_named(index)


def test_rename_to_two_names_and_swap(
    tmp_path: Path, open_index: Run, ingest: Run, monkeypatch: Any
) -> None:
    monkeypatch.setattr(writer, "WRITE", 1)  # every file is written before the next is read
    a, b, c = pictures(tmp_path / "m", 3)
    index = open_index(tmp_path / ".cartq")
    ingest(index, tmp_path / "m")
    vector = {p["path"]: p["vector"]["media"] for p in points(index).values()}
    shutil.copy(a, tmp_path / "m" / "x.png")
    a.rename(tmp_path / "m" / "y.png")
    b.rename(tmp_path / "m" / "t")
    c.rename(b)
    (tmp_path / "m" / "t").rename(c)
    report = ingest(index, tmp_path / "m")
    now = {p["path"]: p["vector"]["media"] for p in points(index).values()}
    assert report.renamed == 1
    assert now == {
        "m/x.png": vector["m/p000.png"],
        "m/y.png": vector["m/p000.png"],
        "m/p001.png": vector["m/p002.png"],
        "m/p002.png": vector["m/p001.png"],
    }
    assert_named(index)


def test_edit_replaces_all_segments(tmp_path: Path, open_index: Run, ingest: Run) -> None:
    folder = tmp_path / "m"
    pictures(folder, 2)
    scenes = [media.moving(n, 24) for n in (60, 61, 62)]
    clip = media.write_video(folder / "clip.mp4", [*scenes[0], *scenes[1], *scenes[2]])
    index = open_index(tmp_path / ".cartq")
    ingest(index, folder)
    long = [p for p in points(index).values() if p["path"] == "m/clip.mp4"]
    assert len(long) >= 2
    media.write_video(clip, scenes[2])
    report = ingest(index, folder)
    short = [p for p in points(index).values() if p["path"] == "m/clip.mp4"]
    assert report.unchanged == 2 and 1 <= len(short) < len(long)
    assert {p["segments"] for p in short} == {len(short)}
    assert len({p["hash"] for p in short} & {p["hash"] for p in long}) == 0
    assert_named(index)


def test_prune(tmp_path: Path, open_index: Run, ingest: Run) -> None:
    one, *_ = pictures(tmp_path / "a" / "deep", 3)
    (other,) = pictures(tmp_path / "b", 1, first=9)
    index = open_index(tmp_path / ".cartq")
    ingest(index, tmp_path / "a", tmp_path / "b")
    one.unlink()
    other.unlink()
    assert ingest(index, tmp_path / "a").removed == 0
    assert len(points(index)) == 4
    # Only below the given folder; `..` in it changes nothing.
    report = ingest(index, tmp_path / "a" / "deep" / ".." / "deep", prune=True)
    assert report.removed == 1
    assert {p["path"] for p in points(index).values()} == {
        "a/deep/p001.png",
        "a/deep/p002.png",
        "b/p009.png",
    }
    assert_named(index)


def test_prune_to_nothing_and_grow_again(tmp_path: Path, open_index: Run, ingest: Run) -> None:
    for path in pictures(tmp_path / "m", 3):
        path.rename(path.with_name("x" + path.name))
    index = open_index(tmp_path / ".cartq")
    ingest(index, tmp_path / "m")
    shutil.rmtree(tmp_path / "m")
    (tmp_path / "m").mkdir()
    report = ingest(index, tmp_path / "m", prune=True, force=True)
    assert report.removed == 3 and report.identifiers["count"] == 0
    assert_named(index)
    pictures(tmp_path / "m", 2)
    assert ingest(index, tmp_path / "m").identifiers["count"] == 2
    assert_named(index)


def rels(index: Index) -> set[str]:
    return {p["path"] for p in points(index).values()}


def test_prune_keeps_what_a_disk_that_is_away_held(
    tmp_path: Path, open_index: Run, ingest: Run
) -> None:
    """A given folder that is empty, and a folder in it; a moved copy does not take the place."""
    pictures(tmp_path / "disk", 3)
    pictures(tmp_path / "m" / "nas", 6, first=10)
    pictures(tmp_path / "m" / "here", 9, first=20)
    index = open_index(tmp_path / ".cartq")
    ingest(index, tmp_path / "disk", tmp_path / "m")
    before = rels(index)
    (tmp_path / "away").mkdir()
    for name in ("disk", "m/nas"):
        (tmp_path / name).rename(tmp_path / "away" / Path(name).name)
        (tmp_path / name).mkdir()
    shutil.copytree(tmp_path / "away" / "disk", tmp_path / "m" / "copy")
    (tmp_path / "m" / "here" / "p020.png").unlink()
    report = ingest(index, tmp_path / "disk", tmp_path / "m", prune=True)
    assert (report.removed, report.renamed, report.failed) == (1, 0, [])
    assert [f.path for f in report.held_back] == ["disk", "m/nas"]
    assert "3 files were stored" in report.held_back[0].reason
    assert "--force" in report.held_back[0].reason
    copies = {f"m/copy/p{n:03}.png" for n in range(3)}
    assert rels(index) == (before - {"m/here/p020.png"}) | copies
    assert ingest(index, tmp_path / "disk", tmp_path / "m", prune=True, force=True).removed == 9


def test_prune_keeps_a_folder_of_which_most_is_gone(
    tmp_path: Path, open_index: Run, ingest: Run
) -> None:
    made = pictures(tmp_path / "m", 11)
    (tmp_path / "m" / "notes.md").write_text("kept")
    index = open_index(tmp_path / ".cartq")
    ingest(index, tmp_path / "m")
    for path in made[:5]:
        path.unlink()
    assert ingest(index, tmp_path / "m", prune=True).removed == 5, "fewer than half"
    for path in made[5:11]:
        path.unlink()
    pictures(tmp_path / "m", 1, first=30)
    options = IngestOptions(paths=[tmp_path / "m"], dry_run=True, prune=True)
    dry = Ingest(index, options).run()
    assert dry.would_remove == []
    report = ingest(index, tmp_path / "m", prune=True)
    assert (report.removed, report.segments) == (0, 1)
    assert dry.held_back == report.held_back
    assert "of 6 files were stored under it, 6 are gone" in report.held_back[0].reason
    assert len(rels(index)) == 7


def test_a_folder_that_is_renamed_whole_is_not_gone(
    tmp_path: Path, open_index: Run, ingest: Run
) -> None:
    pictures(tmp_path / "m" / "2020", 9)
    index = open_index(tmp_path / ".cartq")
    ingest(index, tmp_path / "m")
    (tmp_path / "m" / "2020").rename(tmp_path / "m" / "2021")
    report = ingest(index, tmp_path / "m" / "2021", prune=True)
    assert (report.renamed, report.held_back) == (9, [])
    assert rels(index) == {f"m/2021/p{n:03}.png" for n in range(9)}


def test_what_is_excluded_or_no_media_any_more_is_pruned(
    tmp_path: Path, open_index: Run, ingest: Run
) -> None:
    a, b, c, d = pictures(tmp_path / "m", 4)
    bare = a.rename(a.with_suffix(""))
    index = open_index(tmp_path / ".cartq")
    ingest(index, tmp_path / "m")
    bare.write_text("notes for a shopping tour")
    (tmp_path / "m" / "raw").mkdir()
    report = ingest(index, tmp_path / "m", exclude=["p001*"])
    assert [f.path for f in report.warnings] == ["m/p000"] and len(rels(index)) == 4
    c.write_bytes(b"damaged, but a picture by its name")
    report = ingest(index, tmp_path / "m", exclude=["p001*"], prune=True)
    assert report.removed == 2 and [f.path for f in report.failed] == ["m/p002.png"]
    assert rels(index) == {"m/p002.png", "m/p003.png"} and b.exists() and d.exists()
    assert_named(index)


def test_a_source_on_a_disk_that_is_away_is_no_rename(
    tmp_path: Path, open_index: Run, ingest: Run
) -> None:
    pictures(tmp_path / "disk" / "2020", 2)
    index = open_index(tmp_path / ".cartq")
    ingest(index, tmp_path / "disk")
    shutil.copytree(tmp_path / "disk" / "2020", tmp_path / "m")
    shutil.rmtree(tmp_path / "disk" / "2020")
    report = ingest(index, tmp_path / "m")
    assert report.renamed == 0
    assert rels(index) == {f"{f}/p{n:03}.png" for f in ("disk/2020", "m") for n in range(2)}


def test_prune_spares_what_cannot_be_read(tmp_path: Path, open_index: Run, ingest: Run) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    pictures(tmp_path / "m" / "deep", 2)
    index = open_index(tmp_path / ".cartq")
    ingest(index, tmp_path / "m")
    (tmp_path / "m" / "deep").chmod(0)
    try:
        report = ingest(index, tmp_path / "m", prune=True)
    finally:
        (tmp_path / "m" / "deep").chmod(0o755)
    assert report.removed == 0 and len(points(index)) == 2


def test_nested_roots_and_roots_above_the_index(
    tmp_path: Path, open_index: Run, ingest: Run
) -> None:
    pictures(tmp_path / "m" / "deep", 2)
    pictures(tmp_path / "m", 1, first=5)
    index = open_index(tmp_path / "work" / ".cartq")
    report = ingest(index, tmp_path / "m" / "deep", tmp_path / "m", tmp_path / "m" / "p005.png")
    assert report.files == 3
    assert {p["path"] for p in points(index).values()} == {
        "../m/deep/p000.png",
        "../m/deep/p001.png",
        "../m/p005.png",
    }
    (tmp_path / "m" / "p005.png").unlink()
    assert ingest(index, tmp_path / "m", prune=True).removed == 1


def test_caption_edit_leaves_the_media_vector(tmp_path: Path, open_index: Run, ingest: Run) -> None:
    pictures(tmp_path / "m", 2)
    (tmp_path / "m" / "metadata.jsonl").write_text(
        json.dumps({"file_name": "p000.png", "captions": ["a red dog", "a dog"], "split": "dev"})
    )
    embedder = PatchEmbedder()
    index = open_index(tmp_path / ".cartq", embedder)
    ingest(index, tmp_path / "m")
    before, embedder.calls = points(index), []
    (i,) = [i for i, p in before.items() if p["path"] == "m/p000.png"]
    assert [(c["text"], c["source"]) for c in before[i]["captions"]][:2] == [
        ("a red dog", "metadata"),
        ("a dog", "metadata"),
    ]
    assert before[i]["split"] == "dev"
    (tmp_path / "m" / "metadata.jsonl").unlink()
    (tmp_path / "m" / "p000.txt").write_text("a blue cat")
    report = ingest(index, tmp_path / "m")
    after = points(index)
    assert report.recaptioned == 1 and report.unchanged == 1 and embedder.calls == []
    assert after[i]["vector"]["media"] == before[i]["vector"]["media"]
    assert after[i]["vector"]["caption"] != before[i]["vector"]["caption"]
    assert after[i]["captions"][0] == {"text": "a blue cat", "source": "txt"}
    assert after[i]["cart"] == before[i]["cart"] and "split" not in after[i]
    assert ingest(index, tmp_path / "m").unchanged == 2


def test_caption_vector_is_the_mean_of_strong_captions(
    tmp_path: Path, open_index: Run, ingest: Run, text_encoder: Any
) -> None:
    (path,) = pictures(tmp_path / "m", 1)
    path.rename(tmp_path / "m" / "old_lighthouse.png")
    index = open_index(tmp_path / ".cartq")
    ingest(index, tmp_path / "m")
    (point,) = points(index).values()
    assert point["captions"] == [{"text": "old lighthouse", "source": "filename"}]
    (weak,) = text_encoder.embed(["old lighthouse"])
    assert np.dot(point["vector"]["caption"], weak) > 0.999
    (tmp_path / "m" / "old_lighthouse.txt").write_text("a white tower\nwaves at dusk\n")
    ingest(index, tmp_path / "m")
    (point,) = points(index).values()
    mean = text_encoder.embed([c["text"] for c in point["captions"][:-1]]).mean(axis=0)
    assert point["captions"][-1]["source"] == "filename"
    assert np.dot(point["vector"]["caption"], mean / np.linalg.norm(mean)) > 0.999


def test_captions_can_be_left_out_and_taken_up_again(
    tmp_path: Path, small_media: Path, open_index: Run, ingest: Run
) -> None:
    shutil.copytree(small_media, tmp_path / "m")
    index = open_index(tmp_path / ".cartq")
    files = ingest(index, tmp_path / "m").files
    before = points(index)
    texts = {c["text"]: c["source"] for p in before.values() for c in p["captions"]}
    assert texts["a beach"] == "container" and texts["a dog on a surfboard"] == "txt"
    assert ingest(index, tmp_path / "m", use_captions=False).recaptioned == files
    bare = points(index)
    assert all(p["captions"] == [] and "caption" not in p["vector"] for p in bare.values())
    assert ingest(index, tmp_path / "m", use_captions=False).unchanged == files
    assert ingest(index, tmp_path / "m").recaptioned == files
    after = points(index)
    assert {i: p["captions"] for i, p in after.items()} == {
        i: p["captions"] for i, p in before.items()
    }


def test_damaged_file_keeps_its_points(tmp_path: Path, open_index: Run, ingest: Run) -> None:
    a, _ = pictures(tmp_path / "m", 2)
    index = open_index(tmp_path / ".cartq")
    ingest(index, tmp_path / "m")
    before = points(index)
    a.write_bytes(b"not a picture")
    for _again in range(2):
        report = ingest(index, tmp_path / "m")
        assert [f.path for f in report.failed] == ["m/p000.png"]
        assert points(index) == before


def test_file_that_goes_during_the_run_is_a_failure(
    tmp_path: Path, open_index: Run, ingest: Run, monkeypatch: Any
) -> None:
    a, b = pictures(tmp_path / "m", 2)
    index = open_index(tmp_path / ".cartq")
    ingest(index, tmp_path / "m")
    shutil.copy(b, a)  # known content: it is hashed before it is decoded
    from cart_qdrant.index import plan as module

    def vanish(path: Path) -> str:
        path.unlink()
        return str(content_hash(path))

    content_hash = module.content_hash
    monkeypatch.setattr(module, "content_hash", vanish)
    os.utime(a, ns=(1, 1))
    report = ingest(index, tmp_path / "m")
    assert [f.path for f in report.failed] == ["m/p000.png"]


def test_dry_run_writes_nothing(tmp_path: Path, open_index: Run, ingest: Run) -> None:
    a, b, _ = pictures(tmp_path / "m", 3)
    index = open_index(tmp_path / ".cartq")
    ingest(index, tmp_path / "m")
    index.close()
    pictures(tmp_path / "m", 1, first=7)
    a.rename(tmp_path / "m" / "renamed.png")
    b.unlink()
    before = tree_of(tmp_path)
    index = open_index(tmp_path / ".cartq")
    stored = points(index)
    options = IngestOptions(paths=[tmp_path / "m"], dry_run=True, prune=True)
    report = Ingest(index, options).run()
    assert points(index) == stored
    index.close()
    assert report.would_ingest == ["m/p007.png"] and report.would_remove == ["m/p001.png"]
    assert (report.renamed, report.unchanged, report.segments) == (1, 1, 0)
    # The engine tidies its own files when it is opened; the points in them are the same.
    ours = {k: v for k, v in before.items() if not k.startswith(".cartq/store/")}
    after = tree_of(tmp_path)
    assert {k: v for k, v in after.items() if not k.startswith(".cartq/store/")} == ours


class _Flaky(PatchEmbedder):
    """Fails in the middle of a run, as a kill would, after some batches."""

    def __init__(self, batches: int) -> None:
        super().__init__()
        self.left = batches

    def embed_media(self, clips: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().embed_media(clips)


def test_stopped_run_goes_on(
    tmp_path: Path, small_media: Path, open_index: Run, ingest: Run, monkeypatch: Any
) -> None:
    monkeypatch.setattr(writer, "WRITE", 2)
    monkeypatch.setattr("cart_qdrant.index.pipeline.BATCH", 1)
    shutil.copytree(small_media, tmp_path / "m")
    index = open_index(
        tmp_path / ".cartq", _Flaky(8)
    )  # one segment a call: files are whole by then
    with pytest.raises(KeyboardInterrupt):
        ingest(index, tmp_path / "m")
    assert len(points(index)) > 0
    index.close()
    index = open_index(tmp_path / ".cartq")
    ingest(index, tmp_path / "m")
    # Without a stop elsewhere; the same relative paths, so the same ids.
    shutil.copytree(tmp_path / "m", tmp_path / "twin" / "m")
    twin = open_index(tmp_path / "twin" / ".cartq")
    ingest(twin, tmp_path / "twin" / "m")
    assert_same_content(index, twin)
    assert_named(index)


def assert_same_content(index: Index, twin: Index) -> None:
    """The same points but for what the order of the decoding threads decides: disambiguation
    tokens, cluster numbers, and the last digits of caption vectors. A text that is embedded alone
    differs from one in a pair by float32's rounding (3e-7 at most in 40 runs)."""
    found, wanted = _content(index), _content(twin)
    for i, point in wanted.items():
        one, other = (p["vector"].pop("caption", None) for p in (found[i], point))
        assert (one is None) == (other is None)
        assert one is None or np.abs(np.subtract(one, other)).max() < 1e-5
    assert found == wanted


def _content(index: Index) -> dict[str, Any]:
    other = ("cart", "ctime", "inode")  # the twin's files are others
    return {i: {k: v for k, v in p.items() if k not in other} for i, p in points(index).items()}


def test_a_file_that_is_being_written_is_left_to_the_next_run(
    tmp_path: Path, open_index: Run, ingest: Run, monkeypatch: Any
) -> None:
    """It just changed, and does so again while the run waits; or while it is read."""
    made = pictures(tmp_path / "m", 4)
    os.utime(made[3], (1, 1))
    whole = {path: path.read_bytes() for path in made}
    naps: list[float] = []

    def write_on(seconds: float) -> None:
        naps.append(seconds)
        made[0].write_bytes(whole[made[0]][:900])

    monkeypatch.setattr(ingestion, "SETTLE", 30.0)
    monkeypatch.setattr("cart_qdrant.index.ingest.time.sleep", write_on)
    content_hash = decoding.content_hash

    def read_while_written(path: Path) -> str:
        digest = content_hash(path)
        if path == made[1]:
            path.write_bytes(whole[path] + b"more")
        return digest

    monkeypatch.setattr(decoding, "content_hash", read_while_written)
    index = open_index(tmp_path / ".cartq")
    report = ingest(index, tmp_path / "m", prune=True)
    assert len(naps) == 1 and 25 < naps[0] <= 30
    assert [f.path for f in report.warnings] == ["m/p000.png", "m/p001.png"]
    assert all("being written" in f.reason for f in report.warnings)
    assert (report.segments, report.failed) == (2, [])
    monkeypatch.setattr(ingestion, "SETTLE", 0.0)
    monkeypatch.setattr(decoding, "content_hash", content_hash)
    for path, content in whole.items():
        path.write_bytes(content)
    assert ingest(index, tmp_path / "m").segments == 2
    os.utime(made[3], (9e9, 9e9))  # a clock that is ahead is no change
    monkeypatch.setattr(ingestion, "SETTLE", 30.0)
    assert ingest(index, tmp_path / "m").unchanged == 4 and len(naps) == 1


def test_links_and_downloads_are_remarks_and_are_not_pruned(
    tmp_path: Path, open_index: Run, ingest: Run
) -> None:
    pictures(tmp_path / "m", 3)
    pictures(tmp_path / "away", 2, first=10)
    (tmp_path / "m" / "link").symlink_to(tmp_path / "away")
    media.write_image(tmp_path / "m" / "new.png", media.scene(20)).rename(
        tmp_path / "m" / "new.png.part"
    )
    (tmp_path / "m" / "@eaDir").mkdir()
    index = open_index(tmp_path / ".cartq")
    report = ingest(index, tmp_path / "m")
    assert [f.path for f in report.warnings] == ["m/link", "m/new.png.part"]
    assert (report.files, report.ignored, report.failed) == (3, 1, [])
    assert ingest(index, tmp_path / "m", follow=True).segments == 2
    report = ingest(index, tmp_path / "m", prune=True)
    assert (report.removed, report.held_back, len(rels(index))) == (0, [], 5)
    (tmp_path / ".cartqignore").write_text("link\n")
    assert ingest(index, tmp_path / "m", follow=True, prune=True).removed == 2
    assert_named(index)


class _Picky(PatchEmbedder):
    """Fails at one file as a library may, and gives another one a vector of zeros."""

    def embed_media(self, clips: Any) -> Any:
        if any(clip.key == "m/p001.png" for clip in clips):
            raise RuntimeError("expected scalar type Float but found Double")
        rows = super().embed_media(clips)
        rows[[n for n, clip in enumerate(clips) if clip.key == "m/p002.png"]] = 0
        return rows


def test_one_file_that_cannot_be_embedded_does_not_end_the_run(
    tmp_path: Path, open_index: Run, ingest: Run
) -> None:
    pictures(tmp_path / "m", 12)
    index = open_index(tmp_path / ".cartq", _Picky())
    report = ingest(index, tmp_path / "m")
    failed = {f.path: f.reason for f in report.failed}
    assert failed.keys() == {"m/p001.png", "m/p002.png"} and report.segments == 10
    assert "RuntimeError: expected scalar" in failed["m/p001.png"]
    assert "zero" in failed["m/p002.png"]
    assert_named(index)
    index.set_embedder(PatchEmbedder())
    report = ingest(index, tmp_path / "m")
    assert (report.failed, report.segments, report.unchanged) == ([], 2, 10)


def test_killed_between_writing_and_removing(
    tmp_path: Path, open_index: Run, ingest: Run, monkeypatch: Any
) -> None:
    a, *_ = pictures(tmp_path / "m", 3)
    index = open_index(tmp_path / ".cartq")
    ingest(index, tmp_path / "m")
    a.rename(tmp_path / "m" / "other.png")
    with monkeypatch.context() as patch:
        patch.setattr(index.store, "delete", lambda ids: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            ingest(index, tmp_path / "m")
    assert len(points(index)) == 4
    ingest(index, tmp_path / "m")
    assert {p["path"] for p in points(index).values()} == {
        "m/other.png",
        "m/p001.png",
        "m/p002.png",
    }
    assert_named(index)


def test_growth_makes_identifiers_anew(tmp_path: Path, open_index: Run, ingest: Run) -> None:
    pictures(tmp_path / "m", 3)
    index = open_index(tmp_path / ".cartq")
    ingest(index, tmp_path / "m")
    assert index.manifest.identifiers and index.manifest.identifiers.field == "cart"
    pictures(tmp_path / "m", 9, first=3)
    report = ingest(index, tmp_path / "m")
    info = index.manifest.identifiers
    assert (info.field, info.count, report.identifiers["fitted_on"]) == ("cart_2", 12, 12)
    assert_named(index)
    # The old field serves searches that are still under way, until the next run that writes.
    assert index.manifest.stale_fields == ["cart"]
    assert sum("cart" in p for p in points(index).values()) == 3
    ingest(index, tmp_path / "m")
    assert index.manifest.stale_fields == []
    assert not any("cart" in p for p in points(index).values())
    assert_named(index)


def test_new_kind_of_media_gets_identifiers(tmp_path: Path, open_index: Run, ingest: Run) -> None:
    pictures(tmp_path / "m", 6)
    index = open_index(tmp_path / ".cartq")
    ingest(index, tmp_path / "m")
    media.write_audio(tmp_path / "m" / "bell.wav", media.tone(3.0))
    ingest(index, tmp_path / "m")
    codec = load_codec(index)
    assert codec is not None and set(codec.quantizers) == {"visual", "audio"}
    assert_named(index)


def test_renewal_is_seen_whole_or_not_at_all(
    tmp_path: Path, open_index: Run, ingest: Run, monkeypatch: Any
) -> None:
    pictures(tmp_path / "m", 8)
    index = open_index(tmp_path / ".cartq")
    ingest(index, tmp_path / "m")
    before = points(index)
    with monkeypatch.context() as patch:
        patch.setattr(index, "put", lambda manifest: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            refit(index)
    index.close()
    index = open_index(tmp_path / ".cartq")
    # New identifiers are written, but what is in force is whole and as it was.
    assert {i: p["cart"] for i, p in points(index).items()} == {
        i: p["cart"] for i, p in before.items()
    }
    assert_named(index)
    refit(index)
    assert_named(index)
    assert len(read_vectors(index).ids) == 8


def test_points_of_others_are_left_alone(tmp_path: Path, open_index: Run, ingest: Run) -> None:
    pictures(tmp_path / "m", 2)
    index = open_index(tmp_path / ".cartq")
    strange = "00000000-0000-4000-8000-000000000001"
    vector = {"media": [1.0] * index.manifest.embedder.dim}
    payload = {"path": "m/gone.png", "modality": "image", "note": "not ours"}
    index.store.upsert([models.PointStruct(id=strange, vector=vector, payload=payload)])
    report = ingest(index, tmp_path / "m", prune=True)
    assert (report.removed, report.identifiers["count"]) == (0, 2)
    refit(index)
    assert points(index)[strange].keys() == {*payload, "vector"}
    assert index.manifest.identifiers and index.manifest.identifiers.count == 2


def test_columns_named_like_identifiers_do_not_stay(
    tmp_path: Path, open_index: Run, ingest: Run
) -> None:
    pictures(tmp_path / "m", 1)
    table = tmp_path / "m" / "metadata.csv"
    table.write_text("file_name,caption,cartoon\np000.png,a drawing,yes\n")
    index = open_index(tmp_path / ".cartq")
    ingest(index, tmp_path / "m")
    (point,) = points(index).values()
    assert point["cartoon"] == "yes"
    table.write_text("file_name,caption\np000.png,a drawing\n")
    ingest(index, tmp_path / "m")
    (point,) = points(index).values()
    assert "cartoon" not in point and "cart" in point


def test_sidecars_and_subtitles_reach_the_payload(
    tmp_path: Path, open_index: Run, ingest: Run
) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    frames = media.moving(60, 40) + media.moving(61, 40)
    media.write_video(folder / "harbour_at_dawn.mp4", frames)
    (folder / "harbour_at_dawn.srt").write_text("1\n00:00:00,000 --> 00:00:02,000\nfirst words\n")
    (tmp_path / "table.csv").write_text(
        "file_name,caption\nm/harbour_at_dawn.mp4,an explicit text\n"
    )
    index = open_index(tmp_path / ".cartq")
    ingest(index, folder, captions=tmp_path / "table.csv")
    found = sorted(points(index).values(), key=lambda p: p["start"])
    assert len(found) >= 2
    sources = [{c["source"] for c in p["captions"]} for p in found]
    assert "subtitle" in sources[0] and "subtitle" not in sources[-1]
    assert all("explicit" in s and "filename" in s for s in sources)


def test_index_without_manifest_is_refused(tmp_path: Path, open_index: Run, ingest: Run) -> None:
    pictures(tmp_path / "m", 1)
    index = open_index(tmp_path / ".cartq")
    index.close()
    (tmp_path / ".cartq" / "manifest.json").unlink()
    index = open_index(tmp_path / ".cartq")  # no point yet: a run that was killed early
    ingest(index, tmp_path / "m")
    index.close()
    (tmp_path / ".cartq" / "manifest.json").unlink()
    with pytest.raises(MismatchError, match="1 points"):
        open_index(tmp_path / ".cartq")


def test_lite_index_of_real_media(small_index: Path, small_media: Path) -> None:
    with Index.open(small_index) as index:
        assert index.manifest.embedder.statistics is not None
        kinds = {p["modality"] for p in points(index).values()}
        assert kinds == {"image", "video", "audio"}
        assert_named(index)
        health = check(index)
        assert health is not None and health.items == index.manifest.identifiers.count  # type: ignore[union-attr]
        assert not (small_index / "work" / "features").exists()


def test_columns_of_a_caption_table_are_indexed(
    tmp_path: Path, open_index: Run, ingest: Run
) -> None:
    pictures(tmp_path / "m", 3)
    row = {
        "place": "sea", "note": "x" * 500, "year": 2020, "odd key": "a", "price": 1.5,
        "sharp": True, "taken": "2020-06-01T10:00:00", "day": "2020-06-31",
        "tags": ["a", "b"], "sizes": [1, 2.5],
        "nothing": None, "none": [], "nested": {"a": 1},
    }  # fmt: skip
    rows = [{"file_name": f"p{n:03}.png", **row} for n in range(3)]
    rows[1]["year"] = 2020.5
    (tmp_path / "m" / "metadata.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    index = open_index(tmp_path / ".cartq")
    ingest(index, tmp_path / "m")
    assert columns(index) == {
        "place": "keyword", "year": "float", "price": "float", "taken": "datetime",
        "day": "keyword", "tags": "keyword", "sizes": "float",
    }  # fmt: skip
    for expression, count in (
        ("year>=2020", 3), ("year>2020", 1), ("year=2020", 2), ("sizes>=2", 3), ("price<1", 0),
        ("taken>=2020-06-01", 3), ("taken>2020-06-01", 0), ("taken=2020-06-01", 3),
        ("taken=2020-06-01T10:00:00", 3), ("day=2020-06-31", 3), ("tags=b", 3), ("sharp=true", 3),
    ):  # fmt: skip
        assert index.store.count(parse_filter([expression])) == count, expression


def columns(index: Index) -> dict[str, str]:
    """Columns of caption tables with an index, and its kind."""
    indexes = index.store.info().indexes
    ours = ("modality", "path", "hash", "captions[].text")
    return {f: k for f, k in indexes.items() if f not in ours and not f.startswith("cart")}


def test_a_collection_has_so_many_indexed_columns_however_many_runs_fill_it(
    tmp_path: Path, open_index: Run, ingest: Run
) -> None:
    """Each index makes opening the embedded store slower."""
    index = open_index(tmp_path / ".cartq")
    for run in range(3):
        folder = tmp_path / "m" / str(run)
        pictures(folder, 1, first=run)
        row = {"file_name": f"p{run:03}.png", **{f"run{run}_{n}": n for n in range(7)}}
        (folder / "metadata.jsonl").write_text(json.dumps(row) + "\n")
        ingest(index, tmp_path / "m")
        index.close()
        index = open_index(tmp_path / ".cartq")
        assert len(columns(index)) == min(7 * (run + 1), writer.COLUMNS)


class _Speaking(_Fitted):
    """An embedder whose vectors of texts depend on its statistics."""

    def text_anchors(self) -> TextAnchors:
        return TextAnchors(["a scene"], np.ones((1, 4), np.float32), {"visual": self.mean[None]})


def test_texts_are_kept_with_the_statistics_that_they_hold_for(
    tmp_path: Path, open_index: Run, ingest: Run
) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "bad.png").write_bytes(b"no picture")
    embedder = _Speaking()
    index = open_index(tmp_path / ".cartq", embedder)
    ingest(index, tmp_path / "m")
    assert index.manifest.embedder.statistics is None
    assert index.text_anchors() is None, "statistics to come would not fit it"
    pictures(tmp_path / "m", 3)
    ingest(index, tmp_path / "m")
    kept = index.text_anchors()
    assert kept is not None and np.array_equal(kept.values["visual"][0], embedder.mean)


def test_a_file_without_texts_takes_none_away(tmp_path: Path, open_index: Run, ingest: Run) -> None:
    class Lexical(PatchEmbedder):
        texts = ("a scene",)

        def text_anchors(self) -> TextAnchors:
            n = len(self.texts)
            return TextAnchors(
                self.texts, np.ones((n, 4), np.float32), {"visual": np.ones((n, 48))}
            )

    embedder = Lexical()
    index = open_index(tmp_path / ".cartq", embedder)
    pictures(tmp_path / "m", 1)
    ingest(index, tmp_path / "m")
    embedder.texts = ()
    pictures(tmp_path / "m", 2)
    ingest(index, tmp_path / "m")
    kept = index.text_anchors()
    assert kept is not None and list(kept.texts) == ["a scene"]
