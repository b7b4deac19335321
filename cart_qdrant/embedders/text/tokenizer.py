"""The tokenizer of the text encoder."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

TOKENIZER = "tokenizer.json"
"""Its file, in the folder of a text encoder and in that of a trained model."""
MAX_TOKENS = 64
"""Tokens of a query or caption that are read; longer texts are cut."""


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in a folder; it cuts at `MAX_TOKENS` and does not pad."""
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    return tokenizer
