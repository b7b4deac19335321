"""What counts as gone: only what is surely not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cart_qdrant.index.prune import Folders, is_gone


def test_a_file_in_a_folder_that_cannot_be_read_is_not_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shut = tmp_path / "shut"
    shut.mkdir()
    (tmp_path / "x").touch()
    lstat = Path.lstat

    def refuse(path: Path) -> Any:
        if shut in path.parents:
            raise PermissionError(13, "Permission denied")
        return lstat(path)

    monkeypatch.setattr(Path, "lstat", refuse)
    assert not is_gone(shut / "a.png")
    assert is_gone(tmp_path / "a.png") and is_gone(tmp_path / "x" / "a.png")
    folders = Folders(tmp_path)
    assert folders.nearest("shut/deep/a.png") == shut / "deep"
    assert not folders.is_moved("shut/a.png")
    assert folders.is_moved("a.png") and folders.is_moved("gone/deep/a.png")


def test_a_file_of_an_empty_folder_may_be_away(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "other.txt").touch()
    folders = Folders(tmp_path)
    assert folders.is_away("disk/2020/a.png") and not folders.is_away("used/2020/a.png")
    assert not folders.is_moved("disk/2020/a.png") and folders.is_moved("used/2020/a.png")
