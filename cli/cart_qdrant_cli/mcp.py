"""`cartq mcp`: the index as tools of an assistant."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from cart_qdrant_cli.options import (
    CollectionOption,
    IndexOption,
    UrlOption,
    VerboseOption,
    add_command,
    examples,
    resolve,
)
from cart_qdrant_cli.output import remark
from cart_qdrant_cli.search import open_retriever

TOKEN_VARIABLE = "CARTQ_MCP_TOKEN"
EXAMPLES = examples(
    "cartq mcp --index /data/photos/.cartq",
    "cartq mcp --http --port 8000",
    "cartq mcp --http --host 0.0.0.0 --token-file token.txt --allowed-host media.example",
    "claude mcp add media -- cartq mcp --index /data/photos/.cartq",
)


def mcp(
    context: typer.Context,
    http: Annotated[
        bool, typer.Option("--http", help="Serve HTTP at /mcp; stdin and stdout without it.")
    ] = False,
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on. One that other machines reach needs a token, from "
            "CARTQ_MCP_TOKEN or --token-file; put a proxy with TLS before it."
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=0, max=65535)] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file",
            metavar="FILE",
            help="File with the bearer token that each request must have; CARTQ_MCP_TOKEN "
            "without it. (As an option it would be seen in lists of processes.)",
            show_default=False,
        ),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allowed-host",
            metavar="HOST",
            help="Further name by which the server is reached. Repeatable; requests with another "
            "Host or Origin are refused.",
            show_default=False,
        ),
    ] = None,
    field: Annotated[
        list[str] | None,
        typer.Option(
            "--field",
            metavar="NAME",
            help="Payload field that assistants may see. Repeatable. Without it: the columns of "
            "caption tables, and nothing of an attached collection's own payload.",
            show_default=False,
        ),
    ] = None,
    index: IndexOption = None,
    url: UrlOption = None,
    collection: CollectionOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Serve search_media, describe_collection and get_segment to an assistant (MCP).

    The tools only read. Other commands may search, ingest and train meanwhile: the next search
    finds what is new.
    """
    from cart_qdrant_mcp import HttpOptions, make_server, serve_http

    target = resolve(context, index=index, url=url, collection=collection, verbose=verbose)
    options = None
    if http:
        options = HttpOptions(
            host=host, port=port, token=_token(token_file), allowed_hosts=tuple(allowed_host or ())
        )
    with open_retriever(target) as retriever:
        server = make_server(retriever, fields=field)
        if options is not None:
            remark(f"Serving http://{host}:{port}/mcp; stop with Ctrl-C.")
            serve_http(server, options)
        else:
            server.run("stdio")


def _token(file: Path | None) -> str | None:
    """The bearer token of a file, else of the environment; None where none is given."""
    if file is not None:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    return os.environ.get(TOKEN_VARIABLE)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    add_command(app, mcp, EXAMPLES)
