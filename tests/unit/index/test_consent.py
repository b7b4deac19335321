"""What a user ingested from outside of an index's folder may be opened; no index says so itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cart_qdrant.errors import MediaError
from cart_qdrant.index.consent import media_folder
from cart_qdrant.index.folder import IndexFolder
from cart_qdrant.index.index import Index
from tests import media_factory as media
from tests.conftest import copy_of


def write(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    media.write_image(path, media.scene(seed))
    return path


@pytest.fixture
def drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another drive, beside the folder of the index; a configuration of its own."""
    monkeypatch.setenv("CARTQ_CONFIG", str(tmp_path / "config"))
    write(tmp_path / "drive" / "2020" / "a.png", 0)
    write(tmp_path / "drive" / "b.png", 1)
    write(tmp_path / "drive" / "single.png", 2)
    write(tmp_path / "private" / "secret.png", 3)
    return tmp_path / "drive"


def opened(index: Index) -> list[str]:
    """The stored paths whose files may be opened."""
    found = media_folder(index.folder, index.manifest.id)
    paths = {str((record.payload or {})["path"]) for record in index.store.scroll()}
    return sorted(path for path in paths if found.file(path).is_file())


def test_files_that_this_user_ingested_from_elsewhere_are_opened(
    drive: Path, tmp_path: Path, open_index: Callable[..., Index], ingest: Callable[..., Any]
) -> None:
    home = tmp_path / "home"
    write(home / "own.png", 4)
    (home / "linked").symlink_to(drive / "2020")
    (home / "one.png").symlink_to(drive / "b.png")
    index = open_index(home / ".cartq")
    ingest(index, home, follow=True)
    linked = opened(index)
    assert "linked/a.png" in linked and "one.png" in linked and "own.png" in linked
    found = media_folder(index.folder, index.manifest.id)
    with pytest.raises(MediaError, match="leads out"):
        found.file("../drive/single.png")  # a link to one file is not its whole folder
    ingest(index, drive / "single.png")
    assert "../drive/single.png" in opened(index)
    ingest(index, drive)
    assert {"../drive/2020/a.png", "../drive/b.png"} <= set(opened(index))
    for path in ("../private/secret.png", str(tmp_path / "private" / "secret.png")):
        with pytest.raises(MediaError, match="leads out"):
            media_folder(index.folder, index.manifest.id).file(path)


def test_an_index_does_not_bring_its_consent_along(
    drive: Path, tmp_path: Path, open_index: Callable[..., Index], ingest: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    index = open_index(tmp_path / "home" / ".cartq")
    ingest(index, drive)
    index.close()
    name = "../drive/b.png"
    copy = IndexFolder(copy_of(index.folder.root, tmp_path / "copy" / ".cartq"))
    for folder, id in (
        (copy, index.manifest.id),  # at another place
        (index.folder, "another"),  # another index at the same place
    ):
        with pytest.raises(MediaError, match="leads out"):
            media_folder(folder, id).file(name)
    assert media_folder(index.folder, index.manifest.id).file(name).is_file()
    monkeypatch.setenv("CARTQ_CONFIG", str(tmp_path / "another user"))
    with pytest.raises(MediaError, match="leads out"):
        media_folder(index.folder, index.manifest.id).file(name)


def test_an_index_whose_files_lie_beside_it_needs_no_record(
    drive: Path, tmp_path: Path, open_index: Callable[..., Index], ingest: Callable[..., Any]
) -> None:
    index = open_index(drive / ".cartq")
    ingest(index, drive)
    assert opened(index) == ["2020/a.png", "b.png", "single.png"]
    assert not (tmp_path / "config").exists()


def test_a_configuration_that_cannot_be_written_stops_no_run(
    drive: Path, tmp_path: Path, open_index: Callable[..., Index], ingest: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("CARTQ_CONFIG", str(drive / "b.png" / "config"))  # in a file
    index = open_index(tmp_path / "home" / ".cartq")
    assert not ingest(index, drive).failed
