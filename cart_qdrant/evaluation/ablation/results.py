"""What an ablation measures."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

Recalls = dict[str, dict[int, float]]
"""Recall by stratum and k."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantResult:
    """What one variant reached with one seed.

    Attributes:
        variant: Name of the variant.
        group: Experiment that it belongs to.
        seed: Of identifiers and generator.
        unique_ratio: Share of items whose codes no other item has.
        beams: Recalls of the candidates in the order of the decoder's probability.
        reranked: Recalls of the same candidates in the order of their cosines.
        dense: Recalls of exact dense search on the same queries.
        decode_ms: Milliseconds to decode one query in a batch of 64.
    """

    variant: str
    group: str
    seed: int
    unique_ratio: float
    beams: Recalls
    reranked: Recalls
    dense: Recalls
    decode_ms: float

    def to_json(self) -> dict[str, Any]:
        """One object."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowthResult:
    """Accuracy and throughput among a number of candidates.

    Attributes:
        seed: Of identifiers and generator.
        candidates: Items that are searched.
        r10: R@10 by method.
        queries_per_second: Throughput by method.
    """

    seed: int
    candidates: int
    r10: dict[str, float]
    queries_per_second: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """One object."""
        return asdict(self)
