"""Importing a plugin without its host framework names the command that installs it."""

from __future__ import annotations

import sys
from importlib import import_module

import pytest

from cart_qdrant.errors import MissingExtraError

HOSTS = {
    "dspy": "dspy",
    "haystack": "haystack",
    "langchain": "langchain_core",
    "llamaindex": "llama_index",
    "mcp": "mcp",
}


@pytest.mark.parametrize(("extra", "host"), HOSTS.items())
@pytest.mark.parametrize("module", ["", ".retriever"])
def test_the_command_that_installs_the_host_is_named(
    monkeypatch: pytest.MonkeyPatch, extra: str, host: str, module: str
) -> None:
    plugin = f"cart_qdrant_{extra}"
    for name in [*sys.modules]:
        if name.split(".")[0] in (plugin, host):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, host, None)
    with pytest.raises(MissingExtraError, match="is not installed") as caught:
        import_module(plugin + (".server" if module and extra == "mcp" else module))
    assert caught.value.remedy == f'pip install "cart-qdrant[{extra}]"'
