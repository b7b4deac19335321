"""Addresses of servers: one form for one server, no password, and a remedy for what is none."""

from __future__ import annotations

import warnings

import pytest

from cart_qdrant.errors import UsageError, hide_password
from cart_qdrant.storage.address import is_encrypted_or_near, server_address
from cart_qdrant.storage.server import ServerStore
from cart_qdrant.storage.store_info import StoreInfo


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("http://h:6333", "http://h:6333"),
        ("http://h:6333/", "http://h:6333"),
        ("http://h", "http://h:6333"),
        ("HTTP://H:6333//", "http://h:6333"),
        ("https://host", "https://host:443"),
        ("https://host/", "https://host:443"),
        ("https://host:6333", "https://host:6333"),
        ("https://host/qdrant/", "https://host:443/qdrant"),
        ("http://[::1]", "http://[::1]:6333"),
        (":memory:", ":memory:"),
    ],
)
def test_one_server_has_one_address(given: str, address: str) -> None:
    assert server_address(given) == address == server_address(address)
    assert StoreInfo(kind="server", url=given) == StoreInfo(kind="server", url=address)


def test_the_client_asks_the_port_that_the_address_says() -> None:
    for given in ("https://host", "http://host", "http://host:80", "https://host/prefix"):
        store = ServerStore.connect(given, "key", "c")
        assert store._client._client.rest_uri == server_address(given)  # type: ignore[attr-defined]
        assert store.location == f"{server_address(given)}/c"


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ("localhost:6333", "Write http://localhost:6333"),
        ("qdrant.example", "Write http://qdrant.example"),
        ("//host:6333", "Write http://host:6333"),
        ("grpc://host:6334", "Write http://HOST:6333"),
        ("ftp://host", "Write http://HOST:6333"),
        ("C:\\qdrant", "Write http://C"),
        ("", "Write http://HOST:6333"),
        (" ", "Write http://HOST:6333"),
        ("http://", "Write http://HOST:6333"),
        ("http://host:port", "Write http://HOST:6333"),
        ("http://host:99999", "Write http://HOST:6333"),
        ("http://[::1", "Write http://HOST:6333"),
        ("http://host name", "Write http://HOST:6333"),
        ("http://host:6333?a=b", "Write http://HOST:6333"),
    ],
)
def test_what_is_no_address_is_told_with_one(given: str, remedy: str) -> None:
    with pytest.raises(UsageError) as refused:
        server_address(given)
    assert refused.value.remedy.startswith(remedy)


@pytest.mark.parametrize(
    "given", ["http://u:s3cret@h:6333", "https://:s3cret@h", "http://u@h", "u:s3cret@h:6333"]
)
def test_a_password_is_neither_kept_nor_shown(given: str) -> None:
    with pytest.raises(UsageError) as refused:
        StoreInfo(kind="server", url=given)
    assert "s3cret" not in str(refused.value)
    assert "CARTQ_API_KEY" in str(refused.value) or "//" not in given


def test_passwords_are_hidden_wherever_they_stand() -> None:
    text = "a http://u:pw@h:1/x?a=b@c and s3://k:p/w@b, https://h:443/a:b@c"
    assert hide_password("no ://host at all: a@b") == "no ://host at all: a@b"
    hidden = hide_password(text)
    assert hidden.startswith("a http://u:***@h:1/x?a=b@c and ") and ":pw@" not in hidden
    assert hidden.endswith("https://h:443/a:b@c")


def test_a_key_in_the_clear_is_one_line_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ServerStore.connect("http://far.example", "key", "c")
        for near in ("http://localhost:6333", "http://127.0.0.1", "https://far.example"):
            assert is_encrypted_or_near(near)
            ServerStore.connect(near, "key", "c")
        ServerStore.connect("http://far.example", None, "c")
    assert [record.getMessage() for record in caplog.records] == [
        "The API key goes to http://far.example:6333 unencrypted: https:// keeps it secret."
    ]
