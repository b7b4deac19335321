"""Serves MCP over HTTP to those who may: a bearer token, and checks of Host and Origin."""

from __future__ import annotations

import hmac
import ipaddress
from dataclasses import dataclass, field
from typing import Any

from mcp.server.mcpserver import MCPServer
from mcp.server.transport_security import TransportSecuritySettings

from cart_qdrant.errors import UsageError

SHORTEST_TOKEN = 16
"""Characters of a token, at least: a shorter one can be guessed."""
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_MAKE_ONE = (
    "Make one, and give it to the assistant, too: export CARTQ_MCP_TOKEN=$(openssl rand -hex 24)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpOptions:
    """Where MCP is served, and to whom.

    Attributes:
        host: Address to listen on.
        port: Port to listen on.
        token: Bearer token that each request must have; None asks for none, on this machine only.
        allowed_hosts: Further names by which the server is reached, with or without a port.

    Raises:
        UsageError: Others could reach the server without a token, or a value is of no use.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = field(default=None, repr=False)
    allowed_hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.token is None:
            if not self.is_near:
                raise UsageError(
                    f"--host is {self.host}, where others can reach the server, and no token is "
                    "asked of them.",
                    _MAKE_ONE,
                )
        elif len(self.token) < SHORTEST_TOKEN or not self.token.isascii() or " " in self.token:
            raise UsageError(
                f"The token has {len(self.token)} characters, but must have {SHORTEST_TOKEN} or "
                "more, and be ASCII without blanks.",
                _MAKE_ONE,
            )
        if not self.named_hosts:
            raise UsageError(
                f"--host is {self.host}, which is no name that a request can have.",
                "Say by which name the server is reached: --allowed-host media.example",
            )
        for name in self.allowed_hosts:
            if "/" in name or "*" in name or not name.strip():
                raise UsageError(
                    f"--allowed-host is {name!r}, but must be a host or HOST:PORT.",
                    "Write it without http://, such as media.example or media.example:8443.",
                )

    @property
    def is_near(self) -> bool:
        """Whether only programs of this machine can reach the server."""
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def named_hosts(self) -> tuple[str, ...]:
        """Names that the `Host` of a request may have."""
        if self.is_near:
            return (*_LOOPBACK, *self.allowed_hosts)
        try:
            address = ipaddress.ip_address(self.host.strip("[]"))
        except ValueError:
            return (self.host, *self.allowed_hosts)
        if address.is_unspecified:  # 0.0.0.0: each address of the machine
            return self.allowed_hosts
        shown = f"[{address}]" if address.version == 6 else str(address)
        return (shown, *self.allowed_hosts)

    def security(self) -> TransportSecuritySettings:
        """The checks of `Host` and `Origin`, which keep web pages of others out."""
        hosts = [form for name in self.named_hosts for form in (name, f"{name}:*")]
        origins = [f"{scheme}://{host}" for scheme in ("http", "https") for host in hosts]
        return TransportSecuritySettings(allowed_hosts=hosts, allowed_origins=origins)


class BearerToken:
    """Lets requests through that have the token; all others are answered with 401.

    Args:
        app: The application behind.
        token: The token.
    """

    def __init__(self, app: Any, token: str) -> None:
        self._app, self._token = app, token.encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan" or self._has_token(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            headers = [(b"www-authenticate", b"Bearer"), (b"content-type", b"text/plain")]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": b"A bearer token is needed.\n"})
        else:  # a websocket, which nothing here speaks
            await send({"type": "websocket.close", "code": 1008})

    def _has_token(self, scope: Any) -> bool:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(given) != 1:
            return False
        scheme, _, token = given[0].partition(b" ")
        # Compared in a time that does not tell how much of it is right.
        return hmac.compare_digest(token, self._token) and scheme.lower() == b"bearer"


def http_app(server: MCPServer[Any], options: HttpOptions) -> Any:
    """The ASGI application that serves `/mcp`."""
    app = server.streamable_http_app(host=options.host, transport_security=options.security())
    return app if options.token is None else BearerToken(app, options.token)


def serve_http(server: MCPServer[Any], options: HttpOptions) -> None:
    """Serve until the process is stopped."""
    import uvicorn

    uvicorn.run(
        http_app(server, options), host=options.host.strip("[]"), port=options.port,
        log_level="warning", server_header=False,
    )  # fmt: skip
