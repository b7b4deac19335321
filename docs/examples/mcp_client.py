"""What an assistant does with `cartq mcp`: looks at the tools, searches, looks at a hit.

python docs/examples/mcp_client.py .demo/.cartq "a rabbit on a meadow"
"""

import asyncio
import sys

from mcp import Client, StdioServerParameters


async def ask(index: str, question: str) -> None:
    """Ask one question."""
    server = StdioServerParameters(
        command=sys.executable, args=["-m", "cart_qdrant_cli.main", "mcp", "--index", index]
    )
    async with Client(server) as client:
        print("tools:", ", ".join(tool.name for tool in (await client.list_tools()).tools))
        answer = await client.call_tool("search_media", {"query": question, "k": 1})
        (hit,) = answer.structured_content["hits"]
        looked = await client.call_tool("get_segment", {"name": hit["id"]})
        pictures = sum(part.type == "image" for part in looked.content)
        print(f"Look at {hit['path']} {hit['start']:.1f}-{hit['end']:.1f} s: {hit['caption']}")
        print(f"({pictures} picture, {len(looked.structured_content['captions'])} captions)")


if __name__ == "__main__":
    asyncio.run(ask(*sys.argv[1:]))
