"""Chooses what maps texts into the media spaces: the trained tower, the embedder's own texts, or a
blend of both.

An embedder with a text tower of its own may know more than a few thousand captions teach. It has
two forms: by *anchors*, some texts whose vectors are kept with the model, or by the *embedder*
itself, which each search must then load. What finds most on the held-out captions that choose is
taken, the embedder only where it clearly finds more.
Shape legend: B queries, N items, D vector width, S sources.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cart_qdrant.arrays.types import FloatArray, IndexArray
from cart_qdrant.embedders.zero_shot import TextAnchors
from cart_qdrant.index.index import Index
from cart_qdrant.search.fusion import ANCHORS, EMBEDDER, MEANINGFUL
from cart_qdrant.training.corpus import Corpus
from cart_qdrant.training.query_vectors import QueryVectors
from cart_qdrant.training.ranks import found, ranks_in
from cart_qdrant.training.split import FOLDS, Split

SHARES = (0.25, 0.5, 0.75, 1.0)
"""Shares of the embedder's vectors that are tried."""
ASKED = 300
"""Queries of each stratum that choose, at most: a large text tower embeds a few a second."""
CLEAR_GAIN = 0.02
"""R@1 and R@10 together that the embedder must find more than what needs no embedder."""
_BLOCK = 64


@dataclass(frozen=True, slots=True)
class QuerySource:
    """Where a query vector in a media space comes from.

    Attributes:
        zero_shot: Share of the embedder's vector; the rest is the tower's.
        by: `ANCHORS` or `EMBEDDER`: what gives the embedder's vector.
    """

    zero_shot: float = 0.0
    by: str = ANCHORS


def choose_source(
    index: Index,
    corpus: Corpus,
    split: Split,
    tower: QueryVectors,
    anchors: TextAnchors | None,
    usual: float,
    seed: int,
) -> QueryVectors:
    """The query vectors of the corpus by the source that is chosen.

    Args:
        tower: The vectors by the trained tower alone.
        anchors: Texts with the embedder's vectors; None where it embeds no text.
        usual: Share of the anchors where too few queries are held out to choose, or where folds of
            a cross-fitting would choose differently.
        seed: Of the sample of queries.
    """
    if anchors is None or not tower.tower:
        return tower
    by_anchors = tower.by_anchors(anchors, usual)
    rng = np.random.default_rng(seed)
    strata = [rng.permutation(pairs)[:ASKED] for pairs in split.choose.strata.values()]
    if sum(map(len, strata)) < MEANINGFUL:
        return by_anchors
    rows = np.concatenate(strata)
    embeds = index.text_anchors() is None
    exact = own_vectors(index, tower, rows) if embeds else {}
    # A few queries tell the tower from the embedder, but not one share from the next.
    kept_by = (usual or SHARES[0],) if split.cross_fitted else SHARES
    loaded_by = SHARES[-1:] if split.cross_fitted else SHARES
    sources = [QuerySource(), *(QuerySource(share, ANCHORS) for share in kept_by)]
    values = [_found(tower, corpus, rows, by_anchors.untrained, (0.0, *kept_by))]
    if exact:
        sources += [QuerySource(share, EMBEDDER) for share in loaded_by]
        values.append(_found(tower, corpus, rows, _spread(tower, rows, exact), loaded_by))
    value_BS = np.concatenate(values, axis=1)
    weight_B = np.concatenate([np.full(len(one), 1 / len(one)) for one in strata])
    file_B = corpus.file_N[corpus.item_P[rows]]
    chosen = _choose(sources, value_BS, weight_B)
    if split.cross_fitted:
        fold_B = np.unique(file_B, return_inverse=True)[1] % FOLDS
        for fold in np.unique(fold_B):
            kept = fold_B != fold
            if _choose(sources, value_BS[kept], weight_B[kept]) != chosen:
                # What is reported would have chosen.
                return by_anchors
    if chosen.by == EMBEDDER:
        held_out = split.held_out()
        return by_anchors.by_embedder(own_vectors(index, tower, held_out), held_out, anchors,
                                      chosen.zero_shot)  # fmt: skip
    return tower.by_anchors(anchors, chosen.zero_shot)


def own_vectors(index: Index, queries: QueryVectors, rows: IndexArray) -> dict[str, FloatArray]:
    """Vectors (B, D) that the embedder itself gives to the texts of pairs, by media space."""
    embedder = index.embedder()
    texts = [queries.texts[n] for n in queries.text_P[rows].tolist()]
    out: dict[str, FloatArray] = {}
    for space in queries.tower:
        parts = []
        for begin in range(0, len(texts), _BLOCK):
            vectors = embedder.embed_text(texts[begin : begin + _BLOCK], space)
            if vectors is None:
                break
            parts.append(vectors)
        if parts:
            out[space] = np.concatenate(parts)
    return out


def _spread(
    queries: QueryVectors, rows: IndexArray, exact: Mapping[str, FloatArray]
) -> dict[str, FloatArray]:
    """Vectors of some pairs' texts as rows of arrays of all texts (U, D)."""
    out: dict[str, FloatArray] = {}
    for space, q_BD in exact.items():
        out[space] = np.zeros_like(queries.tower[space])
        out[space][queries.text_P[rows]] = q_BD
    return out


def _choose(
    sources: Sequence[QuerySource], value_BS: FloatArray, weight_B: FloatArray
) -> QuerySource:
    """The source of greatest mean value; of equal ones the first. The embedder must be better than
    all others by `CLEAR_GAIN`."""
    mean_S = (weight_B @ value_BS) / weight_B.sum()
    free = np.asarray([source.by == ANCHORS for source in sources])
    best = int(np.argmax(np.where(free, mean_S, -np.inf)))
    if not free.all():
        loaded = int(np.argmax(np.where(free, -np.inf, mean_S)))
        if mean_S[loaded] >= mean_S[best] + CLEAR_GAIN:
            best = loaded
    return sources[best]


def _found(
    queries: QueryVectors,
    corpus: Corpus,
    rows: IndexArray,
    own: Mapping[str, FloatArray],
    shares: Sequence[float],
) -> FloatArray:
    """What each query finds (B, S) among the items of its space by cosine, with several shares of
    other vectors."""
    out = np.zeros((len(rows), len(shares)), dtype=np.float32)
    right_B = corpus.item_P[rows]
    for space, tower_UD in queries.tower.items():
        items = np.flatnonzero(corpus.vectors.spaces == space)
        mine = np.flatnonzero(corpus.vectors.spaces[right_B] == space)
        x_ND = corpus.vectors.x_ND[items]
        for begin in range(0, len(mine), _BLOCK):
            part = mine[begin : begin + _BLOCK]
            texts = queries.text_P[rows[part]]
            target_B = np.searchsorted(items, right_B[part])
            by_tower_BN = tower_UD[texts] @ x_ND.T
            # The length of a blend does not matter to its order.
            by_own_BN = own[space][texts] @ x_ND.T if space in own else by_tower_BN
            for s, share in enumerate(shares):
                score_BN = (1 - share) * by_tower_BN + share * by_own_BN
                out[part, s] = found(ranks_in(score_BN, target_B))
    return out
