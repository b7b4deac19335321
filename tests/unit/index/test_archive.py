"""A backup of others brings data, and nothing else: no files elsewhere, no bomb, no say."""

from __future__ import annotations

import gzip
import io
import json
import os
import resource
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cart_qdrant.errors import CartError, MismatchError, StoreError, UsageError
from cart_qdrant.index import archive as archives
from cart_qdrant.index.backup import backup, restore
from cart_qdrant.index.index import Index
from cart_qdrant.index.ingest import Ingest
from cart_qdrant.index.manifest import sealed
from cart_qdrant.index.report import IngestOptions
from cart_qdrant.storage.store_info import StoreInfo
from cart_qdrant_cli.main import main
from tests import media_factory as media
from tests.conftest import PatchEmbedder

Member = tuple[tarfile.TarInfo, bytes]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, text_encoder: Any) -> Path:
    """A backup of an index of two pictures."""
    home = tmp_path_factory.mktemp("original")
    for n in range(2):
        media.write_image(home / f"{n}.png", media.scene(n))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Index, "text_encoder", lambda self: text_encoder)
        with Index.create(home / ".cartq", PatchEmbedder()) as index, index.folder.lock():
            Ingest(index, IngestOptions(paths=[home])).run()
            assert backup(index, home / "whole.tar.gz") == 2
    return home / "whole.tar.gz"


@pytest.fixture
def good(whole: Path, tmp_path: Path) -> Path:
    """The backup without the large files of its store, which take seconds to pack."""
    out = tmp_path / "good.tar.gz"
    with tarfile.open(out, "w:gz", compresslevel=1) as archive:
        for member, data in parts(whole):
            if member.size < 1 << 16 or not member.name.startswith("store/"):
                archive.addfile(member, io.BytesIO(data))
    return out


def parts(file: Path) -> Iterator[Member]:
    with tarfile.open(file) as archive:
        for member in archive:
            content = archive.extractfile(member)
            yield member, content.read() if content is not None else b""


def changed(
    folder: Path, good: Path, change: Callable[[str, bytes], bytes | None], *more: Member
) -> Path:
    """A backup in which files are changed (None leaves one out) and `more` is added."""
    out = folder / "changed.tar.gz"
    with tarfile.open(out, "w:gz", compresslevel=1) as archive:
        for member, data in parts(good):
            new = change(member.name, data)
            if new is not None:
                member.size = len(new)
                archive.addfile(member, io.BytesIO(new))
        for member, data in more:
            archive.addfile(member, io.BytesIO(data))
    return out


def same(_: str, data: bytes) -> bytes:
    return data


def part(name: str, kind: bytes = tarfile.REGTYPE, **more: Any) -> Member:
    member = tarfile.TarInfo(name)
    member.type = kind
    for key, value in more.items():
        setattr(member, key, value)
    return member, b"x" * member.size


