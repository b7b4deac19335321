"""The address of a Qdrant server, in the one form that is stored, compared and shown."""

from __future__ import annotations

from urllib.parse import SplitResult, urlsplit

from cart_qdrant.errors import UsageError, hide_password

LOCAL = ":memory:"
"""In place of an address: a client of the local mode, for tests."""
PORTS = {"http": 6333, "https": 443}
"""Port of an address that names none: Qdrant's own, and that of whatever speaks TLS before it."""


def server_address(url: str) -> str:
    """An address with its scheme, host and port: `http://HOST:6333`, `https://HOST:443/prefix`.

    Addresses of one server are equal afterwards: the host is in small letters, the port is named,
    and no slash ends it.

    Raises:
        UsageError: The text is no address of a server, or holds a password, which would be stored
            and printed with it.
    """
    if url == LOCAL:
        return url
    parts = _split(url)
    if parts.username or parts.password:
        raise UsageError(
            f"The address {hide_password(url)} holds a user or a password, which would be stored "
            "and printed with it.",
            "Leave them out; the key of a server is read from CARTQ_API_KEY.",
        )
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{host}:{parts.port or PORTS[parts.scheme]}{parts.path.rstrip('/')}"


def is_encrypted_or_near(address: str) -> bool:
    """Whether a key may go to an address unseen by others: by TLS, or to this machine."""
    parts = urlsplit(address)
    host = parts.hostname or ""
    return parts.scheme == "https" or host in ("localhost", "::1") or host.startswith("127.")


def _split(url: str) -> SplitResult:
    """The parts of an address.

    Raises:
        UsageError: It is none.
    """
    shown = hide_password(url if "//" in url else f"//{url}").removeprefix("//")
    try:
        parts = urlsplit(url)
        named = parts.scheme in PORTS and parts.hostname and not any(c.isspace() for c in url)
        _ = parts.port  # raises where it is no number
    except ValueError as error:
        raise UsageError(
            f"{shown!r} is no address of a Qdrant server: {error}.", "Write http://HOST:6333."
        ) from error
    if not named:
        # `localhost:6333` has the scheme `localhost`, and `qdrant.example` has none.
        guess = shown if "://" not in shown and shown.strip() else "HOST:6333"
        raise UsageError(
            f"{shown!r} is no address of a Qdrant server: it does not begin with http:// or "
            "https://.",
            f"Write http://{guess.split()[0]}",
        )
    if parts.query or parts.fragment:
        raise UsageError(
            f"{shown!r} is no address of a Qdrant server: it goes on after the path.",
            "Write http://HOST:6333.",
        )
    return parts
