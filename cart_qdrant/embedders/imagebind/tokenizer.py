"""CLIP's byte pairs, which ImageBind reads text by.

The package `instant-clip-tokenizer` holds the vocabulary, but has no wheels for Python 3.12 and
newer. There `cartq models pull imagebind` fetches the published vocabulary, which the package
`tokenizers` reads.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cart_qdrant.embedders.imagebind.config import CONTEXT
from cart_qdrant.embedders.imagebind.download import (
    PULL,
    VOCABULARY_FILE,
    needs_vocabulary,
    weights_folder,
)
from cart_qdrant.errors import IndexMissingError, MismatchError

MERGES = 49152 - 256 - 2
"""Merges that CLIP was trained with; the published file holds more."""
START, END = "<|startoftext|>", "<|endoftext|>"
# Contractions, words, single digits, and runs of other characters.
_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"

IntMatrix = npt.NDArray[np.int64]
Tokenize = Callable[[Sequence[str]], IntMatrix]
"""Texts to token ids (B, 77): start, byte pairs, end, then zeros; longer texts are cut."""


@cache
def clip_tokenizer() -> Tokenize:
    """The tokenizer, loaded once.

    Raises:
        IndexMissingError: The vocabulary is not here.
    """
    if not needs_vocabulary():
        from instant_clip_tokenizer import Tokenizer

        packaged = Tokenizer()
        return lambda texts: np.asarray(
            packaged.tokenize_batch(list(texts), context_length=CONTEXT), dtype=np.int64
        )
    path = weights_folder() / VOCABULARY_FILE
    if not path.is_file():
        raise IndexMissingError(f"CLIP's vocabulary is not at {path}.", f"Get it: `{PULL}`.")
    return read_vocabulary(path)


def byte_characters() -> list[str]:
    """A printable character for each byte, in CLIP's order of its vocabulary."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return [*map(chr, plain), *(chr(256 + n) for n in range(len(others)))]


def read_vocabulary(path: Path) -> Tokenize:
    """The tokenizer of the published vocabulary: a gzip file with a merge a line.

    Raises:
        MismatchError: The file is not that of CLIP.
    """
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import BPE
    from tokenizers.normalizers import Lowercase, Replace
    from tokenizers.normalizers import Sequence as Steps
    from tokenizers.pre_tokenizers import ByteLevel, Split
    from tokenizers.pre_tokenizers import Sequence as Cuts

    try:
        lines = gzip.decompress(path.read_bytes()).decode().split("\n")[1 : 1 + MERGES]
        merges = [(left, right) for left, right in map(str.split, lines)]
    except (OSError, EOFError, ValueError) as error:
        raise MismatchError(
            f"{path} is not CLIP's vocabulary: {error}.", f"Get it again: `{PULL}`."
        ) from error
    pieces = byte_characters()
    pieces += [piece + "</w>" for piece in pieces]
    pieces += ["".join(pair) for pair in merges]
    ids = {piece: n for n, piece in enumerate([*pieces, START, END])}
    tokenizer = Tokenizer(BPE(ids, merges, end_of_word_suffix="</w>"))
    tokenizer.normalizer = Steps([Replace(Regex(r"\s+"), " "), Lowercase()])
    tokenizer.pre_tokenizer = Cuts(
        [
            Split(Regex(_PATTERN), behavior="removed", invert=True),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )

    def tokenize(texts: Sequence[str]) -> IntMatrix:
        out = np.zeros((len(texts), CONTEXT), dtype=np.int64)
        for row, found in zip(out, tokenizer.encode_batch(list(texts)), strict=True):
            pairs = [ids[START], *found.ids[: CONTEXT - 2], ids[END]]
            row[: len(pairs)] = pairs
        return out

    return tokenize
