"""No command touches files that are not of an index, whatever `--index` or an output names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cart_qdrant.embedders.registry import lite_available
from cart_qdrant_cli import main as program
from tests import media_factory as media
from tests.conftest import tree_of

FILES = (
    ".env", ".git/HEAD", ".git/objects/aa/bb", ".ssh/id", "embedder.py", "embedder/model.py",
    "items-2024.csv", "trie-tutorial.md", "generator-x/a.py", "identifiers-old.safetensors",
    "lock", "store/shop.sql", "store.json", "work/plan.md", "checked.json", "notes.txt",
)  # fmt: skip
NOT_OURS = frozenset(FILES) - {"lock", "store.json", "checked.json"}
"""Names that no file of an index has."""
COMMANDS = (
    ("ingest", "{media}", "--embedder", "lite"),
    ("ingest", "{media}", "--embedder", "lite", "--prune", "--dry-run"),
    ("attach", "--path", "{theirs}"),
    ("sync",),
    ("caption", "--captioner", "labels"),
    ("train", "--profile", "quick"),
    ("doctor", "--fix"),
    ("migrate", "--to", ":memory:"),
    ("restore", "{backup}"),
    ("search", "a dog"),
)

pytestmark = pytest.mark.skipif(
    not lite_available(), reason='not installed: pip install "cart-qdrant[lite]"'
)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Somebody's project, whose files are named as ours might be."""
    folder = tmp_path / "project"
    for name in FILES:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"mine: {name}")
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    media.write_image(folder / "a.png", media.scene(1))
    return folder


def cartq(*words: object) -> int:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr("sys.argv", ["cartq", *map(str, words)])
        program.main()
    assert isinstance(stop.value.code, int)
    return stop.value.code


@pytest.mark.parametrize("foreign_manifest", [False, True])
@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: " ".join(words))
def test_a_folder_of_others_is_refused_and_stays_as_it_is(
    command: tuple[str, ...], foreign_manifest: bool, project: Path, photos: Path, small_index: Path
) -> None:
    if foreign_manifest:
        (project / "manifest.json").write_text(json.dumps({"name": "my web app"}))
    backup = photos.parent / "backup.tar.gz"
    if "{backup}" in command:
        assert cartq("backup", backup, "--index", small_index) == 0
    before = tree_of(project)
    places = {"media": photos, "backup": backup, "theirs": small_index / "store"}
    code = cartq(*(word.format(**places) for word in command), "--index", project)
    dry = "--dry-run" in command and not foreign_manifest
    assert code in ((0,) if dry else (2, 3))
    assert tree_of(project) == before


@pytest.mark.slow
def test_an_index_lies_beside_the_files_of_others_under_its_own_name(
    project: Path, photos: Path
) -> None:
    before = tree_of(project)
    inside = project / ".cartq"
    assert cartq("ingest", photos, "--embedder", "lite", "--index", inside) == 0
    assert cartq("doctor", "--fix", "--index", inside) in (0, 1)
    assert cartq("ingest", photos, "--index", inside) == 0
    after = tree_of(project)
    assert {name: after[name] for name in before} == before
    assert all(name.startswith(".cartq/") for name in after.keys() - before.keys())


@pytest.mark.slow
def test_what_a_user_puts_into_an_index_stays(photos: Path, tmp_path: Path) -> None:
    root = tmp_path / "index"
    assert cartq("ingest", photos, "--embedder", "lite", "--index", root) == 0
    for name in NOT_OURS:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"mine: {name}")
    before = {name: text for name, text in tree_of(root).items() if name in NOT_OURS}
    media.write_image(photos / "b.png", media.scene(2))
    assert cartq("ingest", photos, "--index", root) == 0
    after = tree_of(root)
    assert {name: after[name] for name in before} == before


def test_no_output_replaces_a_file_of_another_kind(
    project: Path, small_index: Path, photos: Path
) -> None:
    before = tree_of(project)
    assert cartq("backup", project / "notes.txt", "--index", small_index) == 2
    assert cartq("backup", project / "store", "--index", small_index) == 2
    assert cartq("demo", "--folder", project) == 2
    assert tree_of(project) == before
    assert cartq("backup", photos / "b.tar.gz", "--index", small_index) == 0
    assert cartq("backup", photos / "b.tar.gz", "--index", small_index) == 0
