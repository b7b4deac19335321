"""The index folder: manifests round trip, flips are whole, mismatches are named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cart_qdrant.errors import IndexMissingError, MismatchError, StoreError, UsageError
from cart_qdrant.files import file_hash, folder_hash, load_arrays, save_arrays, write_atomic
from cart_qdrant.index.folder import IndexFolder
from cart_qdrant.index.manifest import (
    Artifact,
    EmbedderInfo,
    GeneratorInfo,
    IdentifierInfo,
    Manifest,
    sealed,
)
from cart_qdrant.storage.store_info import StoreInfo

names = st.text(min_size=1, max_size=8)
artifacts = st.builds(Artifact, names, names)
numbers = st.integers(0, 10**9)
manifests = st.builds(
    Manifest,
    id=names,
    embedder=st.builds(
        EmbedderInfo,
        name=names,
        version=names,
        dim=numbers,
        spaces=st.dictionaries(names, names, max_size=3),
        statistics=st.none() | artifacts,
        text_anchors=st.none() | artifacts,
    ),
    store=st.builds(
        StoreInfo,
        kind=names,
        url=st.none() | st.sampled_from(["http://localhost:6333", "https://qdrant.example:6334"]),
        collection=st.none() | names,
    ),
    identifiers=st.none()
    | st.builds(
        IdentifierInfo,
        version=numbers,
        field=names,
        books=artifacts,
        trie=artifacts,
        items=artifacts,
        meta=st.dictionaries(names, st.dictionaries(names, numbers, max_size=2), max_size=2),
        levels=numbers,
        count=numbers,
        unique_ratio=st.floats(0, 1),
    ),
    generator=st.none()
    | st.builds(
        GeneratorInfo,
        version=numbers,
        folder=artifacts,
        identifiers=numbers,
        summary=st.dictionaries(names, numbers, max_size=2),
    ),
    stale_fields=st.lists(names, max_size=3),
)


def manifest(**changes: Any) -> Manifest:
    embedder = EmbedderInfo(name="lite", version="1", dim=4, spaces={"image": "visual"})
    return Manifest(**{"id": "x", "embedder": embedder, "store": StoreInfo(), **changes})


@given(manifests, manifests)
def test_manifest_round_trips_and_versions_tell_them_apart(a: Manifest, b: Manifest) -> None:
    again = Manifest.from_json(json.loads(a.to_bytes()))
    assert again == a and again.version == a.version
    assert (a.version == b.version) == (a == b)


def test_writing_is_atomic_and_drafts_lie_apart(tmp_path: Path, monkeypatch: Any) -> None:
    path, drafts = tmp_path / "file", tmp_path / "work"
    write_atomic(path, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write_atomic(path, b"new", drafts)
    assert path.read_bytes() == b"old"
    write_atomic(path, b"new", drafts)
    assert path.read_bytes() == b"new"
    assert {entry.name for entry in tmp_path.iterdir()} == {"file", "work"}
    assert len(list(drafts.iterdir())) == 1  # of the write that was stopped


def test_arrays_round_trip(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3).T, "b": np.zeros((0, 4), np.int32)}
    path = tmp_path / "a.safetensors"
    assert save_arrays(path, arrays) == file_hash(path)
    loaded = load_arrays(path)
    assert loaded.keys() == arrays.keys()
    for key, value in arrays.items():
        np.testing.assert_array_equal(loaded[key], value)
        assert loaded[key].dtype == value.dtype


def test_read_says_what_is_wrong(tmp_path: Path) -> None:
    folder = IndexFolder(tmp_path / ".cartq")
    assert not folder.exists() and folder.base == tmp_path
    with pytest.raises(IndexMissingError, match="cartq ingest"):
        folder.read()
    folder.root.mkdir()
    for content, match in (
        (b"{", "not readable"),
        (b"[]", "None, but this version reads 1"),
        (b'{"format": 9}', "9, but this version reads 1"),
        (b'{"format": 1}', "damaged or changed"),
        (sealed({"format": 1}), "embedder"),
    ):
        folder.manifest.write_bytes(content)
        with pytest.raises(MismatchError, match=match):
            folder.read()
    folder.write(manifest())
    assert folder.read() == manifest()


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/etc", "a\0b", "-"])
def test_a_manifest_names_plain_files_alone(tmp_path: Path, name: str) -> None:
    folder = IndexFolder(tmp_path)
    data = json.loads(manifest().to_bytes())
    data["embedder"]["text_anchors"] = {"name": name, "hash": ""}
    folder.manifest.write_bytes(sealed(data))
    with pytest.raises(MismatchError, match="not a plain file name"):
        folder.read()


@given(at=st.integers(0), to=st.integers(1, 255))
def test_a_damaged_byte_of_a_manifest_is_seen(at: int, to: int) -> None:
    data = bytearray(manifest(stale_fields=["cart_1"], revision="0123456789ab").to_bytes())
    data[at % len(data)] ^= to
    try:
        found = Manifest.from_bytes(bytes(data), "manifest.json")
    except MismatchError as error:
        assert "manifest.json" in str(error)
    else:  # white space
        assert found == manifest(stale_fields=["cart_1"], revision="0123456789ab")


def test_a_draft_that_another_process_renames_meanwhile_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = IndexFolder(tmp_path)
    folder.work.mkdir()
    draft = folder.work / "draft-0123abcd-checked.json"
    draft.touch()
    unlink = Path.unlink

    def renamed_before(path: Path, missing_ok: bool = False) -> None:
        if path == draft:
            draft.replace(folder.root / "checked.json")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", renamed_before)
    folder.sweep(manifest())
    assert (folder.root / "checked.json").exists() and not list(folder.work.iterdir())


def test_artifact_is_checked_by_its_content(tmp_path: Path) -> None:
    folder = IndexFolder(tmp_path)
    (tmp_path / "one").write_bytes(b"1")
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "x").write_bytes(b"2")
    good = [
        Artifact("one", file_hash(tmp_path / "one")),
        Artifact("two", folder_hash(tmp_path / "two")),
    ]
    assert [folder.path(one) for one in good] == [tmp_path / "one", tmp_path / "two"]
    (tmp_path / "one").write_bytes(b"changed")
    (tmp_path / "two" / "y").touch()
    for one in good:
        with pytest.raises(MismatchError, match=one.hash):
            folder.path(one)
    with pytest.raises(MismatchError, match="missing"):
        folder.path(Artifact("three", ""))


def test_what_was_checked_is_read_again_only_when_it_changed_or_is_asked_for(
    tmp_path: Path,
) -> None:
    folder, one = IndexFolder(tmp_path), tmp_path / "one"
    one.write_bytes(b"1")
    good = Artifact("one", file_hash(one))
    stat = one.stat()
    folder.path(good)
    one.write_bytes(b"2")
    os.utime(one, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as a failing disk changes it
    assert folder.path(good) == one
    with pytest.raises(MismatchError, match=good.hash):
        folder.path(good, rehash=True)
    os.utime(one, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    with pytest.raises(MismatchError, match=good.hash):
        folder.path(good)
    one.write_bytes(b"1")
    (tmp_path / "checked.json").write_bytes(b"[nonsense")
    assert folder.path(good) == one


HASH = "0123456789ab"
EXTERNAL = (
    ".env", ".git", ".ssh", "embedder", "embedder-notes.safetensors", "items-list.csv",
    "trie-tutorial.md", "trie-backup.safetensors", "identifiers-old.safetensors", "generator-x",
    "generator-1.py", "notes.txt", ".manifest.json.1234",
)  # fmt: skip
"""Names that look like ours and are not."""


def test_sweeping_removes_files_of_older_versions_and_nothing_else(tmp_path: Path) -> None:
    kept = (
        f"trie-{HASH}.safetensors", f"items-{HASH}.safetensors", "identifiers-2.safetensors",
        "lock", "store", *EXTERNAL,
    )  # fmt: skip
    deleted = (
        "trie-ba9876543210.safetensors", "items-ba9876543210.safetensors", "generator-1",
        "identifiers-1.safetensors", "text-anchors-00ff.safetensors",
    )  # fmt: skip
    drafts = ("draft-0123abcd-manifest.json", "train")
    (tmp_path / "work").mkdir()
    for name in (*kept, *deleted, *(f"work/{name}" for name in drafts)):
        path = tmp_path / name
        path.mkdir() if name in {"store", "generator-1", ".git", ".ssh"} else path.write_text(name)
    info = IdentifierInfo(
        version=2,
        field="cart_2",
        books=Artifact("identifiers-2.safetensors", ""),
        trie=Artifact(f"trie-{HASH}.safetensors", ""),
        items=Artifact(f"items-{HASH}.safetensors", ""),
        meta={},
        levels=1,
        count=0,
        unique_ratio=1.0,
    )
    folder, new = IndexFolder(tmp_path), manifest(identifiers=info)
    folder.write(new)
    # An open retriever may still read the files of the version before.
    ours = {"manifest.json", "checked.json", "work"}
    assert {p.name for p in tmp_path.iterdir()} == {*kept, *deleted, *ours}
    folder.sweep(new)
    assert {p.name for p in tmp_path.iterdir()} == {*kept, *ours}
    assert {p.name for p in (tmp_path / "work").iterdir()} == {"train"}


@pytest.mark.parametrize("name", [*EXTERNAL, "lock", "store", "work", "README.md"])
def test_an_index_is_never_made_among_other_files(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    folder = IndexFolder(tmp_path)
    with pytest.raises(UsageError, match=r"\.cartq"), folder.lock():
        pass
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"
    inside = IndexFolder(tmp_path / ".cartq")
    with inside.lock():
        inside.write(manifest())
    with inside.lock():
        assert inside.read() == manifest()


def test_a_manifest_of_another_program_is_left_alone(tmp_path: Path) -> None:
    folder = IndexFolder(tmp_path)
    folder.manifest.write_text('{"name": "my web app"}')
    with pytest.raises(MismatchError, match="format None"), folder.lock():
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_a_folder_whose_first_run_was_killed_is_used_again(tmp_path: Path) -> None:
    folder = IndexFolder(tmp_path / "index")
    with folder.lock():
        (folder.root / "store").mkdir()
    with folder.lock():
        folder.write(manifest())
    assert folder.read() == manifest()


@pytest.mark.parametrize("left", [b"", bytes(40)])
def test_a_folder_that_a_power_cut_left_with_an_empty_lock_is_used_again(
    tmp_path: Path, left: bytes
) -> None:
    folder = IndexFolder(tmp_path / "index")
    folder.root.mkdir()
    folder.lock_file.write_bytes(left)
    with folder.lock():
        (folder.root / "store").mkdir()
    with folder.lock():
        folder.write(manifest())
    assert folder.read() == manifest()


def test_one_writer_at_a_time_and_a_dead_one_does_not_count(tmp_path: Path) -> None:
    folder = IndexFolder(tmp_path / ".cartq")
    code = (
        "import sys, time\nfrom pathlib import Path\n"
        "from cart_qdrant.index.folder import IndexFolder\n"
        f"with IndexFolder(Path({str(folder.root)!r})).lock():\n"
        "    print('locked', flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "locked\n"
        with pytest.raises(StoreError, match="Another process"), folder.lock(patience=0.1):
            pass
        other.kill()
        other.wait()
    with folder.lock():
        pass


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"")
    with pytest.raises(UsageError, match=r"photo\.png is a file"):
        IndexFolder(tmp_path / "photo.png").read()
