"""Laws of the scan: what is listed, what is skipped, what is reported."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cart_qdrant.errors import MediaError, UsageError
from cart_qdrant.media.scan import content_hash, relative_name, scan


def _touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def _rels(root: Path, *, exclude: tuple[str, ...] = ()) -> list[str]:
    return [entry.rel for entry in scan([root], base=root, exclude=exclude).entries]


def test_lists_files_recursively_in_order_and_skips_hidden(tmp_path: Path) -> None:
    _touch(tmp_path, "b.mp4", "a/z.jpg", "a/.hidden.jpg", "._b.mp4", ".DS_Store", ".cartq/store/x")
    assert _rels(tmp_path) == ["a/z.jpg", "b.mp4"]


def test_entry_carries_size_mtime_and_absolute_path(tmp_path: Path) -> None:
    _touch(tmp_path, "a.jpg")
    os.utime(tmp_path / "a.jpg", ns=(1, 1_700_000_000_123_456_789))
    (entry,) = scan([tmp_path], base=tmp_path).entries
    assert entry.path == tmp_path / "a.jpg" and entry.path.is_absolute()
    assert (entry.size, entry.mtime_ns) == (5, 1_700_000_000_123_456_789)


def test_base_elsewhere_gives_dotted_names(tmp_path: Path) -> None:
    _touch(tmp_path, "media/a.jpg")
    (tmp_path / "index").mkdir()
    entries = scan([tmp_path / "media"], base=tmp_path / "index").entries
    assert [entry.rel for entry in entries] == ["../media/a.jpg"]


@pytest.mark.parametrize("base", [".", "a", "a/b", "a/b/c", "a-b", "elsewhere/deep"])
def test_names_are_relative_to_any_base(
    tmp_path: Path, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _touch(tmp_path, "a/1.jpg", "a/b/2.jpg", "a/b/c/3.jpg", "a-b/4.jpg", "5.jpg")
    found = scan([tmp_path], base=tmp_path / base)
    assert len(found.entries) == 5
    assert all(e.rel == relative_name(e.path, tmp_path / base) for e in found.entries)

    def refuse(path: Path) -> object:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    (failure,) = scan([tmp_path], base=tmp_path / base).failures
    assert failure.path == relative_name(tmp_path, tmp_path / base)


def test_same_file_given_twice_appears_once(tmp_path: Path) -> None:
    _touch(tmp_path, "m/a.jpg")
    found = scan([tmp_path, tmp_path / "m", tmp_path / "m" / "a.jpg"], base=tmp_path)
    assert [entry.rel for entry in found.entries] == ["m/a.jpg"]


def test_a_hidden_name_that_is_given_is_used(tmp_path: Path) -> None:
    _touch(tmp_path, ".secret/a.jpg")
    assert [e.rel for e in scan([tmp_path / ".secret"], base=tmp_path).entries] == [".secret/a.jpg"]


@pytest.mark.parametrize(
    ("pattern", "left"),
    [
        ("*.old", ["keep/a.jpg", "raw/b.jpg"]),
        ("raw", ["keep/a.jpg", "keep/c.old"]),
        ("raw/", ["keep/a.jpg", "keep/c.old"]),
        ("keep/*", ["raw/b.jpg"]),
        ("media/raw/*", ["keep/a.jpg", "keep/c.old"]),
    ],
)
def test_exclude_matches_name_and_both_paths(tmp_path: Path, pattern: str, left: list[str]) -> None:
    _touch(tmp_path, "media/keep/a.jpg", "media/raw/b.jpg", "media/keep/c.old")
    found = scan([tmp_path / "media"], base=tmp_path, exclude=[pattern])
    assert [entry.rel for entry in found.entries] == [f"media/{name}" for name in left]


def test_missing_path_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere"):
        scan([tmp_path / "nowhere"], base=tmp_path)


def test_links_to_folders_are_followed_and_a_loop_is_reported(tmp_path: Path) -> None:
    _touch(tmp_path, "a/x.jpg", "elsewhere/y.jpg")
    (tmp_path / "a" / "up").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "side").symlink_to(tmp_path / "elsewhere")
    found = scan([tmp_path / "a"], base=tmp_path, follow=True)
    assert [entry.rel for entry in found.entries] == ["a/side/y.jpg", "a/x.jpg"]
    assert [(f.path, "leads back" in f.reason) for f in found.failures] == [("a/up", True)]


def test_links_out_of_the_given_folders_are_named_and_not_followed(tmp_path: Path) -> None:
    _touch(tmp_path, "a/x.jpg", "b/y.jpg", "secret/z.jpg", "a-b/w.jpg")
    (tmp_path / "a" / "folder").symlink_to(tmp_path / "secret")
    (tmp_path / "a" / "file.jpg").symlink_to(tmp_path / "secret" / "z.jpg")
    (tmp_path / "a" / "sibling").symlink_to(tmp_path / "a-b")
    (tmp_path / "a" / "inside.jpg").symlink_to("x.jpg")
    (tmp_path / "a" / "other").symlink_to(tmp_path / "b")
    (tmp_path / "a" / "hop").symlink_to(tmp_path / "a" / "folder")
    (tmp_path / "given").symlink_to(tmp_path / "a")
    found = scan([tmp_path / "given", tmp_path / "b"], base=tmp_path)
    assert [e.rel for e in found.entries] == ["b/y.jpg", "given/inside.jpg", "given/x.jpg"]
    names = [f.path for f in found.skipped]
    assert names == ["given/file.jpg", "given/folder", "given/hop", "given/sibling"]
    assert all("--follow" in f.reason and str(tmp_path) in f.reason for f in found.skipped)
    assert found.failures == ()
    followed = scan([tmp_path / "given", tmp_path / "b"], base=tmp_path, follow=True)
    assert followed.skipped == ()
    assert {"given/folder/z.jpg", "given/file.jpg"} <= {e.rel for e in followed.entries}


@pytest.mark.parametrize(
    "name",
    [
        *("@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg", "#recycle/a.jpg", "@Recycle/a.jpg"),
        *(".@__thumb/a.jpg", "$RECYCLE.BIN/S-1/$R1.jpg", "System Volume Information/a.jpg"),
        *("Trip Previews.lrdata/0/1/a.lrprev", "Smart Previews.lrdata/a.dng", "lost+found/a.jpg"),
        *("My.photoslibrary/resources/derivatives/a.jpeg", "My.photoslibrary/private/a.jpg"),
        *("FOUND.003/a.jpg", "Thumbs.db", "clip.THM", "GOPR1.LRV", "M4ROOT/THMBNL/C1.JPG"),
        *("AlbumArt_{0-1}_Large.jpg", "appdata_oc1x2/preview/a.jpg", "film.trickplay/0.jpg"),
        *("__MACOSX/a.jpg", "cache/a.jpg"),
    ],
)
def test_thumbnails_and_bins_of_systems_are_left_out(tmp_path: Path, name: str) -> None:
    _touch(tmp_path, name, "a.jpg", "My.photoslibrary/originals/0/b.heic", "thumbs/c.jpg")
    tag = tmp_path / "cache" / "CACHEDIR.TAG"
    tag.parent.mkdir(exist_ok=True)
    tag.write_text("Signature: 8a477f597d28d172789f06886806bc55\n# made by a program")
    kept = ["My.photoslibrary/originals/0/b.heic", "a.jpg", "thumbs/c.jpg"]
    found = scan([tmp_path], base=tmp_path)
    assert [entry.rel for entry in found.entries] == kept and found.skipped == ()
    assert found.ignored >= (not name.startswith("."))
    # As a shell gives them for `*`.
    every = [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
    found = scan([p for p in every if p.name != "cache"], base=tmp_path)
    assert [entry.rel for entry in found.entries] == kept


def test_an_ignore_file_has_the_syntax_of_gitignore(tmp_path: Path) -> None:
    names = (
        "a.jpg",
        "b.png",
        "raw/c.jpg",
        "deep/raw/d.jpg",
        "deep/e.png",
        "deep/keep.png",
        "raw.jpg",
    )
    _touch(tmp_path, *names, "@eaDir/f.jpg", "deep/x/g.jpg", "cafe\u0301/h.jpg")
    lines = ["# notes", "*.png", "!keep.png", "raw/", "/a.jpg", "!@eaDir/", "café/"]
    (tmp_path / ".cartqignore").write_text("\n".join(lines))
    (tmp_path / "deep" / ".cartqignore").write_text("!e.png\n/x/*\n")
    kept = ["@eaDir/f.jpg", "deep/e.png", "deep/keep.png", "raw.jpg"]
    found = scan([tmp_path], base=tmp_path)
    assert [entry.rel for entry in found.entries] == kept
    assert found.ignored == 6
    # The same whichever folder is given.
    found = scan([tmp_path / "deep", tmp_path / "raw"], base=tmp_path)
    assert [entry.rel for entry in found.entries] == ["deep/e.png", "deep/keep.png"]
    assert [f.path for f in found.skipped] == ["raw"] and ".cartqignore" in found.skipped[0].reason


def test_a_line_that_is_no_pattern_is_named_and_the_others_hold(tmp_path: Path) -> None:
    _touch(tmp_path, "a.jpg", "b.png")
    (tmp_path / ".cartqignore").write_bytes(b"!\n*.png\n\xff\xfe\n")
    found = scan([tmp_path], base=tmp_path)
    assert [entry.rel for entry in found.entries] == ["a.jpg"]
    assert [(f.path, f.reason[:7]) for f in found.failures] == [(".cartqignore", "line 1:")]


def test_downloads_in_progress_are_named_and_taken_when_finished(tmp_path: Path) -> None:
    parts = [
        "a.jpg.part",
        "b.mp4.crdownload",
        "~syncthing~c.jpg.tmp",
        "d.mkv.!qB",
        "e.png.filepart",
    ]
    beside = ["f.mp4", "f.mp4.aria2", "g.mp4", "g.mp4.part"]  # the file, and its control file
    silent = ["notes.pdf.part", "x.tmp", ".h.jpg.Xb2f9Q", ".syncthing.i.jpg.tmp"]
    _touch(tmp_path, *parts, *beside, *silent, "j.mp4.download/j.mp4", "part.jpg", "apart/k.jpg")
    found = scan([tmp_path], base=tmp_path)
    assert [entry.rel for entry in found.entries] == ["apart/k.jpg", "part.jpg"]
    assert {f.path for f in found.skipped} == {*parts, *beside, "j.mp4.download"}
    assert all("in progress" in f.reason for f in found.skipped)
    every = [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
    assert scan(every, base=tmp_path) == found
    (tmp_path / "f.mp4.aria2").unlink()
    (tmp_path / "a.jpg.part").rename(tmp_path / "a.jpg")
    found = scan([tmp_path], base=tmp_path)
    assert [e.rel for e in found.entries] == ["a.jpg", "apart/k.jpg", "f.mp4", "part.jpg"]


def test_an_excluded_name_may_be_composed_or_decomposed(tmp_path: Path) -> None:
    _touch(tmp_path, "cafe\u0301.jpg", "b.jpg")
    assert _rels(tmp_path, exclude=("caf\u00e9*",)) == ["b.jpg"]


def test_mutual_loop_ends(tmp_path: Path) -> None:
    _touch(tmp_path, "a/x.jpg", "b/y.jpg")
    (tmp_path / "a" / "b").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "a").symlink_to(tmp_path / "a")
    found = scan([tmp_path], base=tmp_path)
    assert [entry.rel for entry in found.entries] == ["a/x.jpg", "b/y.jpg"]


def test_many_links_to_each_other_are_walked_in_linear_time(tmp_path: Path) -> None:
    names = [f"d{n:02}" for n in range(30)]
    for name in names:
        _touch(tmp_path, f"{name}/x.jpg")
        for other in names:
            (tmp_path / name / other).symlink_to(tmp_path / other)
    assert _rels(tmp_path) == [f"{name}/x.jpg" for name in names]


def test_folder_goes_by_its_own_name_not_by_a_link(tmp_path: Path) -> None:
    _touch(tmp_path, "real/x.jpg")
    (tmp_path / "alias").symlink_to(tmp_path / "real")
    assert _rels(tmp_path) == ["real/x.jpg"]


def test_link_to_itself_and_dangling_link_are_reported(tmp_path: Path) -> None:
    (tmp_path / "self.jpg").symlink_to(tmp_path / "self.jpg")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    reasons = {f.path: f.reason for f in scan([tmp_path], base=tmp_path).failures}
    assert "circle" in reasons["self.jpg"]
    assert "leads to nothing" in reasons["gone.jpg"]


def test_unreadable_file_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _touch(tmp_path, "a.jpg", "b.jpg")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "a.jpg")
    found = scan([tmp_path], base=tmp_path)
    assert [entry.rel for entry in found.entries] == ["b.jpg"]
    assert [(f.path, "permission" in f.reason) for f in found.failures] == [("a.jpg", True)]


def test_unreadable_folder_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _touch(tmp_path, "locked/a.jpg", "b.jpg")
    scandir = os.scandir

    def guarded(path: Path) -> object:
        if Path(path).name == "locked":
            raise PermissionError(errno.EACCES, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    found = scan([tmp_path], base=tmp_path)
    assert [entry.rel for entry in found.entries] == ["b.jpg"]
    assert [(f.path, "permission" in f.reason) for f in found.failures] == [("locked", True)]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_real_permissions(tmp_path: Path) -> None:
    _touch(tmp_path, "a.jpg", "locked/b.jpg")
    (tmp_path / "a.jpg").chmod(0)
    (tmp_path / "locked").chmod(0)
    try:
        found = scan([tmp_path], base=tmp_path)
    finally:
        (tmp_path / "locked").chmod(0o700)
    assert found.entries == ()
    assert [f.path for f in found.failures] == ["a.jpg", "locked"]


def test_name_that_is_not_utf8_is_reported_printably(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/caf\xe9.jpg"
    Path(os.fsdecode(raw)).write_bytes(b"x")
    found = scan([tmp_path], base=tmp_path)
    assert found.entries == ()
    (failure,) = found.failures
    assert failure.path == "caf\\xe9.jpg" and "not UTF-8" in failure.reason
    failure.path.encode()


def test_name_with_newline_is_fine(tmp_path: Path) -> None:
    _touch(tmp_path, "two\nlines.jpg")
    assert _rels(tmp_path) == ["two\nlines.jpg"]


def test_pipes_are_not_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    assert scan([tmp_path], base=tmp_path).entries == ()


_NAME = st.text("ab.é", min_size=1, max_size=4).filter(lambda name: name.strip("."))


@settings(max_examples=30, deadline=None)
@given(names=st.sets(st.tuples(_NAME, _NAME), max_size=8))
def test_every_visible_file_is_listed_once(
    tmp_path_factory: pytest.TempPathFactory, names: set[tuple[str, str]]
) -> None:
    root = tmp_path_factory.mktemp("scan")
    for folder, name in names:
        (root / f"d{folder}").mkdir(exist_ok=True)
        (root / f"d{folder}" / name).touch()
    expected = sorted(f"d{folder}/{name}" for folder, name in names if not name.startswith("."))
    assert _rels(root) == expected


@settings(max_examples=25, deadline=None)
@given(a=st.binary(max_size=300), b=st.binary(max_size=300))
def test_hash_tells_contents_apart(
    tmp_path_factory: pytest.TempPathFactory, a: bytes, b: bytes
) -> None:
    root = tmp_path_factory.mktemp("hash")
    (root / "a").write_bytes(a)
    (root / "b").write_bytes(b)
    one, two = content_hash(root / "a"), content_hash(root / "b")
    assert len(one) == 32 and (one == two) == (a == b)


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1, 5 << 19])
def test_hash_is_that_of_the_whole_content(tmp_path: Path, size: int) -> None:
    content = (bytes(range(251)) * (size // 251 + 1))[:size]
    (tmp_path / "a").write_bytes(content)
    assert content_hash(tmp_path / "a") == hashlib.blake2b(content, digest_size=16).hexdigest()


def test_hash_of_a_missing_file_is_a_media_error(tmp_path: Path) -> None:
    with pytest.raises(MediaError):
        content_hash(tmp_path / "gone")
