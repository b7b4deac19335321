"""MCP over HTTP: who may ask, under which name, and what strangers are told."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mcp", reason='not installed: pip install "cart-qdrant[mcp]"')

from starlette.testclient import TestClient

from cart_qdrant.errors import UsageError
from cart_qdrant.search.retriever import Retriever
from cart_qdrant_cli.main import main
from cart_qdrant_mcp import HttpOptions, make_server
from cart_qdrant_mcp.http import BearerToken, http_app

TOKEN = "0123456789abcdef0123"
HELLO = {
    "jsonrpc": "2.0", "id": 1, "method": "initialize",
    "params": {"protocolVersion": "2025-03-26", "capabilities": {},
               "clientInfo": {"name": "test", "version": "1"}},
}  # fmt: skip


@pytest.fixture(scope="module")
def retriever(small_index: Path) -> Iterator[Retriever]:
    with Retriever.open(small_index) as one:
        yield one


def ask(retriever: Retriever, options: HttpOptions, **headers: str) -> int:
    """Status of the answer to a first request with these headers."""
    accept = {"Accept": "application/json, text/event-stream"}
    app = http_app(make_server(retriever), options)
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    with TestClient(app, base_url="http://127.0.0.1:8000") as client:
        return client.post("/mcp", json=HELLO, headers={**accept, **given}).status_code


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": f"Bearer {TOKEN}"}, 200),
        ({"Authorization": f"bearer {TOKEN}"}, 200),
        ({"Authorization": f"Bearer {TOKEN}x"}, 401),
        ({"Authorization": f"Bearer {TOKEN[:-1]}"}, 401),
        ({"Authorization": "Bearer "}, 401),
        ({"Authorization": f"Basic {TOKEN}"}, 401),
        ({"Authorization": TOKEN}, 401),
        ({"X_Token": TOKEN}, 401),
    ],
)
def test_a_token_is_asked_of_each_request(
    retriever: Retriever, headers: dict[str, str], status: int
) -> None:
    assert ask(retriever, HttpOptions(token=TOKEN), **headers) == status


def test_two_tokens_are_none() -> None:
    def never(*_: Any) -> None:
        raise AssertionError

    right = (b"authorization", f"Bearer {TOKEN}".encode())
    app = BearerToken(never, TOKEN)
    assert app._has_token({"headers": [right]})
    assert not app._has_token({"headers": [right, right]})
    assert not app._has_token({"headers": []})


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "127.0.0.1:8000"}, 200),
        ({"Host": "localhost"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "media.example"}, 200),
        ({"Host": "media.example:8443"}, 200),
        ({"Host": "evil.example"}, 421),
        ({"Host": "media.example.evil.example"}, 421),
        ({"Host": "localhost.evil.example:8000"}, 421),
        ({"Origin": "http://localhost:3000"}, 200),
        ({"Origin": "https://media.example"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_pages_of_others_are_refused(
    retriever: Retriever, headers: dict[str, str], status: int
) -> None:
    assert ask(retriever, HttpOptions(allowed_hosts=("media.example",)), **headers) == status


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.9.9.9"])
def test_this_machine_needs_no_token(host: str) -> None:
    assert HttpOptions(host=host).is_near


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"host": "0.0.0.0"}, "no token"),
        ({"host": "::"}, "no token"),
        ({"host": "192.168.1.7"}, "no token"),
        ({"host": "media.example"}, "no token"),
        ({"host": "localhost.evil.example"}, "no token"),
        ({"host": "0.0.0.0", "token": TOKEN}, "--allowed-host"),
        ({"token": ""}, "0 characters"),
        ({"token": "short"}, "5 characters"),
        ({"token": "ü" * 20}, "ASCII"),
        ({"token": "a b" * 10}, "blanks"),
        ({"allowed_hosts": ("http://media.example",)}, "without http://"),
        ({"allowed_hosts": ("*",)}, "must be a host"),
    ],
)
def test_what_would_let_others_in_is_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told) as refused:
        HttpOptions(**given)
    assert TOKEN not in str(refused.value)


def test_other_addresses_have_their_names() -> None:
    there = HttpOptions(host="192.168.1.7", token=TOKEN)
    assert there.named_hosts == ("192.168.1.7",) and TOKEN not in repr(there)
    anywhere = HttpOptions(host="0.0.0.0", token=TOKEN, allowed_hosts=("m.example:8443",))
    assert anywhere.named_hosts == ("m.example:8443",)
    assert HttpOptions(host="fe80::1", token=TOKEN).named_hosts == ("[fe80::1]",)


@pytest.mark.parametrize("words", [["--host", "0.0.0.0"], ["--token-file", "{file}"]])
def test_the_command_refuses_before_it_opens_anything(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.delenv("CARTQ_MCP_TOKEN", raising=False)
    (tmp_path / "token").write_bytes(b"\xff short\n")
    given = [word.format(file=tmp_path / "token") for word in words]
    monkeypatch.setattr(
        sys, "argv", ["cartq", "mcp", "--http", *given, "--index", str(tmp_path / "none")]
    )
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code == 2 and "openssl rand" in capsys.readouterr().err
