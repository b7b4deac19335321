"""Paths of items that others wrote lead to no file outside of the index's folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from cart_qdrant.errors import MediaError
from cart_qdrant.media.folder import MEDIA_VARIABLE, MediaFolder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder with one file, and links; its neighbour holds a secret."""
    folder = tmp_path / "base"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a.png").write_bytes(b"a")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "s.png").write_bytes(b"secret")
    (folder / "inside.png").symlink_to(folder / "sub" / "a.png")
    (folder / "out.png").symlink_to(tmp_path / "secret" / "s.png")
    (folder / "out").symlink_to(tmp_path / "secret")
    (folder / "circle").symlink_to(folder / "circle")
    return folder


@pytest.mark.parametrize(
    "name", ["sub/a.png", "inside.png", "sub/../sub/a.png", "./sub//a.png", "{base}/sub/a.png"]
)
def test_a_file_inside_is_found(base: Path, name: str) -> None:
    wanted = base.resolve() / "sub" / "a.png"
    assert MediaFolder(base).file(name.format(base=base)) == wanted


@pytest.mark.parametrize("name", ["nothing.png", "http://host/a.png", "a:b.png", "concat:a|b"])
def test_a_name_that_is_no_file_stays_inside(base: Path, name: str) -> None:
    assert MediaFolder(base).file(name).is_relative_to(base.resolve())


@pytest.mark.parametrize(
    "name",
    [
        "../secret/s.png", "sub/../../secret/s.png", "{secret}/s.png", "out.png", "out/s.png",
        "sub/../out/s.png", "/etc/passwd", "//server/share/s.png", "..", "/", "/dev/zero",
        "/proc/self/environ", "a\0b.png", "../secret/s.png\0.png", "C:\\Users\\s.png", "c:/s.png",
        "\\\\server\\share\\s.png", "circle/s.png", "x" * 5000, "a/" * 5000, "\ud800.png",
        None, 3, ["sub/a.png"],
    ],
)  # fmt: skip
def test_nothing_outside_is_opened(base: Path, name: Any) -> None:
    given = name.format(secret=base.parent / "secret") if isinstance(name, str) else name
    with pytest.raises(MediaError) as refused:
        MediaFolder(base).file(given)
    assert str(base.parent) not in str(refused.value)  # an assistant is told of it


def test_what_the_user_names_may_be_opened(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = (base.parent / "secret").resolve()
    assert MediaFolder(base, (secret,)).file("out/s.png") == secret / "s.png"
    assert MediaFolder(base, (secret / "s.png",)).file("out.png") == secret / "s.png"
    monkeypatch.setenv(MEDIA_VARIABLE, os.pathsep.join(["/nowhere", str(secret)]))
    assert MediaFolder(base).file("../secret/s.png") == secret / "s.png"
    with pytest.raises(MediaError, match="leads out"):
        MediaFolder(base).file("/etc/passwd")
