"""Asks hostile queries and filters: is each answered, or refused by an error of ours?

    python -m benchmarks.faults queries --queries 1000

They go through `Retriever`, the command line and MCP, on a small index.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from cart_qdrant.errors import CartError
from cart_qdrant.search.filters import parse_filter
from cart_qdrant.search.retriever import Retriever

LONG = 100_000
"""Characters of a long query."""
WORDS = [
    "", " ", "\0", "a\0b", "\x1b[31mred\x1b[0m", "\ud800", "a\udfffb", "\u202egod a\u202c",
    "\ufeff", "\u200d\u200c", "e\u0301" * 50, "👨‍👩‍👧‍👦", "كلب على الشاطئ", "犬" * 200,
    "a" * LONG, "a " * (LONG // 2), "\n" * LONG, '{"a": ' * 500 + "1" + "}" * 500,
    "[" * LONG, "'; DROP TABLE items; --", "../../etc/passwd", "${jndi:ldap://x}",
    "{{7*7}}", "%s%n%x", "<script>alert(1)</script>", "(a+)+$", "a" * 30 + "!", "-", "--",
    "--help", "@", "NaN", "1e999", "-0", "\t", "\u0000\u0001\u0002",
]  # fmt: skip
"""Texts that programs stumble over."""
FILTERS = [
    "=", "a", "a=", "=a", "a==", "a=b=c", "a!", "!=", "~", 'a="', '"a=b', '""=b', '"a"b=c',
    "a.b.c=1", "a..b=1", ".a=1", "a[=1", "a[]=1", "a[0]=1", "a[99999999999999999999]=1",
    "[]=1", "a>=x", "a>=nan", "a>=inf", "a>=1e999", "a<-1e308", "a=" + "9" * 400,
    "a>=0000-00-00", "a>=9999-12-31", "a<=9999-12-31", "a=2020-02-30", "a=2020-06-01T25:00",
    "a~\0", "a=\0", "\0=1", "\ud800=1", "a=\udfff", "a=,", "a=b,", "a=,b",
    "a=" + "b," * 300 + "b", "a" * LONG + "=1", " " * LONG, "a=" + " " * LONG + '"',
    "a" + ".b" * 500 + "=1", "a" + "[]" * 500 + "=1", "captions[].text~a",
    "caption~" + "a " * 1000, "cart.id=1", "path=../../etc/passwd", "modality=smell",
    "a=\u202eb", "a>=+1", "a=true,false,1",
]  # fmt: skip
"""Conditions that are wrong, or odd."""


@dataclass(slots=True)
class QueryFaults:
    """What came of the hostile queries through one door."""

    door: str
    asked: int = 0
    answered: int = 0
    refused: int = 0
    broken: list[str] = field(default_factory=list)
    """Queries that ended in another error, and that error."""
    slowest: float = 0.0
    """Seconds."""

    def one(self, shown: str, ask: Callable[[], bool]) -> None:
        """Ask one; `ask` says whether it was answered, or raises."""
        self.asked += 1
        begin = time.perf_counter()
        try:
            answered = ask()
        except CartError:
            answered = False
        except Exception as error:  # noqa: BLE001 - that there is none is what is measured
            self.broken.append(f"{shown[:80]!r}: {type(error).__name__}: {str(error)[:200]}")
            return
        finally:
            self.slowest = max(self.slowest, time.perf_counter() - begin)
        self.answered += answered
        self.refused += not answered


def hostile(rng: random.Random) -> tuple[str, list[str]]:
    """A query and its filters, at least one of which is odd."""
    query = rng.choice(WORDS)
    if rng.random() < 0.3:
        query = "".join(
            chr(rng.choice([rng.randrange(0x110000), rng.randrange(128)])) for _ in range(40)
        )
    filters: list[str] = []
    if rng.random() < 0.6:
        query = "a dog" if rng.random() < 0.7 else query
        filters = [rng.choice(FILTERS) for _ in range(rng.choice([1, 1, 2, 100]))]
        if rng.random() < 0.3:
            filters = ["".join(rng.choice('a1"=!<>~., []\t\0\u202e-+e\ud800') for _ in range(20))]
    return query, filters


def query_faults(root: Path, *, queries: int, seed: int) -> list[QueryFaults]:
    """Ask hostile queries through each door."""
    rng = random.Random(seed)
    asked = [hostile(rng) for _ in range(queries)]
    with Retriever.open(root) as retriever:
        python = QueryFaults("Retriever")
        lanes = ("auto", "dense", "caption", "bm25", "rrf", "fused")
        for n, (query, filters) in enumerate(asked):

            def search(query: str = query, filters: list[str] = filters, n: int = n) -> bool:
                wanted = parse_filter(filters)
                retriever.search(query, filter=wanted, lane=lanes[n % len(lanes)])  # type: ignore[arg-type]
                return True

            python.one(repr((query, filters)), search)
        assistant = asyncio.run(_mcp(retriever, asked))
    return [python, assistant, _cli(root, asked[:: max(1, queries // 200)])]


async def _mcp(retriever: Retriever, asked: list[tuple[str, list[str]]]) -> QueryFaults:
    from mcp import Client

    from cart_qdrant_mcp import make_server

    found = QueryFaults("MCP")
    async with Client(make_server(retriever), read_timeout_seconds=120) as client:
        for query, filters in asked:
            found.asked += 1
            begin = time.perf_counter()
            try:
                arguments: dict[str, Any] = {"query": query, "filters": filters}
                answer = await client.call_tool("search_media", arguments)
                named = await client.call_tool("get_segment", {"name": query, "picture": False})
            except Exception as error:  # noqa: BLE001 - that there is none is what is measured
                found.broken.append(f"{query[:80]!r}: {type(error).__name__}: {str(error)[:200]}")
                continue
            found.slowest = max(found.slowest, time.perf_counter() - begin)
            found.answered += not answer.is_error
            found.refused += bool(answer.is_error)
            for one in (answer, named):
                text = str(one.content[0])
                if one.is_error and ("The server failed" in text or "Traceback" in text):
                    found.broken.append(f"{query[:80]!r} {filters!r:.80}: {text[:200]}")
    return found


def _cli(root: Path, asked: list[tuple[str, list[str]]]) -> QueryFaults:
    from cart_qdrant_cli.main import main

    found = QueryFaults("cartq search")
    for query, filters in asked:
        words = ["cartq", "search", "--index", str(root), "--json"]
        words += [word for one in filters for word in ("--filter", one)] + ["--", query]
        errors = io.StringIO()

        def run(words: list[str] = words, errors: io.StringIO = errors) -> bool:
            out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
            with (
                mock.patch.object(sys, "argv", words),
                contextlib.redirect_stdout(out),
                contextlib.redirect_stderr(errors),
            ):
                try:
                    main()
                except SystemExit as done:
                    if done.code not in (0, 1, 2, 3):
                        raise RuntimeError(f"exit {done.code}") from done
                    return done.code == 0
            raise RuntimeError("the program did not end")

        found.one(repr((query, filters)), run)
        if "Traceback" in errors.getvalue():
            found.broken.append(f"{query[:80]!r}: {errors.getvalue()[-300:]}")
    return found


def show(found: list[QueryFaults]) -> None:
    """Print the table and a JSON row."""
    print("| door | asked | answered | refused | other errors | slowest |")
    print("|---|---|---|---|---|---|")
    for one in found:
        print(
            f"| {one.door} | {one.asked} | {one.answered} | {one.refused} | {len(one.broken)} | "
            f"{one.slowest:.2f} s |"
        )
    print(json.dumps([asdict(one) for one in found]))
