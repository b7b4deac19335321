"""`cartq ingest` on real files: what is stored of them, what is left out, and what goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cart_qdrant.embedders.registry import lite_available
from cart_qdrant.index.index import Index
from tests import media_factory as media
from tests.cli.conftest import Run
from tests.conftest import points

pytestmark = pytest.mark.skipif(
    not lite_available(), reason='not installed: pip install "cart-qdrant[lite]"'
)


def write_vectors(path: Path, rows: list[tuple[Any, ...]], **more: Any) -> Path:
    """A file of vectors, each an axis of its own, for rows of path, start and end (or less)."""
    columns = zip(("paths", "start", "end"), zip(*rows, strict=True), strict=False)
    arrays: dict[str, Any] = {name: np.asarray(column) for name, column in columns}
    np.savez(path, vectors=np.eye(len(rows), 16, dtype=np.float32), **arrays, **more)
    return path


def ingest_words(base: Path, *words: object) -> list[object]:
    """The words of an ingest of `media` with precomputed vectors."""
    given = ["--embedder", "precomputed", "--vectors", base / "vectors.npz", "--json"]
    return ["ingest", base / "media", "--index", base / ".cartq", *given, *words]


def stored(base: Path) -> list[dict[str, Any]]:
    """Payloads and vectors in order of path, modality and start."""
    with Index.open(base / ".cartq") as index:
        found = points(index).values()
    return sorted(found, key=lambda p: (p["path"], p["modality"], p["start"]))


def film(folder: Path) -> Path:
    """A film of three shots, of three seconds each, with sound."""
    folder.mkdir(exist_ok=True)
    frames = [frame for seed in (60, 61, 62) for frame in media.moving(seed, 24)]
    return media.write_video(folder / "film.mp4", frames, sound=media.tone(9.0))


def test_each_segment_gets_the_vector_of_its_own_time(tmp_path: Path, cartq: Run) -> None:
    film(tmp_path / "media")
    write_vectors(
        tmp_path / "vectors.npz", [("film.mp4", 0.0), ("film.mp4", 3.0), ("film.mp4", 6.0)]
    )
    done = cartq(*ingest_words(tmp_path))
    assert done.code == 0, done.err
    found = {
        (p["modality"], round(p["start"])): int(np.argmax(p["vector"]["media"]))
        for p in stored(tmp_path)
    }
    assert found == {("audio", 0): 0, ("video", 0): 0, ("video", 3): 1, ("video", 6): 2}


def test_a_time_without_a_vector_is_named(tmp_path: Path, cartq: Run) -> None:
    film(tmp_path / "media")
    rows = [("film.mp4", 0.0, 3.0), ("film.mp4", 3.0, 5.9)]
    write_vectors(tmp_path / "vectors.npz", rows)
    done = cartq(*ingest_words(tmp_path))
    assert done.code == 1
    (failed,) = done.json["failed"]
    assert "no vector from 6 to 9 s" in failed["reason"] and "3 to 5.9 s" in failed["reason"]
    assert {round(p["start"]) for p in stored(tmp_path)} == {0, 3}


def test_prune_with_a_disk_away_is_1_and_keeps_all(tmp_path: Path, cartq: Run) -> None:
    film(tmp_path / "media")
    write_vectors(tmp_path / "vectors.npz", [("film.mp4",)])
    assert cartq(*ingest_words(tmp_path)).code == 0
    before = stored(tmp_path)
    (tmp_path / "media").rename(tmp_path / "elsewhere")
    (tmp_path / "media").mkdir()
    for words in (("--prune", "--dry-run"), ("--prune",)):
        done = cartq(*ingest_words(tmp_path, *words))
        assert done.code == 1
        assert done.json["removed"] == 0 and done.json["failed"] == []
        (held,) = done.json["held_back"]
        assert held["path"] == "media" and "--force" in held["reason"]
    plain = ingest_words(tmp_path, "--prune")
    plain.remove("--json")
    shown = cartq(*plain)
    assert shown.code == 1 and "Not removed" in shown.out and "not mounted" in shown.out
    assert stored(tmp_path) == before
    assert cartq(*ingest_words(tmp_path, "--force")).code == 2
    done = cartq(*ingest_words(tmp_path, "--prune", "--force"))
    assert (done.code, done.json["removed"], stored(tmp_path)) == (0, 1, [])


def pictures(base: Path, names: list[str]) -> None:
    for n, name in enumerate(names):
        (base / "media").mkdir(exist_ok=True)
        media.write_image(base / "media" / name, media.scene(n))


def vectors_of(path: Path, names: list[str], seed: int, **more: Any) -> None:
    """Vectors of files by a model, for which a seed stands."""
    rows = [np.random.default_rng([seed, sum(name.encode())]).normal(size=16) for name in names]
    np.savez(path, vectors=np.stack(rows), paths=np.asarray(names), **more)


def test_vectors_of_another_model_are_refused_by_its_name(tmp_path: Path, cartq: Run) -> None:
    vectors = tmp_path / "vectors.npz"
    pictures(tmp_path, ["a.png"])
    vectors_of(vectors, ["a.png"], 1, model="clip-b32")
    assert cartq(*ingest_words(tmp_path, "--model", "siglip")).code == 2
    assert not (tmp_path / ".cartq").exists()
    assert cartq(*ingest_words(tmp_path)).code == 0
    pictures(tmp_path, ["a.png", "b.png"])
    info = cartq("info", "--index", tmp_path / ".cartq", "--json").json
    assert info["embedder"]["model"] == "clip-b32"
    vectors_of(vectors, ["b.png"], 2, model="siglip")
    done = cartq(*ingest_words(tmp_path))
    assert done.code == 3 and "'siglip'" in done.err and "'clip-b32'" in done.err
    vectors_of(vectors, ["b.png"], 2)
    done = cartq(*ingest_words(tmp_path, "--model", "siglip"))
    assert done.code == 3 and len(stored(tmp_path)) == 1
    done = cartq(*ingest_words(tmp_path, "--model", "clip-b32"))
    assert done.code == 0 and len(stored(tmp_path)) == 2


def test_vectors_without_a_models_name_are_compared(tmp_path: Path, cartq: Run) -> None:
    vectors = tmp_path / "vectors.npz"
    pictures(tmp_path, ["a.png", "b.png"])
    vectors_of(vectors, ["a.png", "b.png"], 1)
    assert cartq(*ingest_words(tmp_path)).code == 0
    pictures(tmp_path, ["a.png", "b.png", "c.png"])
    vectors_of(vectors, ["a.png", "b.png", "c.png"], 2)
    for words in ([], ["--dry-run"], ["--model", "siglip"]):
        done = cartq(*ingest_words(tmp_path, *words))
        assert done.code == 3 and "2 stored segments" in done.err and "another" in done.err
    assert len(stored(tmp_path)) == 2
    vectors_of(vectors, ["a.png", "b.png", "c.png"], 1)
    done = cartq(*ingest_words(tmp_path, "--model", "clip-b32"))
    assert done.code == 0 and "2 stored segments are the same" in done.err
    pictures(tmp_path, ["a.png", "b.png", "c.png", "d.png"])
    vectors_of(vectors, ["d.png"], 1)
    done = cartq(*ingest_words(tmp_path))
    assert done.code == 0 and "names no model, and no stored file" in done.err
    vectors_of(vectors, ["d.png"], 2, model="siglip")
    done = cartq(*ingest_words(tmp_path))
    assert done.code == 3 and "'clip-b32'" in done.err, "the name was recorded"


def test_changed_files_say_nothing_of_the_model(tmp_path: Path, cartq: Run) -> None:
    pictures(tmp_path, ["a.png"])
    vectors_of(tmp_path / "vectors.npz", ["a.png"], 1)
    assert cartq(*ingest_words(tmp_path)).code == 0
    media.write_image(tmp_path / "media" / "a.png", media.scene(30))
    vectors_of(tmp_path / "vectors.npz", ["a.png"], 2)
    done = cartq(*ingest_words(tmp_path))
    assert (done.code, done.json["segments"]) == (0, 1)


def test_the_model_of_vectors_is_one_text(tmp_path: Path, cartq: Run) -> None:
    pictures(tmp_path, ["a.png"])
    vectors_of(tmp_path / "vectors.npz", ["a.png"], 1, model=np.arange(2))
    done = cartq(*ingest_words(tmp_path))
    assert done.code == 2 and "must be one text" in done.err
    done = cartq("ingest", tmp_path / "media", "--index", tmp_path / "i", "--model", "clip")
    assert done.code == 2 and "--vectors" in done.err


def cuts(base: Path) -> list[tuple[str, int, int]]:
    found = stored(base)
    return [(p["modality"], round(p["start"]), round(p["end"])) for p in found]


def test_lengths_of_segments_are_the_users_and_stay(tmp_path: Path, cartq: Run) -> None:
    film(tmp_path / "media")
    write_vectors(tmp_path / "vectors.npz", [("film.mp4",)])
    lengths = ["--max-shot", "1.5", "--audio-window", "3"]
    assert cartq(*ingest_words(tmp_path, "--max-shot", "0.5")).code == 2, "below min_shot"
    assert not (tmp_path / ".cartq").exists()
    assert cartq(*ingest_words(tmp_path, *lengths)).code == 0
    found = cuts(tmp_path)
    assert found.count(("audio", 0, 3)) == 1 and len(found) == 3 + 6
    info = cartq("info", "--index", tmp_path / ".cartq", "--json").json
    assert info["cutting"]["max_shot"] == 1.5 and info["cutting"]["audio_window"] == 3
    shown = cartq("info", "--index", tmp_path / ".cartq").out
    assert "shots of 1 to 1.5 s, audio in windows of 3 s" in shown
    media.write_audio(tmp_path / "media" / "bell.wav", media.tone(6.0))
    write_vectors(tmp_path / "vectors.npz", [("bell.wav",)])
    done = cartq(*ingest_words(tmp_path))
    assert (done.code, done.json["segments"], done.json["unchanged"]) == (0, 2, 1)
    done = cartq(*ingest_words(tmp_path, *lengths))
    assert (done.code, done.json["segments"]) == (0, 0), "the same again is no change"
    done = cartq(*ingest_words(tmp_path, "--audio-window", "10"))
    assert done.code == 3 and "audio_window is 3, but was to be 10" in done.err
    assert len(cuts(tmp_path)) == 11


def test_an_empty_index_may_still_be_cut_otherwise(tmp_path: Path, cartq: Run) -> None:
    (tmp_path / "media").mkdir()
    write_vectors(tmp_path / "vectors.npz", [("film.mp4",)])
    assert cartq(*ingest_words(tmp_path)).code == 0
    film(tmp_path / "media")
    assert cartq(*ingest_words(tmp_path, "--audio-window", "3", "--dry-run")).code == 0
    assert cartq(*ingest_words(tmp_path, "--audio-window", "3")).code == 0
    assert sum(modality == "audio" for modality, *_ in cuts(tmp_path)) == 3


def test_filters_see_the_numbers_and_dates_of_a_csv(tmp_path: Path, cartq: Run) -> None:
    (tmp_path / "media").mkdir()
    for n in range(4):
        media.write_image(tmp_path / "media" / f"{n}.png", media.scene(n))
    write_vectors(tmp_path / "vectors.npz", [(f"{n}.png",) for n in range(4)])
    table = tmp_path / "x.csv"
    head, row = "file_name,caption,year,code,id,day", "{0}.png,a dog {0},{1},00{0},{2},202{0}-06-01"
    ids = range(12345678901234560, 12345678901234564)  # floats would confuse them

    def ingest(first: object) -> dict[str, Any]:
        years = [first, 2019, 2020, 2021]
        lines = [row.format(n, year, ids[n]) for n, year in enumerate(years)]
        table.write_text("\n".join([head, *lines]) + "\n")
        done = cartq(*ingest_words(tmp_path, "--captions", table))
        assert done.code == 0, done.err
        return done.json

    def found(expression: str) -> list[str]:
        words = ("dog", "--index", tmp_path / ".cartq", "--filter", expression, "--json")
        done = cartq("search", *words)
        assert done.code == 0, done.err
        return sorted(Path(hit["path"]).stem for hit in done.json["hits"])

    ingest("about 2018")
    assert found("year>=2020") == ["2", "3"]
    assert found("year=2020") == ["2"] and found("year=about 2018") == ["0"]
    assert found("code=002") == ["2"] and found("code=2") == []
    assert found(f"id={ids[1]}") == ["1"]
    assert found("day>=2022-01-01") == ["2", "3"] and found("day=2021-06-01") == ["1"]
    again = ingest(2022)  # a number now: the payload changes, the vectors stay
    assert (again["recaptioned"], again["segments"]) == (1, 0), again
    assert found("year>=2020") == ["0", "2", "3"]
