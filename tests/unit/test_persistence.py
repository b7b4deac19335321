"""The index folder is never half changed, and refuses what does not fit together."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cart_qdrant.errors import IndexMissingError, MismatchError, StoreError
from cart_qdrant.persistence import (
    Artifact,
    EmbedderInfo,
    GeneratorInfo,
    IdentifierInfo,
    IndexFolder,
    Manifest,
    StoreInfo,
    file_hash,
    folder_hash,
    load_arrays,
    save_arrays,
    write_atomic,
)

texts = st.text(max_size=12)
artifacts = st.builds(Artifact, texts, texts)
identifier_infos = st.builds(
    IdentifierInfo,
    version=st.integers(1, 99),
    field=texts,
    books=artifacts,
    trie=artifacts,
    meta=st.dictionaries(texts, st.fixed_dictionaries({"offset": st.integers(), "method": texts})),
    levels=st.integers(1, 9),
    count=st.integers(0),
    U=st.floats(0, 1),
)
manifests = st.builds(
    Manifest,
    id=texts,
    embedder=st.builds(
        EmbedderInfo,
        name=texts,
        version=texts,
        dim=st.integers(1, 4096),
        spaces=st.dictionaries(texts, texts),
        statistics=st.none() | artifacts,
    ),
    store=st.builds(StoreInfo, kind=texts, url=st.none() | texts, collection=st.none() | texts),
    identifiers=st.none() | identifier_infos,
    generator=st.none()
    | st.builds(
        GeneratorInfo,
        version=st.integers(1),
        folder=artifacts,
        identifiers=st.integers(1),
        summary=st.dictionaries(texts, st.floats(0, 1)),
    ),
    stale_fields=st.lists(texts),
)


def manifest(**changes: object) -> Manifest:
    embedder = EmbedderInfo(name="lite", version="1", dim=8, spaces={"image": "visual"})
    base = Manifest(id="one", embedder=embedder, store=StoreInfo())
    return replace(base, **changes)  # type: ignore[arg-type]


@given(manifests)
def test_manifest_round_trip(one: Manifest) -> None:
    again = Manifest.from_json(json.loads(one.to_bytes()))
    assert again == one
    assert again.version == one.version


def test_version_changes_with_every_part() -> None:
    infos = [
        manifest(),
        manifest(id="two"),
        manifest(stale_fields=["cart"]),
        manifest(store=StoreInfo(kind="server", url="http://x")),
    ]
    assert len({info.version for info in infos}) == len(infos)


def test_write_and_read(tmp_path: Path) -> None:
    folder = IndexFolder(tmp_path / ".cartq")
    assert not folder.exists()
    with pytest.raises(IndexMissingError, match="cartq ingest"):
        folder.read()
    folder.root.mkdir()
    folder.write(manifest())
    assert folder.exists() and folder.read() == manifest()
    assert folder.base == tmp_path


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "not readable as JSON"),
        ("[]", "index format None"),
        ('{"format": 99}', "99.*reads 1"),
        ('{"format": 1}', "lacks or misnames"),
    ],
)
def test_a_manifest_that_is_none(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(MismatchError, match=says):
        IndexFolder(tmp_path).read()


def test_a_flip_removes_what_is_no_longer_named(tmp_path: Path) -> None:
    folder = IndexFolder(tmp_path)
    for name in ("trie-old.npz", "identifiers-1.safetensors", ".manifest.json.123", "notes.txt"):
        (tmp_path / name).write_text("x")
    (tmp_path / "generator-1").mkdir()
    (tmp_path / "generator-1" / "weights").write_text("x")
    (tmp_path / "store").mkdir()
    kept = tmp_path / "trie-new.npz"
    kept.write_text("y")
    books = tmp_path / "identifiers-2.safetensors"
    books.write_text("z")
    info = IdentifierInfo(
        version=2,
        field="cart_2",
        books=Artifact(books.name, file_hash(books)),
        trie=Artifact(kept.name, file_hash(kept)),
        meta={},
        levels=4,
        count=0,
        U=1.0,
    )
    folder.write(manifest(identifiers=info))
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"manifest.json", "store", "notes.txt", kept.name, books.name}


def test_an_artefact_is_checked(tmp_path: Path) -> None:
    folder = IndexFolder(tmp_path)
    file = tmp_path / "a.bin"
    file.write_text("content")
    artifact = Artifact("a.bin", file_hash(file))
    assert folder.path(artifact) == file
    file.write_text("other")
    with pytest.raises(MismatchError, match=artifact.hash):
        folder.path(artifact)
    file.unlink()
    with pytest.raises(MismatchError, match="missing"):
        folder.path(artifact)


def test_the_hash_of_a_folder_sees_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    first = folder_hash(tmp_path)
    assert IndexFolder(tmp_path.parent).path(Artifact(tmp_path.name, first)) == tmp_path
    (tmp_path / "a").rename(tmp_path / "b")
    second = folder_hash(tmp_path)
    (tmp_path / "b").write_text("2")
    assert len({first, second, folder_hash(tmp_path)}) == 3


def test_arrays_round_trip(tmp_path: Path) -> None:
    arrays = {"x": np.arange(6, dtype=np.float32).reshape(2, 3).T, "n": np.array([1], np.int32)}
    digest = save_arrays(tmp_path / "a.safetensors", arrays)
    assert digest == file_hash(tmp_path / "a.safetensors")
    again = load_arrays(tmp_path / "a.safetensors")
    assert set(again) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(again[name], array)


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"


def test_only_one_process_writes(tmp_path: Path) -> None:
    folder = IndexFolder(tmp_path)
    # Another descriptor of the same file is to the system as another process.
    with folder.lock(), pytest.raises(StoreError, match="Another process"), folder.lock():
        pytest.fail("two writers")
    with folder.lock():
        assert (tmp_path / "lock").exists()
