"""`cartq mcp`: the index as tools of an assistant."""

from __future__ import annotations

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

EXAMPLES = examples(
    "cartq mcp --index /data/photos/.cartq",
    "cartq mcp --http --port 8000",
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
            help="Address to listen on. Whoever can reach it can search: no key is asked for."
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=0, max=65535)] = 8000,
    index: IndexOption = None,
    url: UrlOption = None,
    collection: CollectionOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Serve search_media, describe_collection and get_segment to an assistant (MCP).

    The tools only read. Other commands may search, ingest and train meanwhile: the next search
    finds what is new.
    """
    from cart_qdrant_mcp import make_server

    target = resolve(context, index=index, url=url, collection=collection, verbose=verbose)
    with open_retriever(target) as retriever:
        server = make_server(retriever)
        if http:
            remark(f"Serving http://{host}:{port}/mcp; stop with Ctrl-C.")
            server.run("streamable-http", host=host, port=port)
        else:
            server.run("stdio")


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    add_command(app, mcp, EXAMPLES)
