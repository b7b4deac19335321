"""A missing optional dependency is named, with the command that installs it."""

from __future__ import annotations

import sys

import pytest

from cart_qdrant.errors import MissingExtraError
from cart_qdrant.extras import missing, require


def test_names_what_is_missing_and_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError) as caught:
        require("media", "av", "json")
    assert caught.value.what.startswith("av is not installed")
    assert caught.value.remedy == 'pip install "cart-qdrant[media]"'


def test_all_of_an_extra_is_checked_where_no_package_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert missing("media") == ["av", "PIL"]
    with pytest.raises(MissingExtraError, match="av, PIL are not installed"):
        require("media")


def test_imports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "this", raising=False)
    require("media", "this")
    assert "this" not in sys.modules
