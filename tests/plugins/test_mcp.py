"""The MCP server, asked by the SDK's own client: in this process, by stdio and by HTTP."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from cart_qdrant.search.filters import parse_filter
from cart_qdrant.search.retriever import Retriever

pytest.importorskip("mcp", reason='not installed: pip install "cart-qdrant[mcp]"')

from mcp import Client, StdioServerParameters

from cart_qdrant_mcp import make_server

TOOLS = {"search_media", "describe_collection", "get_segment"}


def ask(server: Any, what: Callable[[Client], Awaitable[Any]]) -> Any:
    """What a client gets from a server."""

    async def run() -> Any:
        async with Client(server, read_timeout_seconds=120) as client:
            return await what(client)

    return asyncio.run(run())


def call(server: Any, tool: str, /, **arguments: Any) -> Any:
    return ask(server, lambda client: client.call_tool(tool, arguments))


def test_tools_only_read_and_say_what_they_give(small_index: Path) -> None:
    with Retriever.open(small_index) as retriever:
        found = ask(make_server(retriever), lambda client: client.list_tools())
    assert {tool.name for tool in found.tools} == TOOLS
    for tool in found.tools:
        assert tool.annotations.read_only_hint and not tool.annotations.destructive_hint
        assert tool.description and tool.output_schema["type"] == "object"
        assert all(one.get("description") for one in tool.input_schema["properties"].values())


def test_search_gives_hits_with_seconds(trained: Path) -> None:
    with Retriever.open(trained) as retriever:
        server = make_server(retriever)
        expected = retriever.search("a beach", k=3).hits
        answer = call(server, "search_media", query="a beach", k=3)
        assert not answer.is_error
        hits = answer.structured_content["hits"]
        assert [hit["id"] for hit in hits] == [hit.id for hit in expected]
        page = call(server, "search_media", query="a beach", k=2, offset=1).structured_content
        assert [hit["id"] for hit in page["hits"]] == [hit["id"] for hit in hits[1:]]
        films = call(server, "search_media", query="a beach", modality="video", group_by="none")
        found = films.structured_content["hits"]
        assert found and all(hit["modality"] == "video" and hit["end"] > 0 for hit in found)
        none = call(server, "search_media", query="a beach", filters=["path=nowhere.png"])
        assert none.structured_content["hits"] == []
        assert none.structured_content["remarks"][-1] == "no item meets the filter"


def test_an_item_comes_with_its_picture(small_index: Path, small_media: Path) -> None:
    with Retriever.open(small_index) as retriever:
        server = make_server(retriever)
        answer = call(server, "get_segment", name="media/picture-0.png")
        item = answer.structured_content
        assert item["path"] == "media/picture-0.png" and item["picture"] is None
        assert "a dog on a surfboard" in [caption["text"] for caption in item["captions"]]
        (image,) = [part for part in answer.content if part.type == "image"]
        with Image.open(io.BytesIO(base64.b64decode(image.data))) as picture:
            assert picture.size[0] > 0
        plain = call(server, "get_segment", name=item["id"], picture=False)
        assert plain.structured_content["path"] == item["path"] and len(plain.content) == 1
        moment = call(server, "get_segment", name="media/clip.mp4@1.5", picture=False)
        found = moment.structured_content
        assert found["modality"] == "video" and found["start"] <= 1.5 <= found["end"]


def test_the_collection_is_described(small_index: Path) -> None:
    with Retriever.open(small_index) as retriever:
        found = call(make_server(retriever), "describe_collection").structured_content
    assert found["items"]["image"] == 10 and set(found["items"]) == {"image", "video", "audio"}
    assert found["with_caption"] >= 2 and not found["trained"] and found["embedder"] == "lite"
    assert "a dog on a surfboard" in found["captions"]


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("search_media", {"query": " "}, "The query is empty"),
        ("search_media", {"query": "a", "filters": ["year"]}, "has no operator"),
        ("search_media", {"query": "a", "k": 0}, "greater than or equal to 1"),
        ("search_media", {"query": "a", "modality": "smell"}, "'image', 'video' or 'audio'"),
        ("get_segment", {"name": "nowhere.png"}, "No item of the index is 'nowhere.png'"),
    ],
)
def test_errors_are_told_with_the_remedy(
    small_index: Path, name: str, arguments: dict[str, Any], told: str
) -> None:
    with Retriever.open(small_index) as retriever:
        answer = call(make_server(retriever), name, **arguments)
    assert answer.is_error and told in answer.content[0].text
    assert "Traceback" not in answer.content[0].text


def test_a_filter_is_not_read_where_others_wait(
    small_index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[tuple[int, int]] = []

    def noted(*given: Any) -> Any:
        threads.append((threading.get_ident(), waiting))
        return parse_filter(*given)

    async def run() -> Any:
        nonlocal waiting
        waiting = threading.get_ident()
        async with Client(server, read_timeout_seconds=120) as client:
            arguments = {"query": "a", "filters": ["path!=x" + " " * 100_000]}
            return await client.call_tool("search_media", arguments)

    waiting = 0
    monkeypatch.setattr("cart_qdrant_mcp.server.parse_filter", noted)
    with Retriever.open(small_index) as retriever:
        server = make_server(retriever)
        answer = asyncio.run(run())
    assert answer.is_error and "100007 characters" in answer.content[0].text
    assert threads and all(read != loop for read, loop in threads)


def environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("CARTQ_")}


def test_the_program_serves_stdio(small_index: Path) -> None:
    server = StdioServerParameters(
        command=sys.executable,
        args=["-m", "cart_qdrant_cli.main", "mcp", "--index", str(small_index)],
        env=environment(),
    )
    answer = call(server, "search_media", query="a dog on a surfboard", k=1)
    (hit,) = answer.structured_content["hits"]
    assert hit["path"] == "media/picture-0.png"


def test_the_program_serves_http(small_index: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "cart_qdrant_cli.main", "mcp", "--http", "--port", str(port),
               "--index", str(small_index)]  # fmt: skip
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            (url,) = re.findall(r"http://\S+/mcp", line)
            for _ in range(300):
                try:
                    httpx.get(url, timeout=5)
                    break
                except httpx.ConnectError:
                    time.sleep(0.1)
            answer = call(url, "describe_collection")
            assert answer.structured_content["items"]["image"] == 10
        finally:
            process.terminate()
