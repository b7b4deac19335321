"""An MCP server whose read-only tools search media, show an item and describe the collection."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import CallToolResult, ImageContent, TextContent, ToolAnnotations
from pydantic import BaseModel, Field

from cart_qdrant import __version__
from cart_qdrant.errors import CartError
from cart_qdrant.media.thumbnails import thumbnail
from cart_qdrant.records import Caption, Hit, Item, Modality
from cart_qdrant.search.filters import parse_filter
from cart_qdrant.search.retriever import Retriever

INSTRUCTIONS = (
    "Finds images, moments of videos and audio by what they show or sound like. Ask search_media "
    "in plain words; a hit in a video or an audio file has its first and last second. "
    "describe_collection tells what the collection holds and which fields filters can use; "
    "get_segment shows one hit, with a small picture of it."
)
READ_ONLY = ToolAnnotations(
    read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False
)
MOST = 100
"""Largest number of hits of one search."""
FARTHEST = 10_000
"""Largest number of hits that a search passes over."""


class MediaHit(BaseModel):
    """One segment that a search found."""

    id: str = Field(description="Name of the item for get_segment.")
    path: str = Field(description="File, relative to the folder that holds the index.")
    modality: Modality
    start: float = Field(description="First second of the segment; 0 for an image.")
    end: float = Field(description="Last second of the segment; 0 for an image.")
    moment: tuple[float, float] | None = Field(
        description="First and last second of the caption, where it matches the query."
    )
    caption: str | None = Field(description="The caption that matches the query best.")
    score: float = Field(description="Comparable within one answer only.")
    similarity: float | None = Field(
        description="Cosine of query and media (else caption); null where none was compared."
    )
    confidence: float | None = Field(
        description="Probability that the hit is relevant; null where it is not known."
    )
    identifier: str | None = Field(description="Coarse-to-fine identifier of the item.")

    @classmethod
    def of(cls, hit: Hit) -> MediaHit:
        """Convert a hit of a search."""
        return cls(
            id=hit.id, path=hit.path, modality=hit.modality, start=hit.start, end=hit.end,
            moment=hit.moment, caption=hit.caption, score=hit.score,
            similarity=hit.similarity, confidence=hit.confidence, identifier=hit.identifier,
        )  # fmt: skip


class SearchAnswer(BaseModel):
    """Hits of one search, best first."""

    query: str
    lane: str = Field(description="The lane (way of ranking) that answered.")
    hits: list[MediaHit]
    remarks: list[str] = Field(description="Sentences for the user about this answer.")


class CollectionAnswer(BaseModel):
    """What the collection holds."""

    items: dict[str, int] = Field(description="Number of items of each modality.")
    with_caption: int = Field(description="Number of items with a caption.")
    trained: bool
    embedder: str
    fields: dict[str, list[Any]] = Field(
        description="Fields that filters of search_media can use, with some of their values."
    )
    captions: list[str] = Field(description="Some captions.")


class SegmentCaption(BaseModel):
    """A caption of a segment."""

    text: str
    source: str
    start: float | None = Field(description="First second that it describes.")
    end: float | None

    @classmethod
    def of(cls, caption: Caption) -> SegmentCaption:
        """Convert a caption of an item."""
        return cls(
            text=caption.text, source=str(caption.source), start=caption.start, end=caption.end
        )


class SegmentAnswer(BaseModel):
    """One item with its captions and payload fields."""

    id: str
    path: str
    modality: Modality
    start: float
    end: float
    identifier: str | None
    captions: list[SegmentCaption]
    fields: dict[str, Any] = Field(description="Other payload fields of the item.")
    picture: str | None = Field(description="Why there is no picture, or null where there is one.")

    @classmethod
    def of(cls, item: Item, picture: str | None) -> SegmentAnswer:
        """Convert an item of the index."""
        shown = {
            key: value
            for key, value in item.payload.items()
            if key not in ("path", "modality", "start", "end", "captions")
        }
        return cls(
            id=item.id, path=item.path, modality=item.modality, start=item.start, end=item.end,
            identifier=None if item.identifier is None else item.identifier.id,
            captions=[SegmentCaption.of(one) for one in item.captions], fields=shown,
            picture=picture,
        )  # fmt: skip


def make_server(retriever: Retriever) -> MCPServer[Any]:
    """A server with the tools `search_media`, `describe_collection` and `get_segment`.

    Args:
        retriever: An open `Retriever`, which stays open as long as the server runs.
    """
    server: MCPServer[Any] = MCPServer(
        "cart-qdrant", instructions=INSTRUCTIONS, version=__version__, log_level="WARNING"
    )

    @server.tool(title="Search media", annotations=READ_ONLY, structured_output=True)
    async def search_media(
        query: Annotated[str, Field(description='What to find, in plain words: "a dog surfing".')],
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
        with _errors_as_messages():
            only = await asyncio.to_thread(parse_filter, filters or [], modality)
            found = await retriever.asearch(
                query, k=k, offset=offset, filter=only, group_by=group_by
            )
        return SearchAnswer(
            query=found.query, lane=found.lane, hits=[MediaHit.of(hit) for hit in found.hits],
            remarks=found.remarks,
        )  # fmt: skip

    @server.tool(title="Describe the collection", annotations=READ_ONLY, structured_output=True)
    async def describe_collection() -> CollectionAnswer:
        """Tell how many items of each modality there are, and which fields filters can use."""
        with _errors_as_messages():
            found = await asyncio.to_thread(retriever.describe)
        return CollectionAnswer(
            items=found.items, with_caption=found.with_caption, trained=found.trained,
            embedder=found.embedder, fields=found.fields, captions=found.captions,
        )  # fmt: skip

    @server.tool(title="Look at an item", annotations=READ_ONLY)
    async def get_segment(
        name: Annotated[str, Field(description="Id of a hit, a path, or PATH@SECONDS.")],
        picture: Annotated[
            bool, Field(description="Also give a small picture of it (the waveform of audio).")
        ] = True,
    ) -> Annotated[CallToolResult, SegmentAnswer]:
        """Show one item with its captions, its payload fields and a small picture."""
        with _errors_as_messages():
            return await asyncio.to_thread(_show_item, retriever, name, picture=picture)

    return server


def _show_item(retriever: Retriever, name: str, *, picture: bool) -> CallToolResult:
    item = retriever.item(name)
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
            missing = str(error)
    answer = SegmentAnswer.of(item, missing)
    text = TextContent(type="text", text=answer.model_dump_json(indent=2))
    return CallToolResult(
        content=[text, *images], structured_content=answer.model_dump(mode="json")
    )


@contextmanager
def _errors_as_messages() -> Iterator[None]:
    """Give the assistant the message and the remedy of an error in place of a traceback."""
    try:
        yield
    except CartError as error:
        raise ToolError(str(error)) from error
