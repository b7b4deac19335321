"""`cartq doctor --fix` beside other writers: what they activate while it waits is not undone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from qdrant_client import models

from cart_qdrant.index.folder import IndexFolder
from cart_qdrant.index.identify import refit
from cart_qdrant.index.index import Index
from cart_qdrant.index.points import read_vectors
from cart_qdrant.records import Modality, Segment
from tests.cli.conftest import Run
from tests.conftest import PatchEmbedder
from tests.unit.index.test_identify import pretend_trained, vectors


def make_index(root: Path) -> None:
    """An index of 30 items with identifiers."""
    with Index.create(root, PatchEmbedder()) as index, index.folder.lock():
        write(index, 30)
        refit(index)


def write(index: Index, count: int) -> None:
    index.store.upsert(
        [
            models.PointStruct(
                id=Segment(f"p{n}", Modality.IMAGE).id,
                vector={"media": x_D.tolist()},
                payload={"path": f"p{n}", "modality": "image", "hash": f"{n}"},
            )
            for n, x_D in enumerate(vectors(count))
        ]
    )


def test_what_ends_while_the_repair_waits_is_kept(tmp_path: Path) -> None:
    """A training ends between the start of the repair and the repair; before it, a file was broken
    that the new version no longer names."""
    root = tmp_path / ".cartq"
    make_index(root)
    folder = IndexFolder(root)
    before = folder.read().identifiers
    assert before is not None
    (root / before.trie.name).write_bytes(b"broken")
    with folder.lock():
        words = [sys.executable, "-m", "cart_qdrant_cli.main", "doctor", "--fix", "--json"]
        waiting = subprocess.Popen(
            [*words, "--index", str(root)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert waiting.stderr is not None
        assert "Waiting for another writer" in waiting.stderr.readline()
        with Index.open(root) as index:
            write(index, 40)
            refit(index)
            pretend_trained(index, vectors(5))
            trained = index.manifest
    out, error = waiting.communicate()
    assert waiting.returncode == 0, (out, error)
    after = folder.read()
    assert (after.identifiers, after.generator) == (trained.identifiers, trained.generator)
    assert after.identifiers is not None and after.identifiers.version == 2


def test_a_tree_that_lacks_points_is_built_again_and_the_generator_stays(
    tmp_path: Path, cartq: Run
) -> None:
    root = tmp_path / ".cartq"
    make_index(root)
    with Index.open(root) as index, index.folder.lock():
        generator = pretend_trained(index, vectors(5))
        index.store.delete([Segment("p3", Modality.IMAGE).id])
        assert len(read_vectors(index).ids) == 29
    found = cartq("doctor", "--index", root, "--json")
    assert found.code == 1 and "30 in the prefix tree" in " ".join(found.json["problems"])
    fixed = cartq("doctor", "--fix", "--index", root, "--json")
    assert fixed.code == 0 and fixed.json["problems"] == []
    after = IndexFolder(root).read()
    assert after.generator == generator
    assert after.identifiers is not None and after.identifiers.count == 29
    assert np.isclose(after.identifiers.unique_ratio, fixed.json["unique_ratio"], atol=1e-4)
