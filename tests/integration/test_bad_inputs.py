"""Every kind of bad input in one folder: the run ends, each is named, the good ones are stored."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cart_qdrant.embedders.registry import lite_available
from tests import media_factory as media

ROOT = Path(__file__).resolve().parents[2]
USABLE = {"truncated jpg", "truncated mp4", "corrupt exif", "newline in name"}
LIMIT_MB = 2000

RUN = """
import json, resource, sys
from pathlib import Path
from cart_qdrant.embedders.registry import open_embedder
from cart_qdrant.index.ingest import Ingest, IngestOptions
from cart_qdrant.index.index import Index

folder = Path(sys.argv[1])
with Index.create(folder / ".cartq", open_embedder("lite")) as index, index.folder.lock():
    report = Ingest(index, IngestOptions(paths=[folder / "media"])).run()
    stored = sorted({r.payload["path"] for r in index.store.scroll(with_payload=["path"])})
peak = int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]) // 1024
print(json.dumps({"report": report.to_json(), "stored": stored, "peak_mb": peak}))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path], Any]:
    if not lite_available():
        pytest.skip('the lite embedder is not installed: pip install "cart-qdrant[lite]"')
    folder = tmp_path_factory.mktemp("bad")
    bad = media.bad_inputs(folder / "media")
    for n in range(3):
        media.write_image(folder / "media" / f"good-{n}.png", media.scene(n))
    media.write_audio(folder / "media" / "good.wav", media.tone(2.0))
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder, bad, json.loads(done.stdout.splitlines()[-1])


def shown(folder: Path, path: Path) -> str:
    name = path.relative_to(folder).as_posix()
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def test_good_files_are_stored(made: Any) -> None:
    folder, bad, found = made
    good = {"media/good-0.png", "media/good-1.png", "media/good-2.png", "media/good.wav"}
    usable = {shown(folder, bad[kind]) for kind in USABLE}
    assert set(found["stored"]) == good | usable
    assert found["report"]["identifiers"]["count"] >= len(good | usable)


def test_each_bad_file_is_named_with_its_reason(made: Any) -> None:
    folder, bad, found = made
    failed = {row["path"]: row["reason"] for row in found["report"]["failed"]}
    for kind, path in bad.items():
        name = shown(folder, path)
        if kind in USABLE:
            assert name not in failed, (kind, failed.get(name))
        else:
            assert failed.get(name), f"{kind} is not reported"
            assert "unexpected" not in failed[name], (kind, failed[name])
    assert len(failed) == len(bad) - len(USABLE)


def test_damage_that_was_survived_is_noted(made: Any) -> None:
    folder, bad, found = made
    noted = {row["path"] for row in found["report"]["warnings"]}
    for kind in ("truncated jpg", "truncated mp4"):
        assert shown(folder, bad[kind]) in noted, kind


def test_memory_stays_small(made: Any) -> None:
    assert made[2]["peak_mb"] < LIMIT_MB
