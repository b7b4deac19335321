"""Why an item is a hit: the lists that found it, its identifier level by level, its caption.

The object of `Hit.why` has the keys

- `rank_in`: rank of the hit in each list that found it
- `media_similarity`, `caption_similarity`: cosines of the query; null where none was compared
- `hubness`: of the media vector
- `modality_prior`: probability that the query is for the hit's modality; null where the index has
  one modality group, or the query is no text
- `matched_caption`: `text` and `similarity` of the nearest caption
- `identifier_path`: the levels of the identifier, see `Step`

Shape legend: H hits, L levels, V codes, D vector width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from cart_qdrant.arrays.types import FloatArray, IntArray
from cart_qdrant.arrays.vectors import unit
from cart_qdrant.generator.decode import IdentifierDecoder
from cart_qdrant.identifiers.parts import uncaptioned
from cart_qdrant.index.points import vector_of
from cart_qdrant.records import Hit
from cart_qdrant.search.candidates import Candidates
from cart_qdrant.search.encoding import EncodedQueries
from cart_qdrant.search.loaded_index import LoadedIndex
from cart_qdrant.storage import requests as qdrant

SAMPLE = 200
"""Items of a coarse cluster that it is described by."""


@dataclass(frozen=True, slots=True)
class Step:
    """One level of an identifier.

    Attributes:
        code: The code at this level.
        items: Number of items that share the identifier up to this level.
        log_prob: Log-probability of the code among those that the tree allows after the prefix;
            None where the query does not reach the item's media space, or its coarse cluster is
            too far from the query to be scored.
        description: What the items of the coarse cluster are like: their most typical caption, or a
            label; None at the other levels.
    """

    code: int
    items: int
    log_prob: float | None
    description: str | None

    def to_json(self) -> dict[str, Any]:
        """One object of `identifier_path`."""
        return {
            "code": self.code,
            "items": self.items,
            "log_prob": _rounded(self.log_prob),
            "description": self.description,
        }


@dataclass(frozen=True, slots=True)
class _Identified:
    """A hit's identifier: its semantic codes, and their nodes in the tree as far as it has them."""

    codes: list[int]
    nodes: list[int]


