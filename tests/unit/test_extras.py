"""A missing optional dependency is named, with the command that installs it."""

from __future__ import annotations

import sys

import pytest

from cart_qdrant.errors import MissingExtraError
from cart_qdrant.extras import require


def test_names_what_is_missing_and_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError) as caught:
        require("media", "av", "json")
    assert caught.value.what.startswith("av is not installed")
    assert caught.value.remedy == 'pip install "cart-qdrant[media]"'


def test_imports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "this", raising=False)
    require("media", "this")
    assert "this" not in sys.modules
