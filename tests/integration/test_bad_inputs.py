"""One of each bad input among good files: the run ends, names them, and stores the good ones."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cart_qdrant.errors import CaptionError
from cart_qdrant.index.identify import load_trie
from cart_qdrant.index.ingest import IngestReport
from cart_qdrant.index.library import Library
from tests import media_factory as make
from tests.conftest import PatchEmbedder, points

Run = Callable[..., Any]

NOTED = {
    "truncated mp4": "truncated",
    "truncated jpg": "truncated",
    "corrupt exif": "corrupt EXIF",
}
"""Usable in part: stored, with a warning that says why."""
WHOLE = {"newline in name"}
"""Unusual, but sound."""
FAILED = {
    "empty mp4": "0 bytes",
    "empty jpg": "0 bytes",
    "empty wav": "0 bytes",
    "text named mp4": "no known media",
    "mp4 without index": "truncated",
    "header of a jpg": "",  # truncated or undecodable, by the version of the decoder
    "decompression bomb": "900,000,000 pixels",
    "video without frames": "",
    "black video": "black throughout",
    "silent audio": "silent throughout",
    "non-UTF-8 name": "not UTF-8",
    "folder loop": "back to a folder above",
    "link to itself": "circle",
    "dangling link": "leads to nothing",
}


@dataclass(frozen=True, slots=True)
class Mixed:
    """A folder of good and bad files, which no test changes."""

    folder: Path
    good: list[str]
    bad: dict[str, Path]

    def rel(self, kind: str) -> str:
        """How a report names a bad input."""
        name = os.path.relpath(self.bad[kind], self.folder.parent)
        return os.fsencode(name).decode("utf-8", "backslashreplace")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Mixed:
    folder = tmp_path_factory.mktemp("mixed") / "m"
    bad = make.bad_inputs(folder / "bad", hours=0.1)
    good = [make.write_image(folder / f"good-{n}.png", make.scene(n)) for n in range(3)]
    good.append(make.write_audio(folder / "good.wav", make.tone(2.0)))
    good.append(make.write_video(folder / "good.mp4", make.moving(9, 16)))
    return Mixed(folder, [f"m/{path.name}" for path in good], bad)


def test_every_kind_of_bad_input_is_expected_here(mixed: Mixed) -> None:
    assert set(mixed.bad) == {*NOTED, *WHOLE, *FAILED}


def test_bad_files_are_named_and_good_ones_stored(
    mixed: Mixed, open_library: Run, ingest: Run
) -> None:
    library: Library = open_library(mixed.folder.parent / ".first")
    report: IngestReport = ingest(library, mixed.folder)

    failed = {failure.path: failure.reason for failure in report.failed}
    assert len(failed) == len(report.failed)
    assert set(failed) == {mixed.rel(kind) for kind in FAILED}
    for kind, reason in FAILED.items():
        assert failed[mixed.rel(kind)] and reason in failed[mixed.rel(kind)]

    warned = {failure.path: failure.reason for failure in report.warnings}
    assert set(warned) == {mixed.rel(kind) for kind in NOTED}
    for kind, reason in NOTED.items():
        assert reason in warned[mixed.rel(kind)]

    stored = {point["path"] for point in points(library).values()}
    assert stored == {*mixed.good, *(mixed.rel(kind) for kind in (*NOTED, *WHOLE))}
    trie = load_trie(library)
    assert trie is not None and len(trie) == len(points(library)) == report.segments
    json.dumps(report.to_json()).encode()  # every name can be printed


def test_a_second_run_names_them_again_and_embeds_nothing(
    mixed: Mixed, open_library: Run, ingest: Run
) -> None:
    embedder = PatchEmbedder()
    library = open_library(mixed.folder.parent / ".second", embedder)
    first = ingest(library, mixed.folder)
    before, embedder.calls = points(library), []
    again = ingest(library, mixed.folder)
    assert sorted(f.path for f in again.failed) == sorted(f.path for f in first.failed)
    assert embedder.calls == [] and points(library) == before
    assert again.unchanged == len({point["path"] for point in before.values()})


def test_nothing_but_bad_files(tmp_path: Path, open_library: Run, ingest: Run) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "text.mp4").write_text("no video")
    (folder / "empty.jpg").touch()
    library = open_library(tmp_path / ".cartq")
    report = ingest(library, folder)
    assert [f.path for f in report.failed] == ["m/empty.jpg", "m/text.mp4"]
    assert (report.segments, points(library), library.manifest.identifiers) == (0, {}, None)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.jsonl", b'{"file_name": "good.png", "caption": "a dog"}\n{"file_name": \n'),
        ("metadata.csv", b"\xff\xfe\x00no,table\x00"),
        ("good.json", b"{not json"),
        ("good.srt", b"1\n00:00:99,000 --> nonsense\ntext\n"),
    ],
)
def test_a_bad_caption_file_is_named_and_its_media_stored(
    tmp_path: Path, open_library: Run, ingest: Run, name: str, content: bytes
) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    make.write_image(folder / "good.png")
    (folder / name).write_bytes(content)
    library = open_library(tmp_path / ".cartq")
    report = ingest(library, folder)
    assert any(name in failure.path for failure in (*report.failed, *report.warnings))
    assert [point["path"] for point in points(library).values()] == ["m/good.png"]


def test_a_named_caption_table_that_cannot_be_read_stops_the_run(
    tmp_path: Path, open_library: Run, ingest: Run
) -> None:
    make.write_image(tmp_path / "a.png")
    (tmp_path / "table.csv").write_text("nothing,of,use\n1,2,3\n")
    library = open_library(tmp_path / ".cartq")
    with pytest.raises(CaptionError, match=r"table\.csv"):
        ingest(library, tmp_path / "a.png", captions=tmp_path / "table.csv")
    assert points(library) == {}
