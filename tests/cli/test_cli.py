"""The program as a user meets it: its surface, whole processes, and runs on the real embedder.

Exit codes and JSON objects of each command are in `test_contract.py`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
from hypothesis import given
from hypothesis import strategies as st

from cart_qdrant.embedders.registry import NAMES, lite_available
from cart_qdrant.errors import MissingExtraError
from cart_qdrant.index.folder import IndexFolder
from cart_qdrant.index.index import Index
from cart_qdrant_cli import demo_media
from cart_qdrant_cli import ingest as ingest_command
from cart_qdrant_cli import main as program
from cart_qdrant_cli.output import plain
from tests import media_factory as media
from tests.conftest import copy_of, points, tree_of

needs_lite = pytest.mark.skipif(
    not lite_available(), reason='not installed: pip install "cart-qdrant[lite]"'
)
HEAVY = ("torch", "av", "PIL", "qdrant_client", "qdrant_edge", "sklearn", "numpy")
INDEX = {"--index", "--url", "--collection", "--verbose"}
FIND = {"--filter", "--modality"}
COMPUTE = {"--device", "--dtype"}
SURFACE = {
    "ingest": INDEX
    | COMPUTE
    | {"--embedder", "--vectors", "--captions", "--no-captions", "--exclude", "--prune"}
    | {"--model", "--max-shot", "--min-shot", "--shot-threshold", "--audio-window"}
    | {"--force", "--verify", "--follow", "--dry-run", "--json"},
    "rm": INDEX | {"--dry-run", "--yes", "--json"},
    "attach": INDEX
    | {"--vector", "--modality", "--field", "--embedder", "--caption-vectors", "--key", "--path"}
    | {"--json"},
    "sync": INDEX | {"--verify", "--json"},
    "caption": INDEX | COMPUTE | {"--captioner", "--model", "--every", "--limit", "--json"},
    "train": INDEX
    | COMPUTE
    | {"--profile", "--seed", "--no-resume", "--identifiers-from", "--json"},
    "search": INDEX
    | FIND
    | {"-k", "--offset", "--lane", "--group-by", "--min-confidence", "--min-similarity"}
    | {"--explain", "--html", "--json"}
    | {"--mix", "--image", "--audio", "--like", "--minus"},
    "backup": INDEX | {"--json"},
    "restore": INDEX | {"--model", "--json"},
    "migrate": INDEX | {"--to", "--to-collection", "--embedded", "--json"},
    "mcp": INDEX | {"--http", "--host", "--port", "--token-file", "--allowed-host", "--field"},
    "eval": INDEX
    | FIND
    | {"--lane", "-k", "--json"}
    | {"--ablate", "--out", "--seeds", "--pairs"}
    | {"--embedders", "--granularity", "--train"},
    "doctor": INDEX | {"--fix", "--json"},
    "info": INDEX | {"--json"},
    "models": {"--verbose", "--json"},
    "demo": {"--folder", "--keep", "--verbose"},
}
"""The options of each command. Taking one away is a breaking change: see CHANGELOG.md."""


def environment() -> dict[str, str]:
    """This process's environment without what names an index."""
    return {k: v for k, v in os.environ.items() if not k.startswith("CARTQ_")}


def cartq(*words: object) -> subprocess.CompletedProcess[str]:
    """Run the program in a process of its own."""
    command = [sys.executable, "-m", "cart_qdrant_cli.main", *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment(), check=False, timeout=120
    )


