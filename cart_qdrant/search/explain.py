"""Why an item is a hit: the lanes that found it, its identifier read level by level, the caption.

Shape legend: H hits, L levels, V codes, D vector width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from cart_qdrant.arrays.types import FloatArray
from cart_qdrant.extras import require
from cart_qdrant.generator.beam_search import PriorScorer, Scorer
from cart_qdrant.generator.prior import NodeGains, prior_logits
from cart_qdrant.identifiers.codec import Codec
from cart_qdrant.identifiers.trie import Trie
from cart_qdrant.index.index import Index
from cart_qdrant.index.points import vector_of
from cart_qdrant.records import Hit
from cart_qdrant.search.candidates import Encoded, Pool
from cart_qdrant.search.fusion import Calibration
from cart_qdrant.search.trained import Trained
from cart_qdrant.storage import requests as qdrant
from cart_qdrant.storage.protocol import CAPTION

SAMPLE = 200
"""Items of a cluster that it is described by."""


@dataclass(frozen=True, slots=True)
class Step:
    """One level of an identifier.

    Attributes:
        code: The code chosen.
        items: How many items share the identifier up to here.
        log_prob: Log-probability of the code among those that the tree allows after the prefix;
            None where the query does not reach the item's space, or its cluster is too far to be
            looked at.
        description: What the items of the coarse cluster are like: their most typical caption, or a
            label; None at the other levels.
    """

    code: int
    items: int
    log_prob: float | None
    description: str | None

    def to_json(self) -> dict[str, Any]:
        """One object."""
        return {
            "code": self.code,
            "items": self.items,
            "log_prob": None if self.log_prob is None else round(self.log_prob, 4),
            "description": self.description,
        }


class Explainer:
    """Explains hits of one index; what it reads of clusters it keeps."""

    def __init__(
        self,
        index: Index,
        trie: Trie | None,
        codec: Codec | None,
        model: Trained | None,
        calibration: Calibration,
        gains: NodeGains | None,
    ) -> None:
        self._index, self._trie, self._codec = index, trie, codec
        self._model, self._calibration, self._gains = model, calibration, gains
        self._words: dict[int, str | None] = {}

    def explain(self, hits: Sequence[Hit], pool: Pool, encoded: Encoded) -> list[dict[str, Any]]:
        """Why each of a query's hits is one.

        Args:
            hits: Of one query.
            pool: Its candidates.
            encoded: The query alone, with the text states that the generator reads.
        """
        matched: list[dict[str, Any] | None] = [None] * len(hits)
        if encoded.is_text:
            matched = self._matched(hits, encoded.caption_BW[0])
        paths = self._paths(hits, encoded)
        ranks = pool.ranks()
        place_of = {str(id): place for place, id in enumerate(pool.ids)}
        out: list[dict[str, Any]] = []
        for hit, found, steps in zip(hits, matched, paths, strict=True):
            place = place_of[hit.id]
            out.append(
                {
                    "rank_in": {name: of[hit.id] for name, of in ranks.items() if hit.id in of},
                    "media_similarity": _rounded(pool.media_C[place]),
                    "caption_similarity": _rounded(pool.caption_C[place]),
                    "hubness": _rounded(pool.facts.hub_C[place]),
                    "modality_prior": _rounded(pool.belief_of(place)) if encoded.is_text else None,
                    "matched_caption": found,
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
        if self._model is None:
            x = self._index.query_text_encoder().embed(flat) @ caption_W
        else:
            x = self._model.encode(flat).text_BW @ caption_W
        cosine = dict(zip(flat, x.tolist(), strict=True))
        out: list[dict[str, Any] | None] = []
        for one in texts:
            best = max(one, key=lambda text: cosine[text], default=None)
            out.append(
                None if best is None else {"text": best, "similarity": round(cosine[best], 4)}
            )
        return out

    def _paths(self, hits: Sequence[Hit], encoded: Encoded) -> list[list[Step]]:
        info, trie, codec = self._index.manifest.identifiers, self._trie, self._codec
        if info is None or trie is None or codec is None:
            return [[] for _ in hits]
        out: list[list[Step]] = []
        by_space: dict[str, list[int]] = {}
        codes: list[list[int]] = []
        paths: list[list[int]] = []
        for n, hit in enumerate(hits):
            cart = hit.payload.get(info.field)
            codes.append([*cart["codes"]] if cart else [])
            paths.append(trie.path(codes[n]))
            space = self._index.space(hit.modality)
            # A point may be newer than the tree that was loaded.
            known = len(paths[n]) == codec.levels
            if known and space in encoded.media and space in codec.quantizers:
                by_space.setdefault(str(space), []).append(n)
        log_probs: dict[int, list[float | None]] = {}
        for space, rows in by_space.items():
            codes_HL = np.asarray([codes[n] for n in rows], np.int32)
            found = self._log_probs(space, codes_HL, [paths[n] for n in rows], encoded)
            log_probs |= dict(zip(rows, found, strict=True))
        for n, (row, nodes) in enumerate(zip(codes, paths, strict=True)):
            shares = log_probs.get(n)
            out.append(
                [
                    Step(
                        code=row[level],
                        items=trie.leaves(level, node),
                        log_prob=None if shares is None else shares[level],
                        description=self._describe(row[0]) if level == 0 else None,
                    )
                    for level, node in enumerate(nodes)
                ]
            )
        return out

    def _log_probs(
        self,
        space: str,
        codes_HL: npt.NDArray[np.int32],
        paths: Sequence[list[int]],
        encoded: Encoded,
    ) -> list[list[float | None]]:
        """Log-probability of each level's code among its siblings in the tree.

        Args:
            paths: Nodes of each row of codes.
        """
        assert self._trie is not None and self._codec is not None
        trie, calibration = self._trie, self._calibration
        levels = prior_logits(self._codec, encoded.media, space, calibration.scale)
        scorer: Scorer = PriorScorer(levels)
        if self._model is not None and any(calibration.gates):
            require("train", "torch")
            from cart_qdrant.generator.network import GeneratorScorer

            scorer = GeneratorScorer.of(
                self._model.generator, encoded.hidden_states, encoded.mask_BS, encoded.media[space],
                levels, calibration.gates,
            )  # fmt: skip
        count = len(codes_HL)
        out: list[list[float | None]] = [[] for _ in range(count)]
        for level in range(codes_HL.shape[1]):
            query_R = np.zeros(1 if level == 0 else count, dtype=np.intp)
            parent_R = np.zeros_like(query_R) if level < 2 else np.arange(count)
            table = scorer(level, query_R, codes_HL[: len(query_R), :level], parent_R)
            for n, nodes in enumerate(paths):
                begin, end = trie.children(level, nodes[level - 1] if level else None)
                scores = table[0 if len(table) == 1 else n][trie.levels[level].tokens[begin:end]]
                # Hubness is that of texts: queries of other kinds are decoded without it.
                if self._gains is not None and encoded.is_text:
                    above = self._gains.hub(level - 1, np.asarray(nodes[level - 1 : level] or [0]))
                    hubs = self._gains.hub(level, np.arange(begin, end))
                    scores = scores + self._gains.enter(hubs, above)
                own = float(scores[nodes[level] - begin])
                seen = np.isfinite(own)
                out[n].append(own - float(np.logaddexp.reduce(scores)) if seen else None)
        return out

    def _describe(self, cluster: int) -> str | None:
        """Words for a coarse cluster."""
        if cluster not in self._words:
            self._words[cluster] = self._typical(cluster) or self._label(cluster)
        return self._words[cluster]

    def _typical(self, cluster: int) -> str | None:
        """The caption that is nearest to the mean of the cluster's captions."""
        info = self._index.manifest.identifiers
        assert info is not None
        match = qdrant.MatchValue(value=str(cluster))
        of = qdrant.Filter(must=[qdrant.FieldCondition(key=f"{info.field}.p1", match=match)])
        records = self._index.store.scroll(
            of, with_payload=["captions"], with_vectors=[CAPTION], batch=SAMPLE
        )
        found = [
            ((r.payload or {})["captions"][0]["text"], x)
            for r in islice(records, SAMPLE)
            if (x := vector_of(r, CAPTION)) is not None
        ]
        if not found:
            return None
        x_ND = np.asarray([x for _, x in found], dtype=np.float32)
        return str(found[int(np.argmax(x_ND @ x_ND.mean(axis=0)))][0])

    def _label(self, cluster: int) -> str | None:
        """The text, of those that the embedder knows, that is nearest to the cluster's centre."""
        text_anchors = self._index.distilled_anchors()
        if text_anchors is None or self._codec is None:
            return None
        for space, quantizer in self._codec.quantizers.items():
            row = cluster - quantizer.offset
            if 0 <= row < len(quantizer.centers_KD):
                names = text_anchors.name(quantizer.centers_KD[row : row + 1], space)
                return names[0] if names else None
        return None


def _rounded(value: float | None) -> float | None:
    return None if value is None or np.isnan(value) else round(float(value), 4)
