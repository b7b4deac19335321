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
from cart_qdrant.media.scan import content_hash, scan


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
        ("*.tmp", ["keep/a.jpg", "raw/b.jpg"]),
        ("raw", ["keep/a.jpg", "keep/c.tmp"]),
        ("raw/", ["keep/a.jpg", "keep/c.tmp"]),
        ("keep/*", ["raw/b.jpg"]),
        ("media/raw/*", ["keep/a.jpg", "keep/c.tmp"]),
    ],
)
def test_exclude_matches_name_and_both_paths(tmp_path: Path, pattern: str, left: list[str]) -> None:
    _touch(tmp_path, "media/keep/a.jpg", "media/raw/b.jpg", "media/keep/c.tmp")
    found = scan([tmp_path / "media"], base=tmp_path, exclude=[pattern])
    assert [entry.rel for entry in found.entries] == [f"media/{name}" for name in left]


def test_missing_path_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere"):
        scan([tmp_path / "nowhere"], base=tmp_path)


def test_links_to_folders_are_followed_and_a_loop_is_reported(tmp_path: Path) -> None:
    _touch(tmp_path, "a/x.jpg", "elsewhere/y.jpg")
    (tmp_path / "a" / "up").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "side").symlink_to(tmp_path / "elsewhere")
    found = scan([tmp_path / "a"], base=tmp_path)
    assert [entry.rel for entry in found.entries] == ["a/side/y.jpg", "a/x.jpg"]
    assert [(f.path, "leads back" in f.reason) for f in found.failures] == [("a/up", True)]


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
