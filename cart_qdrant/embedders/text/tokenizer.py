"""The text encoder's tokenizer."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

MAX_TOKENS = 64
"""Tokens of a query or caption that are read; the rest is cut."""


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a text encoder's folder; it cuts, and does not pad."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    return tokenizer
