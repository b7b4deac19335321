"""Retrieval measures and latency of an index on labelled queries, for each lane (`ir-measures`)."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from cart_qdrant.errors import UsageError
from cart_qdrant.extras import require
from cart_qdrant.progress import Reporter, Silent
from cart_qdrant.search.lanes import Lane
from cart_qdrant.search.retriever import Retriever
from cart_qdrant.storage import requests as qdrant

TIMED = 50
"""Queries asked one by one for the latency; the others are asked in batches."""


@dataclass(frozen=True, slots=True)
class EvalQuery:
    """A query and its relevant files: stored paths, or their last components."""

    query: str
    relevant: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LaneScore:
    """Recall, MRR, average precision and latency of one lane."""

    lane: str
    queries: int
    recall: dict[int, float]
    mrr_10: float
    mean_ap: float
    """Average precision of the first `depth` hits, mean over queries."""
    depth: int
    modalities: dict[str, float]
    """Share of each modality among the first ten hits."""
    p50_ms: float
    p95_ms: float

    def to_json(self) -> dict[str, Any]:
        """The `--json` contract."""
        return {
            "lane": self.lane,
            "queries": self.queries,
            "recall": {str(k): round(v, 4) for k, v in self.recall.items()},
            "mrr@10": round(self.mrr_10, 4),
            f"map@{self.depth}": round(self.mean_ap, 4),
            "modalities": {name: round(v, 4) for name, v in self.modalities.items()},
            "p50_ms": round(self.p50_ms, 2),
            "p95_ms": round(self.p95_ms, 2),
        }


def load_queries(path: Path) -> list[EvalQuery]:
    """Read `QUERIES.jsonl`.

    Raises:
        UsageError: The file cannot be read, or a line is no such row; the line is named.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}.") from error
    out: list[EvalQuery] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            relevant = tuple(str(r) for r in row["relevant"])
            query = str(row["query"])
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{path} line {number} is no query ({error}).",
                'A row is {"query": "...", "relevant": ["path.jpg"]}.',
            ) from error
        if not query.strip() or not relevant:
            raise UsageError(f"{path} line {number} has an empty query or no relevant path.")
        out.append(EvalQuery(query, relevant))
    if not out:
        raise UsageError(f"{path} holds no query.")
    return out


def _is_tail(path: str, tail: str) -> bool:
    """Whether `tail` is `path` or its last components."""
    parts, last = PurePosixPath(path).parts, PurePosixPath(tail).parts
    return parts[-len(last) :] == last


def evaluate(
    retriever: Retriever,
    queries: Sequence[EvalQuery],
    *,
    lanes: Sequence[Lane] = ("auto",),
    ks: Sequence[int] = (1, 5, 10),
    filter: qdrant.AnyFilter | None = None,
    reporter: Reporter | None = None,
) -> list[LaneScore]:
    """Recall at each k, MRR@10 and average precision of files, and the latency of single queries.

    Recall of a query is the share of its relevant files found among the first k.
    """
    require("eval", "ir_measures")
    from ir_measures import AP, RR, Qrel, R, ScoredDoc, calc_aggregate

    reporter = reporter or Silent()
    depth = max(10, *ks)
    measures = {k: R @ k for k in ks}
    out: list[LaneScore] = []
    for lane in lanes:
        reporter.phase(f"eval {lane}", len(queries))
        times: list[float] = []
        for one in queries[:TIMED]:
            begin = time.perf_counter()
            retriever.search(one.query, k=depth, lane=lane, filter=filter)
            times.append((time.perf_counter() - begin) * 1e3)
        qrels: list[Qrel] = []
        run: list[ScoredDoc] = []
        shown: Counter[str] = Counter()
        for begin_at in range(0, len(queries), 256):
            block = queries[begin_at : begin_at + 256]
            texts = [q.query for q in block]
            results = retriever.search_many(texts, k=depth, lane=lane, filter=filter)
            for n, (asked, result) in enumerate(zip(block, results, strict=True), start=begin_at):
                qrels += [Qrel(str(n), relevant, 1) for relevant in asked.relevant]
                shown.update(str(hit.modality) for hit in result.hits[:10])
                for hit in result.hits:
                    name = next((r for r in asked.relevant if _is_tail(hit.path, r)), hit.path)
                    run.append(ScoredDoc(str(n), name, float(depth - hit.rank)))
            reporter.advance(len(block))
        found = calc_aggregate([*measures.values(), RR @ 10, AP @ depth], qrels, run)
        out.append(
            LaneScore(
                lane=lane,
                queries=len(queries),
                recall={k: float(found[m]) for k, m in measures.items()},
                mrr_10=float(found[RR @ 10]),
                mean_ap=float(found[AP @ depth]),
                depth=depth,
                modalities={name: n / shown.total() for name, n in shown.most_common()},
                p50_ms=float(np.percentile(times, 50)),
                p95_ms=float(np.percentile(times, 95)),
            )
        )
    return out
