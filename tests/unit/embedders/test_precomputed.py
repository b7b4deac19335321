"""Precomputed vectors: each clip gets its own row, and a bad file is refused with its row."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cart_qdrant.embedders.precomputed import PrecomputedEmbedder
from cart_qdrant.embedders.precomputed_file import VectorFile
from cart_qdrant.errors import MediaError, MissingExtraError, UsageError, VectorError
from cart_qdrant.media.clip import Clip
from cart_qdrant.records import Modality


def clip(key: str, start: float = 0.0, end: float = 0.0) -> Clip:
    return Clip(Modality.VIDEO, key=key, start=start, end=end)


def embedder(paths: list[str], vectors: Any = None, **more: Any) -> PrecomputedEmbedder:
    rows = np.eye(len(paths), dtype=np.float32) if vectors is None else np.asarray(vectors)
    return PrecomputedEmbedder(VectorFile(source="v.npz", paths=paths, vectors=rows, **more))


def save(path: Path, **arrays: Any) -> Path:
    arrays = {name: np.asarray(value) for name, value in arrays.items()}
    np.savez(path, allow_pickle=True, **arrays)
    return path


FLOATS = st.sampled_from([np.float16, np.float32, np.float64])


@given(st.data(), FLOATS)
def test_any_finite_vector_comes_back_with_its_direction_and_length_one(
    data: st.DataObject, kind: type[np.floating[Any]]
) -> None:
    x_ND = data.draw(
        hnp.arrays(
            kind,
            st.tuples(st.integers(1, 4), st.integers(1, 5)),
            elements={"allow_nan": False, "allow_infinity": False},
        ).filter(lambda x: bool(x.any(axis=1).all()))
    )
    paths = [f"{n}.mp4" for n in range(len(x_ND))]
    got_BD = embedder(paths, x_ND).embed_media([clip(path) for path in reversed(paths)])
    assert got_BD.dtype == np.float32 and got_BD.shape == x_ND.shape
    assert np.linalg.norm(got_BD, axis=1) == pytest.approx(np.ones(len(paths)), abs=1e-6)
    scaled = x_ND.astype(np.float64) / np.abs(x_ND.astype(np.float64)).max(axis=1, keepdims=True)
    wanted = scaled / np.linalg.norm(scaled, axis=1, keepdims=True)
    assert got_BD[::-1] == pytest.approx(wanted, abs=1e-6)


def test_what_it_says_of_itself() -> None:
    three, four = embedder(["a", "b", "c"]), embedder(["a", "b", "c", "d"])
    assert three.name == "precomputed" and (three.dim, three.raw_dim) == (3, 3)
    assert three.modalities == set(Modality)
    assert three.spaces == dict.fromkeys(Modality, "media")
    assert three.version == embedder(["x", "y", "z"]).version != four.version
    assert not three.has_text
    assert three.embed_media([]).shape == (0, 3)


@given(
    starts=st.lists(st.integers(0, 100), unique=True, min_size=1, max_size=8),
    wanted=st.integers(-5, 110),
    shuffle=st.randoms(use_true_random=False),
)
def test_the_row_with_the_nearest_start_is_taken(
    starts: list[int], wanted: int, shuffle: Any
) -> None:
    shuffle.shuffle(starts)
    found = embedder(["v.mp4"] * len(starts), starts=np.array(starts, dtype=np.float64))
    row = int(found.embed_media([clip("v.mp4", wanted)]).argmax())
    assert abs(starts[row] - wanted) == min(abs(start - wanted) for start in starts)


def test_of_two_as_near_the_earlier_is_taken() -> None:
    found = embedder(["v.mp4", "v.mp4"], starts=np.array([10.0, 0.0]))
    assert found.embed_media([clip("v.mp4", 5.0)]).argmax() == 1


def test_a_part_of_a_file_without_a_vector_is_told() -> None:
    times = {"starts": np.array([0.0, 10.0]), "ends": np.array([10.0, 20.0])}
    found = embedder(["a.mp4", "a.mp4"], **times)
    assert found.embed_media([clip("a.mp4", 19.9)]).argmax() == 1
    with pytest.raises(MediaError, match=r"a\.mp4: .* no vector from 50 to 60 s.* 10 to 20 s"):
        found.embed_media([clip("a.mp4", 50, 60)])


def test_of_rows_with_ends_only_those_of_the_clips_time_count() -> None:
    times = {"starts": np.array([0.0, 61.0, 200.0]), "ends": np.array([60.0, 65.0, 200.0])}
    found = embedder(["a.mp4"] * 3, **times)
    assert found.embed_media([clip("a.mp4", 50, 60)]).argmax() == 0, "61 s is nearer, but later"
    assert found.embed_media([clip("a.mp4", 60, 62)]).argmax() == 1
    assert found.embed_media([clip("a.mp4", 300, 310)]).argmax() == 2, "its end is not known"
    early = embedder(["a.mp4"] * 2, starts=np.array([20.0, 30.0]), ends=np.array([30.0, 40.0]))
    with pytest.raises(MediaError, match=r"no vector from 0 to 10 s.* 20 to 30 s"):
        early.embed_media([clip("a.mp4", 0, 10)])


@pytest.mark.parametrize("key", ["photos/a.jpg", "data/photos/a.jpg", "a.jpg"])
def test_a_path_is_found_by_its_tail(key: str) -> None:
    found = embedder(["b/a2.jpg", "photos/a.jpg", "b/b.jpg"])
    assert found.embed_media([clip(key)]).argmax() == 1


def test_a_path_that_is_missing_or_ambiguous_is_told() -> None:
    found = embedder(["x/a.jpg", "y/a.jpg"])
    with pytest.raises(MediaError, match=r"z/b\.jpg: v\.npz has no vector"):
        found.embed_media([clip("x/a.jpg"), clip("z/b.jpg")])
    with pytest.raises(MediaError, match=r"x/a\.jpg and y/a\.jpg both fit"):
        found.embed_media([clip("a.jpg")])
    assert found.embed_media([clip("x/a.jpg")]).argmax() == 0


@pytest.mark.parametrize("starts", [None, np.array([1.0, 1.0])])
def test_rows_that_cannot_be_told_apart_are_refused(starts: Any) -> None:
    with pytest.raises(UsageError, match=r"2 rows of a\.mp4, but only 1 different start"):
        embedder(["a.mp4", "./a.mp4"], starts=starts)


@pytest.mark.parametrize(
    ("row", "reason"),
    [([np.nan, 1], "not finite"), ([np.inf, 1], "not finite"), ([0.0, 0.0], "all zero")],
)
def test_a_bad_row_is_named(row: list[float], reason: str) -> None:
    with pytest.raises(VectorError, match=rf"row 1 \(b\.jpg\) is {reason}"):
        embedder(["a.jpg", "b.jpg", "c.jpg"], [[1.0, 0.0], row, [0.0, 1.0]])


@pytest.mark.parametrize(
    "vectors",
    [np.ones((3, 2)), np.ones(2), np.ones((2, 2, 2)), np.ones((2, 2), dtype=int), np.ones((2, 0))],
)
def test_shapes_and_types_that_disagree(vectors: npt.NDArray[Any]) -> None:
    with pytest.raises(VectorError):
        embedder(["a.jpg", "b.jpg"], vectors)


@pytest.mark.parametrize("starts", [np.zeros(3), np.array([0.0, np.nan])])
def test_times_that_disagree(starts: npt.NDArray[np.float64]) -> None:
    with pytest.raises(VectorError, match="start"):
        embedder(["a.jpg", "b.jpg"], starts=starts)


def test_texts_are_looked_up_and_others_refused(tmp_path: Path) -> None:
    file = save(
        tmp_path / "v.npz", vectors=np.eye(2), paths=["a.jpg", "b.jpg"],
        texts=["A dog", "a cat"], text_vectors=[[3.0, 4.0], [1.0, 0.0]],
    )  # fmt: skip
    found = PrecomputedEmbedder.from_file(file)
    assert found.has_text
    assert found.embed_text(["a cat", " a  DOG"]) == pytest.approx(np.array([[1, 0], [0.6, 0.8]]))
    nothing = found.embed_text([], "media")
    assert nothing is not None and nothing.shape == (0, 2)
    with pytest.raises(UsageError, match=r"no vector of 'a cow'.*cartq train"):
        found.embed_text(["a cow"])
    assert found.embed_text(["a dog"], "another space") is None
    assert embedder(["a.jpg"]).embed_text(["a dog"], "media") is None


@pytest.mark.parametrize(
    "texts", [{"texts": ["a"]}, {"text_vectors": np.eye(2)[:1]},
              {"texts": ["a"], "text_vectors": np.ones((1, 3))},
              {"texts": ["a"], "text_vectors": np.zeros((1, 2))}]
)  # fmt: skip
def test_texts_that_disagree(tmp_path: Path, texts: dict[str, Any]) -> None:
    file = save(tmp_path / "v.npz", vectors=np.eye(2), paths=["a.jpg", "b.jpg"], **texts)
    with pytest.raises(VectorError):
        PrecomputedEmbedder.from_file(file)


# --- files ----------------------------------------------------------------------------------


def test_the_name_of_the_model_is_read_from_npz(tmp_path: Path) -> None:
    x_ND = np.ones((1, 4), np.float32)
    named = save(tmp_path / "v.npz", vectors=x_ND, paths=["a.png"], model="clip-b32")
    assert PrecomputedEmbedder.from_file(named).model == "clip-b32"
    assert PrecomputedEmbedder.from_file(named, "clip-b32").model == "clip-b32"
    with pytest.raises(UsageError, match="'clip-b32', but --model is 'siglip'"):
        PrecomputedEmbedder.from_file(named, "siglip")
    bare = save(tmp_path / "w.npz", vectors=x_ND, paths=["a.png"])
    assert PrecomputedEmbedder.from_file(bare).model is None
    assert PrecomputedEmbedder.from_file(bare, "siglip").model == "siglip"


def test_the_name_of_the_model_is_read_from_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    table = pa.table({"vector": [[1.0, 2.0]], "path": ["a.png"]})
    pq.write_table(table.replace_schema_metadata({"model": "clip-b32"}), tmp_path / "v.parquet")
    assert PrecomputedEmbedder.from_file(tmp_path / "v.parquet").model == "clip-b32"
    pq.write_table(table, tmp_path / "w.parquet")
    assert PrecomputedEmbedder.from_file(tmp_path / "w.parquet").model is None


def test_npz_and_parquet_are_the_same(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    x_ND = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    paths, starts = ["a.mp4", "b.mp4"] * 3, [0.0, 0.0, 5.0, 5.0, 9.0, 9.0]
    ends = [start + 4 for start in starts]
    files = [save(tmp_path / "v.npz", vectors=x_ND, paths=paths, start=starts, end=ends)]
    flat = pa.array(x_ND.reshape(-1))
    columns = {
        "fixed": pa.FixedSizeListArray.from_arrays(flat, 4),
        "list": pa.array(x_ND.tolist()),
        "large": pa.array(x_ND.tolist(), type=pa.large_list(pa.float32())),
    }
    for name, column in columns.items():
        table = pa.table(
            {"vector": column, "path": paths, "start": starts, "end": ends, "x": paths}
        )
        files.append(tmp_path / f"{name}.parquet")
        pq.write_table(table, files[-1], row_group_size=4)
    clips = [clip("a.mp4", 4, 6), clip("b.mp4", 12.5), clip("a.mp4", 1)]
    wanted = PrecomputedEmbedder.from_file(files[0]).embed_media(clips)
    exact = x_ND[[2, 5, 0]] / np.linalg.norm(x_ND[[2, 5, 0]], axis=1, keepdims=True)
    assert wanted == pytest.approx(exact, abs=1e-6)
    for file in files[1:]:
        assert PrecomputedEmbedder.from_file(file).embed_media(clips) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("columns", "error", "part"),
    [
        ({"path": ["a"]}, UsageError, "lacks the column vector; it has path"),
        ({"path": ["a", "b"], "vector": [[1.0], [1.0, 2.0]]}, VectorError, "1 and 2 wide"),
        ({"path": ["a", "b"], "vector": [[1.0], None]}, VectorError, "1 rows have no vector"),
        ({"path": ["a"], "vector": [[1.0, None]]}, VectorError, "1 values"),
        ({"path": ["a"], "vector": [1.0]}, VectorError, "must be a list of floats"),
        ({"path": ["a"], "vector": [["x"]]}, VectorError, "floats"),
        ({"path": [1], "vector": [[1.0]]}, UsageError, "path is int64"),
        ({"path": ["a"], "vector": [[1.0]], "start": ["x"]}, UsageError, "start is object"),
        ({"path": [], "vector": []}, VectorError, "must be a list of floats"),
    ],
)
def test_parquet_that_cannot_be_used(
    tmp_path: Path, columns: dict[str, Any], error: type[Exception], part: str
) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table(columns), tmp_path / "v.parquet")
    with pytest.raises(error, match=part):
        PrecomputedEmbedder.from_file(tmp_path / "v.parquet")


def test_without_pyarrow_the_install_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r'pip install "cart-qdrant\[parquet\]"'):
        PrecomputedEmbedder.from_file(tmp_path / "v.parquet")


@pytest.mark.parametrize(
    ("arrays", "error", "part"),
    [
        ({"vectors": np.eye(2)}, UsageError, "lacks the array paths; it has vectors"),
        ({"vectors": np.eye(2), "paths": np.array(["a", "b"], object)}, UsageError, "dtype str"),
        ({"vectors": np.eye(2), "paths": [1, 2]}, UsageError, "paths is int64"),
        ({"vectors": np.eye(2), "paths": ["a"]}, VectorError, r"\(2, 2\).* 1 paths"),
        ({"vectors": np.eye(2), "paths": ["a", "b"], "start": ["x", "y"]}, UsageError, "start is"),
        ({"vectors": np.ones((0, 2)), "paths": []}, VectorError, "holds no vectors"),
    ],
)
def test_npz_that_cannot_be_used(
    tmp_path: Path, arrays: dict[str, Any], error: type[Exception], part: str
) -> None:
    with pytest.raises(error, match=part):
        PrecomputedEmbedder.from_file(save(tmp_path / "v.npz", **arrays))


@pytest.mark.parametrize(
    ("name", "content"),
    [("gone.npz", None), ("v.npz", b""), ("v.npz", b"no zip"), ("v.npz", b"PK\x03\x04 cut"),
     ("v.parquet", b"PAR1 cut"), ("v.parquet", None), ("v.csv", b"a")],
)  # fmt: skip
def test_files_that_are_none(tmp_path: Path, name: str, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=name):
        PrecomputedEmbedder.from_file(tmp_path / name)
