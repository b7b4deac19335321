"""`cartq attach` and `cartq sync` on a folder of the embedded engine that others filled."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qdrant_edge as edge

from cart_qdrant.embedders.registry import lite_available
from cart_qdrant_cli import main as program

WORDS = ["dog", "cat", "boat", "bird", "truck"]
COUNT = 40

pytestmark = pytest.mark.skipif(
    not lite_available(), reason='not installed: pip install "cart-qdrant[lite]"'
)


def update(folder: Path, operation: Any) -> None:
    shard = edge.EdgeShard.load(str(folder))
    shard.update(operation)
    shard.flush()
    shard.close()


def rows(begin: int, end: int) -> list[Any]:
    rng = np.random.default_rng(begin)
    return [
        edge.Point(
            n, rng.normal(size=8).tolist(), {"file": f"{n}.mp4", "text": f"a {WORDS[n % 5]} {n}"}
        )
        for n in range(begin, end)
    ]


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Their folder; the working directory is an empty one beside it."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    params = edge.EdgeVectorParams(8, edge.Distance.Cosine)
    edge.EdgeShard.create(str(folder), edge.EdgeConfig(vectors={"": params})).close()
    update(folder, edge.UpdateOperation.upsert_points(rows(0, COUNT)))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    for name in [name for name in os.environ if name.startswith("CARTQ_")]:
        monkeypatch.delenv(name)
    return folder


def cartq(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit code, output and messages of the program in this process."""
    sys.argv = ["cartq", *map(str, words)]
    with pytest.raises(SystemExit) as stop:
        program.main()
    out, err = capsys.readouterr()
    assert isinstance(stop.value.code, int)
    return stop.value.code, out, err


def test_attach_search_and_sync(theirs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = cartq(capsys, "attach", "--path", theirs, "--caption-vectors", "--json")
    report = json.loads(out)
    assert code == 0
    assert (report["items"], report["new"], report["captions"]) == (COUNT, COUNT, COUNT)
    how = report["attachment"]
    assert (how["path"], how["captions"], how["modality"]) == ("file", ["text"], "video")
    code, out, _ = cartq(capsys, "search", "a boat 12", "--json", "-k", "1")
    (hit,) = json.loads(out)["hits"]
    assert (hit["path"], hit["caption"], hit["modality"]) == ("12.mp4", "a boat 12", "video")
    assert hit["payload"]["file"] == "12.mp4"
    update(theirs, edge.UpdateOperation.upsert_points(rows(COUNT, COUNT + 5)))
    update(theirs, edge.UpdateOperation.delete_points([0, 1]))
    code, out, err = cartq(capsys, "sync")
    assert code == 0 and "43 items: 5 new, 2 deleted, 5 captions embedded" in out
    assert "cartq train" in out and not err.strip().startswith("cartq:")
    code, out, _ = cartq(capsys, "doctor", "--json")
    problems = json.loads(out)["problems"]
    assert (code == 0) == (not problems)
    code, out, _ = cartq(capsys, "doctor", "--fix", "--json")
    assert code == 0 and json.loads(out)["items"] == COUNT + 3
    assert cartq(capsys, "info", "--json")[0] == 0


def test_wrong_use_is_told(theirs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = cartq(capsys, "attach", "--path", theirs, "--url", "http://localhost:1")
    assert code == 2 and "Either --url or --path" in err
    code, _, err = cartq(capsys, "attach", "--url", "http://localhost:1")
    assert code == 2 and "--collection" in err
    code, _, err = cartq(capsys, "attach", "--path", theirs, "--field", "captions")
    assert code == 2 and "no `=`" in err
    code, _, err = cartq(capsys, "attach", "--path", theirs, "--vector", "image")
    assert code == 2 and "8-d Cosine" in err and "--vector" in err
    code, _, err = cartq(capsys, "sync")
    assert code == 3 and "no index" in err
    assert cartq(capsys, "attach", "--path", theirs)[0] == 0
    code, _, err = cartq(capsys, "attach", "--path", theirs)
    assert code == 2 and "cartq sync" in err
    code, _, err = cartq(capsys, "ingest", ".")
    assert code == 2 and "filled by others" in err
    code, _, err = cartq(capsys, "caption")
    assert code == 2 and "filled by others" in err
    theirs.rename(theirs.with_name("elsewhere"))
    code, _, err = cartq(capsys, "search", "a dog")
    assert code == 3 and "no longer at" in err and "cartq attach" in err and "elete" not in err
