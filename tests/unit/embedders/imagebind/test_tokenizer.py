"""The published vocabulary of CLIP gives the tokens that the package with it gives."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from cart_qdrant.embedders.imagebind.download import VOCABULARY_FILE, weights_folder
from cart_qdrant.embedders.imagebind.tokenizer import byte_characters, read_vocabulary
from cart_qdrant.errors import MismatchError

TEXTS = (
    "a dog surfing", "It's 12 o'clock, they're HERE!!", "", "  many \n\t spaces ", "a" * 400,
    "Ünïcödé 漢字 🙂", "<|endoftext|> x", "under_score #tag 3.14159",
)  # fmt: skip


def test_merges_are_applied_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.gz"
    path.write_bytes(gzip.compress(b"# a comment\nl o\nlo w</w>\no w</w>"))
    low, ow = 512 + 1, 512 + 2
    start, end = 512 + 3, 512 + 4
    found = read_vocabulary(path)(["LOW  ow", "", "low " * 100])
    assert found.shape == (3, 77)
    assert found[0, :5].tolist() == [start, low, ow, end, 0]
    assert found[1, :3].tolist() == [start, end, 0]
    assert found[2].tolist() == [start, *[low] * 75, end]


def test_every_byte_has_a_character_of_its_own() -> None:
    assert len(set(byte_characters())) == 256
    assert not any(one.isspace() for one in byte_characters())


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.gz"
    for content in (b"plain text", gzip.compress(b"head\none two three")):
        path.write_bytes(content)
        with pytest.raises(MismatchError, match="not CLIP's vocabulary"):
            read_vocabulary(path)


def test_both_ways_give_the_same_tokens() -> None:
    package = pytest.importorskip("instant_clip_tokenizer", reason="has no wheel for this Python")
    path = weights_folder() / VOCABULARY_FILE
    if not path.is_file():
        pytest.skip(f"CLIP's vocabulary is not at {path}")
    wanted = package.Tokenizer().tokenize_batch(list(TEXTS), context_length=77)
    np.testing.assert_array_equal(read_vocabulary(path)(TEXTS), wanted)
