"""An MCP server whose read-only tools search media, show an item and describe the collection."""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import CallToolResult, ImageContent, TextContent, ToolAnnotations
from pydantic import Field

from cart_qdrant import __version__
from cart_qdrant.errors import CartError
from cart_qdrant.media.thumbnails import thumbnail
from cart_qdrant.records import Item, Modality
from cart_qdrant.search.filters import parse_filter
from cart_qdrant.search.retriever import Retriever
from cart_qdrant_mcp.answers import (
    NOTICE,
    CollectionAnswer,
    MediaHit,
    SearchAnswer,
    SegmentAnswer,
    shown,
    shown_fields,
    without_folders,
)

log = logging.getLogger(__name__)

INSTRUCTIONS = (
    "Finds images, moments of videos and audio by what they show or sound like. Ask search_media "
    "in plain words; a hit in a video or an audio file has its first and last second. "
    "describe_collection tells what the collection holds and which fields filters can use; "
    "get_segment shows one hit, with a small picture of it. " + NOTICE
)
READ_ONLY = ToolAnnotations(
    read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False
)
MOST = 100
"""Largest number of hits of one search."""
FARTHEST = 10_000
"""Largest number of hits that a search passes over."""
LONGEST_QUERY = 4_000
"""Characters of a query or of an item's name, at most."""


def make_server(retriever: Retriever, *, fields: Sequence[str] | None = None) -> MCPServer[Any]:
    """A server with the tools `search_media`, `describe_collection` and `get_segment`.

    Args:
        retriever: An open `Retriever`, which stays open as long as the server runs.
        fields: Payload fields that assistants may see, as dotted paths. None: of an index of our
            own, the columns of caption tables; of an attached collection, whose payload others
            wrote for other ends, none.
    """
    allowed = () if fields is None and retriever.is_attached else fields

    def may_see(found: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        return {k: v for k, v in found.items() if allowed is None or k in allowed}

    server: MCPServer[Any] = MCPServer(
        "cart-qdrant", instructions=INSTRUCTIONS, version=__version__, log_level="WARNING"
    )

    @server.tool(title="Search media", annotations=READ_ONLY, structured_output=True)
    async def search_media(
        query: Annotated[
            str,
            Field(
                description='What to find, in plain words: "a dog surfing".',
                max_length=LONGEST_QUERY,
            ),
        ],
        k: Annotated[int, Field(description="Number of hits.", ge=1, le=MOST)] = 5,
        offset: Annotated[
            int, Field(description="Best hits to pass over, to page on.", ge=0, le=FARTHEST)
        ] = 0,
        modality: Annotated[
            Modality | None, Field(description="Search only images, videos or audio.")
        ] = None,
        filters: Annotated[
            list[str] | None,
            Field(
                description="Conditions on fields that must all hold: year>=2020, "
                "camera=gopro,dji, caption~surf."
            ),
        ] = None,
        group_by: Annotated[
            Literal["file", "none"],
            Field(description="`file`: each file once, by its best moment; `none`: all moments."),
        ] = "file",
    ) -> SearchAnswer:
        """Find images, moments of videos and audio by text, best first, with their seconds."""
        with _errors_as_messages(retriever.base):
            only = await asyncio.to_thread(parse_filter, filters or [], modality)
            found = await retriever.asearch(
                query, k=k, offset=offset, filter=only, group_by=group_by
            )
        return SearchAnswer(
            query=shown(found.query), lane=found.lane,
            hits=[MediaHit.of(hit) for hit in found.hits],
            remarks=[without_folders(one, retriever.base) for one in found.remarks],
        )  # fmt: skip

    @server.tool(title="Describe the collection", annotations=READ_ONLY, structured_output=True)
    async def describe_collection() -> CollectionAnswer:
        """Tell how many items of each modality there are, and which fields filters can use."""
        with _errors_as_messages(retriever.base):
            found = await asyncio.to_thread(retriever.describe)
        return CollectionAnswer(
            items=found.items, with_caption=found.with_caption, trained=found.trained,
            embedder=found.embedder, fields=shown_fields(may_see(found.fields)),
            captions=[shown(one) for one in found.captions],
        )  # fmt: skip

    @server.tool(title="Look at an item", annotations=READ_ONLY)
    async def get_segment(
        name: Annotated[
            str,
            Field(description="Id of a hit, a path, or PATH@SECONDS.", max_length=LONGEST_QUERY),
        ],
        picture: Annotated[
            bool, Field(description="Also give a small picture of it (the waveform of audio).")
        ] = True,
    ) -> Annotated[CallToolResult, SegmentAnswer]:
        """Show one item with its captions, some of its payload fields and a small picture."""
        with _errors_as_messages(retriever.base):
            item = await asyncio.to_thread(retriever.item, name)
            return await asyncio.to_thread(
                _show_item, retriever, item, may_see(item.fields), picture=picture
            )

    return server


def _show_item(
    retriever: Retriever, item: Item, fields: Mapping[str, list[Any]], *, picture: bool
) -> CallToolResult:
    images: list[ImageContent] = []
    missing: str | None = "not asked for"
    if picture:
        try:
            path = retriever.media_folder([item]).file(item.path)
            small = thumbnail(path, item.modality, item.start, item.end)
            data = base64.b64encode(small.data).decode()
            images.append(ImageContent(type="image", data=data, mime_type=small.mime))
            missing = None
        except CartError as error:
            missing = without_folders(str(error), retriever.base)
    answer = SegmentAnswer.of(item, fields, missing)
    text = TextContent(type="text", text=answer.model_dump_json(indent=2))
    return CallToolResult(
        content=[text, *images], structured_content=answer.model_dump(mode="json")
    )


@contextmanager
def _errors_as_messages(base: Path) -> Iterator[None]:
    """Give the assistant the message and the remedy of an error in place of a traceback, without
    the folders that they name."""
    try:
        yield
    except CartError as error:
        raise ToolError(shown(without_folders(str(error), base))) from error
    except Exception as error:
        log.exception("A tool failed.")
        raise ToolError(f"The server failed: {type(error).__name__}.") from error