def run_here(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """Run the program in this process; returns its exit code."""
    for name in ("CARTQ_INDEX", "CARTQ_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "argv", ["cartq", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        program.main()
    assert isinstance(stop.value.code, int)
    return stop.value.code


@pytest.fixture
def own_index(small_index: Path, small_media: Path, tmp_path: Path) -> Path:
    """A copy of the small index and its media that a test may change."""
    shutil.copytree(small_media, tmp_path / "media")
    return copy_of(small_index, tmp_path / ".cartq")


def contents(index: Path) -> tuple[dict[str, str], dict[str, str]]:
    """The index's files but the engine's own, which opening tidies, and its points."""
    files = {k: v for k, v in tree_of(index).items() if not k.startswith("store/")}
    with Index.open(index) as opened:
        return files, {key: repr(point) for key, point in points(opened).items()}


def test_the_surface_is_the_contracts() -> None:
    group = typer.main.get_command(program.app)
    commands = group.commands  # type: ignore[attr-defined]
    found = {
        name: {
            max(parameter.opts, key=len)
            for parameter in command.params
            if parameter.param_type_name == "option"
        }
        for name, command in commands.items()
    }
    assert found == SURFACE


def test_help_of_any_command_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom cart_qdrant_cli import main\n"
        f"for command in {[[], *([name] for name in SURFACE)]!r}:\n"
        "    sys.argv = ['cartq', *command, '--help']\n"
        "    try:\n        main.main()\n"
        "    except SystemExit as stop:\n        assert stop.code == 0, command\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=False
    )
    assert (done.returncode, done.stderr.strip()) == (0, "[]")


@needs_lite
@pytest.mark.slow
def test_a_first_ingest_with_lite_is_one_object_on_stdout(tmp_path: Path) -> None:
    folder = tmp_path / "media"
    folder.mkdir()
    for n in range(3):
        media.write_image(folder / f"{n}.png", media.scene(n))
    media.write_audio(folder / "bell.wav", media.tone(2.0))
    (folder / "text.mp4").write_text("not a video\n" * 50)
    done = cartq("ingest", folder, "--index", tmp_path / ".cartq", "--json")
    assert done.returncode == 1, done.stderr
    assert len(done.stdout.splitlines()) == 1
    found = json.loads(done.stdout)
    assert (found["segments"], [row["path"] for row in found["failed"]]) == (4, ["media/text.mp4"])
    assert "Traceback" not in done.stderr
    assert "lite" in done.stderr  # which embedder `auto` took


def test_a_dry_run_on_an_index_changes_nothing(
    own_index: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = own_index.parent / "media"
    media.write_image(folder / "new.png", media.scene(99))
    (folder / "bell.wav").unlink()
    before = contents(own_index)
    words = ["ingest", folder, "--index", own_index, "--prune"]
    assert run_here(monkeypatch, *words, "--dry-run", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert "media/new.png" in found["would_ingest"]
    assert found["would_remove"] == ["media/bell.wav"]
    assert contents(own_index) == before


def test_prune_removes_what_is_gone_and_only_that(
    own_index: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (own_index.parent / "media" / "bell.wav").unlink()
    words = ["ingest", own_index.parent / "media", "--index", own_index, "--json"]
    assert run_here(monkeypatch, *words) == 0
    assert json.loads(capsys.readouterr().out)["removed"] == 0
    assert run_here(monkeypatch, *words, "--prune") == 0
    assert json.loads(capsys.readouterr().out)["removed"] == 1
    assert run_here(monkeypatch, "info", "--index", own_index, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["files"], found["segments"]["audio"], found["segments"]["image"]) == (11, 1, 10)


def test_a_locked_index_is_3_and_named(own_index: Path) -> None:
    with IndexFolder(own_index).lock():
        done = cartq("ingest", own_index.parent / "media", "--index", own_index)
    assert (done.returncode, done.stdout) == (3, "")
    assert str(own_index) in done.stderr
    assert "Traceback" not in done.stderr


def test_info_counts_files_and_segments_of_each_kind(
    small_index: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_here(monkeypatch, "info", "--index", small_index, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["files"] == 12
    assert found["segments"]["image"] == 10
    assert found["identifiers"]["count"] == sum(found["segments"].values())
    assert found["embedder"]["name"] == "lite"
    assert sum(found["bytes"].values()) > 0
    assert run_here(monkeypatch, "info", "--index", small_index) == 0
    shown = capsys.readouterr().out
    assert "lite" in shown
    assert "cartq train" in shown  # what to do about the missing generator


def test_doctor_shows_a_row_a_level_and_its_verdict(
    small_index: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run_here(monkeypatch, "doctor", "--index", small_index, "--json")
    found = json.loads(capsys.readouterr().out)
    assert code == (0 if found["passed"] else 1)
    for level in found["levels"]:
        assert level["used"] + level["dead"] == level["codes"]
        assert 0 <= level["entropy"] <= 1
    assert run_here(monkeypatch, "doctor", "--index", small_index) == code
    shown = capsys.readouterr().out
    assert "coarse" in shown
    assert ("PASS" if found["passed"] else "FAIL") in shown


def test_doctor_mends_tree_and_table_without_the_generator_being_lost(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = copy_of(trained, tmp_path / ".cartq")
    before = IndexFolder(root).read()
    run_here(monkeypatch, "search", "a dog", "--index", root, "--json")
    wanted = json.loads(capsys.readouterr().out)["hits"]
    assert before.identifiers is not None and before.identifiers.items is not None
    for part in (before.identifiers.trie, before.identifiers.items):
        (root / part.name).write_bytes(b"changed")
    assert run_here(monkeypatch, "doctor", "--index", root, "--json") == 1
    assert json.loads(capsys.readouterr().out)["broken"].keys() == {"trie", "items"}
    run_here(monkeypatch, "doctor", "--fix", "--index", root, "--json")
    assert json.loads(capsys.readouterr().out)["broken"] == {}
    after = IndexFolder(root).read()
    assert (after.generator, after.identifiers) == (before.generator, before.identifiers)
    run_here(monkeypatch, "search", "a dog", "--index", root, "--json")
    assert json.loads(capsys.readouterr().out)["hits"] == wanted


def test_models_lists_every_embedder_that_can_be_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_here(monkeypatch, "models", "--json") == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["models"]}
    assert set(rows) == set(NAMES) - {"auto"}
    assert rows["lite"]["installed"] is lite_available()


def test_a_stopped_run_is_130_and_says_that_it_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_args: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ingest_command, "run_ingest", stop)
    assert run_here(monkeypatch, "ingest", tmp_path, "--index", tmp_path / ".cartq") == 130
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Run the same command again" in shown.err
    assert "Traceback" not in shown.err


def test_a_reader_that_goes_away_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "cart_qdrant_cli.main", "models"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        check=False,
    )
    os.close(writer)
    assert done.stderr == ""


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that stands in for the demo's wheels."""
    source = tmp_path / "wheels"
    source.mkdir()
    for item in demo_media.ITEMS:
        (source / item.name).write_bytes(item.name.encode())
    monkeypatch.setattr(demo_media, "locate", lambda item: source / item.name)
    yield source


def test_the_demos_media_are_the_same_when_copied_again(wheels: Path, tmp_path: Path) -> None:
    folder = tmp_path / "media"
    assert demo_media.copy_media(folder) == len(demo_media.ITEMS)
    first = tree_of(folder)
    (folder / demo_media.ITEMS[0].name).unlink()
    (folder / demo_media.ITEMS[1].name).write_bytes(b"cut")
    demo_media.copy_media(folder)
    assert tree_of(folder) == first


def test_a_missing_wheel_is_named_with_the_pip_line_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deleted = demo_media.Item(("no_such_package", "data"), "cat.png", "animal")
    monkeypatch.setattr(demo_media, "ITEMS", (deleted,))
    with pytest.raises(MissingExtraError, match=r"pip install .cart-qdrant\[demo\]") as found:
        demo_media.copy_media(tmp_path / "media")
    assert "no_such_package" in str(found.value)
    assert not (tmp_path / "media").exists()


@given(st.text(st.characters()))  # surrogates too: names that are not UTF-8
def test_plain_text_is_one_printable_line_and_printable_text_stays(text: str) -> None:
    shown = plain(text)
    assert shown.isprintable()
    assert shown.encode("utf-8").decode() == shown
    assert plain(shown) == shown