class Explainer:
    """Explains hits of one index; descriptions of clusters are kept once they were read."""

    def __init__(self, loaded: LoadedIndex) -> None:
        self._loaded, self._index = loaded, loaded.index
        self._descriptions: dict[int, str | None] = {}

    def explain(
        self, hits: Sequence[Hit], candidates: Candidates, encoded: EncodedQueries
    ) -> list[dict[str, Any]]:
        """Why each hit of a query is one, as the module's docstring lists.

        Args:
            hits: Hits of one query.
            candidates: Candidates of the query.
            encoded: The query alone, with the hidden states that the generator reads.
        """
        matched: list[dict[str, Any] | None] = [None] * len(hits)
        if encoded.is_text:
            matched = self._matched(hits, encoded.vectors.caption_BW[0])
        paths = self._paths(hits, encoded)
        ranks = candidates.ranks()
        position_of = {str(id): c for c, id in enumerate(candidates.ids)}
        out: list[dict[str, Any]] = []
        for hit, caption, steps in zip(hits, matched, paths, strict=True):
            c = position_of[hit.id]
            prior = candidates.modality_prior(c) if encoded.is_text else None
            out.append(
                {
                    "rank_in": {name: of[hit.id] for name, of in ranks.items() if hit.id in of},
                    "media_similarity": _rounded(candidates.media_C[c]),
                    "caption_similarity": _rounded(candidates.caption_C[c]),
                    "hubness": _rounded(candidates.items.hub_C[c]),
                    "modality_prior": _rounded(prior),
                    "matched_caption": caption,
                    "identifier_path": [step.to_json() for step in steps],
                }
            )
        return out

    def _matched(self, hits: Sequence[Hit], caption_W: FloatArray) -> list[dict[str, Any] | None]:
        """The caption of each hit that is nearest to the query."""
        texts = [[c["text"] for c in hit.payload.get("captions") or []] for hit in hits]
        flat = list(dict.fromkeys(text for one in texts for text in one))
        if not flat:
            return [None] * len(hits)
        x = self._loaded.caption_vectors(flat) @ caption_W
        cosine = dict(zip(flat, x.tolist(), strict=True))
        out: list[dict[str, Any] | None] = []
        for one in texts:
            best = max(one, key=lambda text: cosine[text], default=None)
            similarity = None if best is None else _rounded(cosine[best])
            out.append(None if best is None else {"text": best, "similarity": similarity})
        return out

    def _paths(self, hits: Sequence[Hit], encoded: EncodedQueries) -> list[list[Step]]:
        """The identifier of each hit, level by level."""
        info, decoder = self._index.manifest.identifiers, self._loaded.decoder
        if info is None or decoder is None:
            return [[] for _ in hits]
        trie, codec = decoder.trie, decoder.codec
        identified: list[_Identified] = []
        by_space: dict[str, list[int]] = {}
        for n, hit in enumerate(hits):
            cart = hit.payload.get(info.field)
            codes = [*cart["codes"]] if cart else []
            identified.append(_Identified(codes, trie.path(codes)))
            # A point may be newer than the tree that was loaded.
            if len(identified[n].nodes) == codec.levels:
                name = codec.name_of(codes[0])
                assert name is not None
                by_space.setdefault(name, []).append(n)
        log_probs: dict[int, list[float | None]] = {}
        for name, rows in by_space.items():
            found = self._log_probs(decoder, name, [identified[n] for n in rows], encoded)
            log_probs |= dict(zip(rows, found, strict=True))
        return [
            [
                Step(
                    code=one.codes[level],
                    items=trie.leaves(level, node),
                    log_prob=log_probs[n][level] if n in log_probs else None,
                    description=self._describe(one.codes[0]) if level == 0 else None,
                )
                for level, node in enumerate(one.nodes)
            ]
            for n, one in enumerate(identified)
        ]

    def _log_probs(
        self,
        decoder: IdentifierDecoder,
        name: str,
        rows: Sequence[_Identified],
        encoded: EncodedQueries,
    ) -> list[list[float | None]]:
        """Log-probability of each level's code among its siblings in the tree, for each hit of one
        identifier space; none where the query does not reach it."""
        trie, vectors = decoder.trie, encoded.vectors
        scorer = decoder.scorer(
            name, vectors.media, vectors.hidden_states, vectors.mask_BS, vectors.caption_BW
        )
        if scorer is None:
            return [[None] * len(one.codes) for one in rows]
        # Hubness is measured with texts: other queries are decoded without the node bonus.
        bonus = decoder.bonus_in(name) if encoded.is_text else None
        codes_HL: IntArray = np.asarray([one.codes for one in rows], np.int32)
        out: list[list[float | None]] = [[] for _ in rows]
        for level in range(codes_HL.shape[1]):
            query_R = np.zeros(1 if level == 0 else len(rows), dtype=np.intp)
            parent_R = np.zeros_like(query_R) if level < 2 else np.arange(len(rows))
            table = scorer(level, query_R, codes_HL[: len(query_R), :level], parent_R)
            for n, one in enumerate(rows):
                nodes = one.nodes
                begin, end = trie.children(level, nodes[level - 1] if level else None)
                scores = table[0 if len(table) == 1 else n][trie.levels[level].tokens[begin:end]]
                if bonus is not None:
                    above = bonus.hub(level - 1, np.asarray(nodes[level - 1 : level] or [0]))
                    scores = scores + bonus.enter(bonus.hub(level, np.arange(begin, end)), above)
                own = float(scores[nodes[level] - begin])
                reached = np.isfinite(own)
                out[n].append(own - float(np.logaddexp.reduce(scores)) if reached else None)
        return out

    def _describe(self, cluster: int) -> str | None:
        """Description of a coarse cluster."""
        if cluster not in self._descriptions:
            self._descriptions[cluster] = self._typical(cluster) or self._label(cluster)
        return self._descriptions[cluster]

    def _typical(self, cluster: int) -> str | None:
        """The caption that is nearest to the mean of the cluster's captions."""
        info = self._index.manifest.identifiers
        assert info is not None
        match = qdrant.MatchValue(value=str(cluster))
        of = qdrant.Filter(must=[qdrant.FieldCondition(key=f"{info.field}.p1", match=match)])
        slot = self._index.caption_vector
        records = self._index.store.scroll(
            of, with_payload=["captions"], with_vectors=[slot], batch=SAMPLE
        )
        found = [
            ((r.payload or {})["captions"][0]["text"], x)
            for r in islice(records, SAMPLE)
            if (x := vector_of(r, slot)) is not None
        ]
        if not found:
            return None
        x_ND = np.asarray([x for _, x in found], dtype=np.float32)
        return str(found[int(np.argmax(x_ND @ x_ND.mean(axis=0)))][0])

    def _label(self, cluster: int) -> str | None:
        """The text anchor that is nearest to the media part of the cluster's centre."""
        text_anchors = self._index.distilled_anchors()
        codec = self._loaded.codec
        if text_anchors is None or codec is None:
            return None
        name = codec.name_of(cluster)
        if name is None or not codec.quantizers[name].parts.media:
            return None
        quantizer = codec.quantizers[name]
        center_D = quantizer.centers_KD[cluster - quantizer.offset]
        x_1D = unit(center_D[None, -self._index.manifest.embedder.dim :])
        names = text_anchors.name(x_1D, uncaptioned(name))
        return names[0] if names else None


def _rounded(value: float | None) -> float | None:
    return None if value is None or np.isnan(value) else round(float(value), 4) + 0.0  # no -0.0
