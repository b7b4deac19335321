"""Decodes queries into identifiers: a beam search in each identifier space, joined for each query.

Shape legend: B queries, S tokens, W encoder width, D vector width, L levels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cart_qdrant.arrays.types import FloatArray, MaskArray
from cart_qdrant.extras import require
from cart_qdrant.generator.beam_search import (
    Beams,
    PriorScorer,
    Scorer,
    beam_search,
    nodes_above,
)
from cart_qdrant.generator.prior import NodeBonus, prior_logits
from cart_qdrant.identifiers.parts import uncaptioned
from cart_qdrant.identifiers.quantizer import Codec
from cart_qdrant.identifiers.trie import Trie

if TYPE_CHECKING:
    from torch import Tensor

    from cart_qdrant.generator.network import Generator

    _States = tuple[Sequence[FloatArray] | Sequence[Tensor] | None, MaskArray | Tensor | None]

WIDEST = 2_000
"""Beams of the prior at most; so many take it about two milliseconds."""
CALIBRATED = 10_000
"""Items up to which the calibrated number of beams is enough."""


def beams_for(calibrated: int, items: int) -> int:
    """Beam width for a collection of that many items.

    It grows with the cube root of the collection, or the beams would name an ever smaller part of
    what is near (docs/experiments.md).
    """
    growth = float(max(1.0, items / CALIBRATED) ** (1 / 3))
    return max(calibrated, min(WIDEST, round(calibrated * growth)))


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentifierDecoder:
    """Decodes queries into identifiers of one tree.

    Attributes:
        trie: The identifiers that can come out.
        codec: Code vectors of each identifier space.
        scale: Factor of the inner products of query and code vectors.
        width: Beams of a query in each space, by the prior and again by the correction.
        gates: Weight of the generator's correction at each level; all zero never runs it.
        generator: Returns the generator; called when a gate is open.
        node_bonus: Added to the score of a beam that enters a node, weighted for a query vector of
            the media space alone.
    """

    trie: Trie
    codec: Codec
    scale: float
    width: int
    gates: Sequence[float]
    generator: Callable[[], Generator] | None = None
    node_bonus: NodeBonus | None = None

    @property
    def corrects(self) -> bool:
        """Whether the generator corrects the prior."""
        return self.generator is not None and any(self.gates)

    def decode(
        self,
        media: Mapping[str, FloatArray],
        hidden_states: Sequence[FloatArray] | Sequence[Tensor] | None = None,
        mask_BS: MaskArray | Tensor | None = None,
        *,
        caption_BW: FloatArray | None = None,
        matching: int | None = None,
        leaf_N: MaskArray | None = None,
    ) -> list[Beams]:
        """Identifiers for each query, best first; an empty list where no space is reached.

        Args:
            media: Query vectors (B, D) in each media space that the queries reach.
            hidden_states: Encoder states (B, S, W) of the queries; without them the generator
                reads the query vectors alone.
            mask_BS: True where there is a token.
            caption_BW: Query vectors in the caption space, zero where a query is no text; without
                them items with captions are found by their media part alone.
            matching: Items that a filter lets through, None without a filter. The fewer they are,
                the more beams of the prior are kept (up to `WIDEST`): most name none of them.
            leaf_N: Leaves of the tree at which beams may end; None allows all.
        """
        allowed = None if leaf_N is None else nodes_above(self.trie, leaf_N)
        wide = self.width
        if matching is not None:
            selectivity = len(self.trie) / max(1, matching)
            wide = max(self.width, min(WIDEST, round(self.width * selectivity)))
        queries = self.codec.queries(media, caption_BW)
        found: dict[str, list[list[Beams]]] = {}
        counts: dict[str, list[int]] = {}
        for name in queries:
            quantizer, space = self.codec.quantizers[name], uncaptioned(name)
            items = self.trie.leaves_between(quantizer.offset, quantizer.end)
            if items:
                states = (hidden_states, mask_BS)
                beams = self._decode_in(name, queries, media[space], states, wide, allowed)
                found.setdefault(space, []).append(beams)
                counts.setdefault(space, []).append(items)
        if not found:
            return []
        per_space = [
            [_mixed(of_query, counts[space]) for of_query in zip(*beams, strict=True)]
            for space, beams in found.items()
        ]
        return [_merge(of_query) for of_query in zip(*per_space, strict=True)]

    def _decode_in(
        self,
        name: str,
        queries: Mapping[str, FloatArray],
        q_BD: FloatArray,
        states: _States,
        wide: int,
        allowed: Sequence[MaskArray] | None,
    ) -> list[Beams]:
        """Identifiers of one identifier space for each query.

        Args:
            queries: Query vectors in identifier spaces.
            q_BD: Query vectors in the media space, which the generator reads.
            states: Hidden states and mask of the queries.
            wide: Beams of the prior that are kept.
            allowed: Nodes that beams may enter; None allows all.
        """
        levels = prior_logits(self.codec, queries, name, self.scale)
        count, bonus = len(q_BD), self.bonus_in(name)
        found = beam_search(self.trie, PriorScorer(levels), count, wide, bonus, allowed)
        if not self.corrects:
            return found
        scorer = self._corrected(levels, q_BD, *states)
        corrected = beam_search(self.trie, scorer, count, self.width, bonus, allowed)
        # Items whose captions were learned would otherwise displace new ones.
        return [Beams.joined(pair, self.width) for pair in zip(corrected, found, strict=True)]

    def bonus_in(self, name: str) -> NodeBonus | None:
        """The node bonus in an identifier space: hubness is that of media vectors, so it counts as
        they do."""
        if self.node_bonus is None:
            return None
        factor = self.codec.quantizers[name].parts.media
        return replace(self.node_bonus, weight=self.node_bonus.weight * factor)

    def scorer(
        self,
        name: str,
        media: Mapping[str, FloatArray],
        hidden_states: Sequence[FloatArray] | Sequence[Tensor] | None = None,
        mask_BS: MaskArray | Tensor | None = None,
        caption_BW: FloatArray | None = None,
    ) -> Scorer | None:
        """The scorer of one identifier space: the corrected prior if a gate is open, else the
        prior. None where the queries do not reach the space.

        The arguments are those of `decode`.
        """
        queries = self.codec.queries(media, caption_BW)
        if name not in queries:
            return None
        levels = prior_logits(self.codec, queries, name, self.scale)
        if not self.corrects:
            return PriorScorer(levels)
        return self._corrected(levels, media[uncaptioned(name)], hidden_states, mask_BS)

    def _corrected(
        self,
        levels_BV: Sequence[FloatArray],
        q_BD: FloatArray,
        hidden_states: Sequence[FloatArray] | Sequence[Tensor] | None,
        mask_BS: MaskArray | Tensor | None,
    ) -> Scorer:
        require("train", "torch")
        from cart_qdrant.generator.network import GeneratorScorer

        assert self.generator is not None
        return GeneratorScorer.of(
            self.generator(), hidden_states, mask_BS, q_BD, levels_BV, self.gates
        )


def _mixed(found: Sequence[Beams], counts: Sequence[int]) -> Beams:
    """Beams of the identifier spaces of one media space: the shares of each count as much as it has
    items, so that a few items without a caption do not stand before all others."""
    return found[0] if len(found) == 1 else Beams.joined(found, weights=counts)


def _merge(found: Sequence[Beams]) -> Beams:
    """Beams of several media spaces; each space's shares count equally."""
    return found[0] if len(found) == 1 else Beams.joined(found)