def files_under(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_what_was_backed_up_comes_back(whole: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy" / ".cartq"
    restore(whole, root)
    with Index.open(root) as index:
        paths = {(record.payload or {})["path"] for record in index.store.scroll()}
        index.set_embedder(PatchEmbedder())
    assert paths == {"0.png", "1.png"}
    assert not {"checked.json", "store.sock"} & {member.name for member, _ in parts(whole)}
    stored = sum(p.stat().st_blocks * 512 for p in root.rglob("*") if p.is_file())
    assert stored < sum(p.stat().st_size for p in root.rglob("*") if p.is_file()) / 2  # holes


@pytest.mark.parametrize(
    "member",
    [
        part("../evil"), part("/tmp/evil"), part("store/../../evil"), part("./../evil"),
        part("a/b"), part(".bashrc"), part("manifest.json/x"), part("evil.sh"),
        part("generator-1/../../evil"), part("generator-x/y"), part("store/a\\b"),
        part("store/\x1b[31m"), part("store/" + "d/" * 20 + "x"), part("trie-xyz.safetensors"),
        part("store/link", tarfile.SYMTYPE, linkname="/etc/passwd"),
        part("store/link", tarfile.SYMTYPE, linkname="../../.."),
        part("store/hard", tarfile.LNKTYPE, linkname="manifest.json"),
        part("store/fifo", tarfile.FIFOTYPE), part("store/null", tarfile.CHRTYPE, devmajor=1),
        part("store/disk", tarfile.BLKTYPE, devmajor=8), part("store/cont", b"9"),
    ],
    ids=lambda member: f"{member[0].name[:24]!r} {member[0].type!r}",
)  # fmt: skip
def test_what_no_backup_holds_is_refused(good: Path, tmp_path: Path, member: Member) -> None:
    bad = changed(tmp_path, good, same, member)
    before = files_under(tmp_path)
    with pytest.raises(MismatchError, match="which no backup holds"):
        restore(bad, tmp_path / "copy" / ".cartq")
    assert files_under(tmp_path) - before == {"copy"}
    assert not Path("/tmp/evil").exists()


def test_it_has_no_say_in_anything(whole: Path, tmp_path: Path) -> None:
    """Neither in the place of its points, nor in what was checked, nor in rights of files."""

    def change(name: str, data: bytes) -> bytes:
        if name != "manifest.json":
            return data
        manifest = json.loads(data)
        manifest["store"] |= {"kind": "server", "url": "http://evil.example", "collection": "c"}
        return sealed(manifest)

    bad = changed(
        tmp_path, whole, change, part("checked.json", size=3), part("copied-from", size=3),
        part("lock", size=3), part("work/changed", size=3), part("store.sock", size=3),
    )  # fmt: skip
    with tarfile.open(bad, "r:gz") as archive:
        odd = [(member, archive.extractfile(member)) for member in archive]
        out = tmp_path / "odd.tar.gz"
        with tarfile.open(out, "w:gz", compresslevel=1) as again:
            for member, content in odd:
                member.mode, member.uid, member.mtime = 0o6777, 12345, 4_000_000_000
                again.addfile(member, content)
    root = tmp_path / "copy" / ".cartq"
    restore(out, root)
    left = {"checked.json", "copied-from", "lock", "work", "store.sock"}
    assert not left & {path.name for path in root.iterdir()}
    for path in root.rglob("*"):
        assert path.stat().st_uid == os.getuid() and not path.stat().st_mode & 0o6000
    with Index.open(root) as index:
        assert index.manifest.store == StoreInfo() and index.store.count() == 2


def test_hashes_are_computed_again(good: Path, tmp_path: Path) -> None:
    names = {member.name for member, _ in parts(good)}
    (trie,) = (name for name in names if name.startswith("trie-"))
    for change, told in (
        (lambda name, data: data[:-1] + b"!" if name == trie else data, "has hash"),
        (lambda name, data: None if name == trie else data, "has hash none"),
        (lambda name, data: None if name == "manifest.json" else data, "no manifest.json"),
    ):
        with pytest.raises(MismatchError, match=told):
            restore(changed(tmp_path, good, change), tmp_path / "copy" / ".cartq")
    assert not (tmp_path / "copy" / ".cartq").exists()


@pytest.mark.parametrize("name", ["..", ".", "", "../x", "/etc/passwd", "a/b"])
def test_its_manifest_names_plain_files(good: Path, tmp_path: Path, name: str) -> None:
    def change(part: str, data: bytes) -> bytes:
        if part != "manifest.json":
            return data
        manifest = json.loads(data)
        manifest["identifiers"]["trie"]["name"] = name
        return sealed(manifest)

    with pytest.raises(MismatchError, match="not a plain file name"):
        restore(changed(tmp_path, good, change), tmp_path / "copy" / ".cartq")


def test_a_model_is_downloaded_only_if_it_is_named(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(name: str, data: bytes) -> bytes:
        if name != "manifest.json":
            return data
        manifest = json.loads(data)
        manifest["embedder"]["name"] = "st:evil/model"
        return sealed(manifest)

    bad, root = changed(tmp_path, whole, change), tmp_path / "copy" / ".cartq"
    with pytest.raises(UsageError, match=r"'st:evil/model'.*--model st:evil/model"):
        restore(bad, root)
    with pytest.raises(UsageError, match="evil"):
        restore(bad, root, models=["st:other/model"])
    words = ["cartq", "restore", str(bad), "--index", str(root)]
    for more, code in (([], 2), (["--model", "st:evil/model"], 0)):
        monkeypatch.setattr(sys, "argv", [*words, *more])
        with pytest.raises(SystemExit) as done:
            main()
        assert done.value.code == code, capsys.readouterr().err
    assert root.exists()


def test_a_bomb_is_refused_before_it_fills_the_disk(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=archives.RESERVE_BYTES + (8 << 20))
    monkeypatch.setattr("cart_qdrant.index.archive.shutil.disk_usage", lambda _: usage)
    header = tarfile.TarInfo("store/zeros")
    header.size = 1 << 50
    bad = changed(tmp_path, good, same)
    with gzip.open(bad, "wb", compresslevel=1) as out:
        out.write(header.tobuf())
        for _ in range(64):
            out.write(bytes(1 << 20))
    with pytest.raises(StoreError, match=r"1073741824 MB or more.*8 MB to spare"):
        restore(bad, tmp_path / "copy" / ".cartq")
    many = changed(tmp_path, good, same, *(part(f"store/{n}", size=2 << 20) for n in range(5)))
    with pytest.raises(StoreError, match="to spare"):
        restore(many, tmp_path / "copy" / ".cartq")
    assert not list((tmp_path / "copy").iterdir())


def test_many_files_and_long_headers_are_refused(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tarfile.TarInfo("././@LongLink")
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, 1 << 40
    pax = tarfile.TarInfo("pax")
    pax.type, pax.size = tarfile.XHDTYPE, 1 << 40
    for header in (long, pax):
        bad = tmp_path / "long.tar.gz"
        with gzip.open(bad, "wb", compresslevel=1) as out:
            out.write(header.tobuf(tarfile.GNU_FORMAT))
            out.write(bytes(8 << 20))
        with pytest.raises(MismatchError, match="not a backup"):
            restore(bad, tmp_path / "copy" / ".cartq")
    monkeypatch.setattr(archives, "MOST_FILES", 30)
    with pytest.raises(MismatchError, match="more than 30 files"):
        restore(good, tmp_path / "copy" / ".cartq")


@pytest.mark.parametrize("cut", [0, 1, 10, 100, 1000, -1000, -9, -1])
def test_a_broken_file_leaves_nothing(good: Path, tmp_path: Path, cut: int) -> None:
    data = good.read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(data[:cut])
    with pytest.raises(CartError):
        restore(tmp_path / "cut.tar.gz", tmp_path / "copy" / ".cartq")
    assert not list((tmp_path / "copy").iterdir())


def test_a_disk_that_fails_is_not_taken_for_a_damaged_backup(good: Path, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, hard))
    try:
        with pytest.raises(StoreError, match=r"cannot be unpacked into .*File too large"):
            archives.unpack(good, tmp_path / "restored")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
