"""The identifiers stage: of what identifiers are made, and that no held-out caption is in what the
later stages learn from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from cart_qdrant.compute import Compute
from cart_qdrant.generator.beam_search import Beams
from cart_qdrant.generator.decode import IdentifierDecoder
from cart_qdrant.identifiers.parts import MADE_OF, MadeOf, captioned
from cart_qdrant.index.identify import made_of
from cart_qdrant.index.index import Index
from cart_qdrant.progress import Silent
from cart_qdrant.training.options import TowerConfig, TrainOptions
from cart_qdrant.training.stages.data import read_data
from cart_qdrant.training.stages.identifiers import fit_identifiers
from cart_qdrant.training.stages.state import (
    FittedIdentifiers,
    Run,
    StoredCaptions,
    TrainedTower,
    TrainingData,
)
from cart_qdrant.training.stages.tower import train_tower
from tests.unit.training.toy_index import TextTowerEmbedder, toy_index

Trained = tuple[Run, TrainingData, TrainedTower]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    """A query encoder after one step, and what it was trained on."""
    root = tmp_path_factory.mktemp("identifiers") / ".cartq"
    with toy_index(root, TextTowerEmbedder(knows=True)) as index, index.folder.lock():
        options = TrainOptions(profile="quick", tower=TowerConfig(epochs=1, min_steps=1))
        run = Run(index, options, Silent(), Compute())
        data = read_data(run)
        yield run, data, train_tower(run, data)


def fit(trained: Trained, made: MadeOf = "both") -> FittedIdentifiers:
    run, data, tower = trained
    run = replace(run, options=replace(run.options, identifiers_from=made))
    text_PW = tower.queries.caption(np.arange(len(data.corpus.texts)))
    return fit_identifiers(run, data, tower, StoredCaptions("caption", False, text_PW))


def with_other_texts(tower: TrainedTower, rows: np.ndarray) -> TrainedTower:
    """The tower, had the texts of some pairs meant something else."""
    queries = tower.queries
    caption_UW = queries.caption_UW.copy()
    caption_UW[queries.text_P[rows]] = np.roll(caption_UW[queries.text_P[rows]], 7, axis=1)
    query_PD = tower.query_PD.copy()
    query_PD[rows] = np.roll(query_PD[rows], 3, axis=1)
    return replace(tower, queries=replace(queries, caption_UW=caption_UW), query_PD=query_PD)


def assert_same_view(one: FittedIdentifiers, other: FittedIdentifiers) -> None:
    """The later stages read the same of both."""
    assert one.name_N.tolist() == other.name_N.tolist()
    for name in ("rows_NL", "hub_N", "caption_hub_N"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    a, b = one.codec.to_arrays(), other.codec.to_arrays()
    assert a.keys() == b.keys() and one.codec.to_meta() == other.codec.to_meta()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])
    np.testing.assert_array_equal(one.trie.rows(), other.trie.rows())
    np.testing.assert_array_equal(one.trie.hub_N, other.trie.hub_N)


def test_no_held_out_caption_is_in_what_later_stages_learn_from(trained: Trained) -> None:
    run, data, tower = trained
    held_P, train_P = data.split.held_out(), data.split.train_P
    assert len(held_P) > 10
    first = fit(trained)
    assert_same_view(first, fit((run, data, with_other_texts(tower, held_P))))
    # It is no empty claim: other texts that train make other identifiers.
    others = fit((run, data, with_other_texts(tower, train_P[:30])))
    assert (first.rows_NL != others.rows_NL).any()


def test_held_out_items_count_as_items_without_a_caption(trained: Trained) -> None:
    _, data, _ = trained
    found = fit(trained)
    of_captions = found.name_N == captioned("visual")
    assert data.split.held_items.any()
    np.testing.assert_array_equal(of_captions, ~data.split.held_items)
    assert np.isnan(found.caption_hub_N[data.split.held_items]).all()
    # Stored are identifiers of all captions.
    stored = {
        found.codec.name_of(((record.payload or {})[found.info.field])["codes"][0])
        for record in trained[0].index.store.scroll(with_payload=[found.info.field])
    }
    assert stored == {captioned("visual")}


@pytest.mark.parametrize("made", MADE_OF)
def test_identifiers_are_made_of_what_is_asked_for(trained: Trained, made: MadeOf) -> None:
    found = fit(trained, made)
    assert made_of(found.info) == made
    run, data, tower = trained
    dim, width = run.index.manifest.embedder.dim, tower.queries.caption_UW.shape[1]
    dims = {name: q.dim for name, q in found.codec.quantizers.items()}
    if made == "media":
        assert dims == {"visual": dim}
        np.testing.assert_array_equal(found.trie.rows().shape, found.rows_NL.shape)
        return
    assert dims == {"visual": dim, captioned("visual"): width + dim * (made == "both")}
    # The factors are those that the query encoder was trained by.
    scales = {name: float(x.detach()) for name, x in data.encoder.scales().items()}
    parts = found.codec.quantizers[captioned("visual")].parts
    assert parts.caption * tower.scale == pytest.approx(scales["caption"], rel=1e-5)
    wanted = scales["beside"] if made == "both" else 0.0
    assert parts.media * tower.scale == pytest.approx(wanted, rel=1e-5)


def test_a_text_names_items_by_their_captions(trained: Trained) -> None:
    """With pictures that say nothing, what is said of them finds them."""
    run, data, tower = trained
    found, rows = fit(trained), data.split.train_P[:60]
    decoder = IdentifierDecoder(
        trie=found.trie, codec=found.codec, scale=tower.scale, width=10,
        gates=[0.0] * found.codec.levels,
    )  # fmt: skip
    noise = np.random.default_rng(0).normal(size=(len(rows), run.index.manifest.embedder.dim))
    media = {"visual": (noise / np.linalg.norm(noise, axis=1, keepdims=True)).astype(np.float32)}

    def hits(beams: list[Beams]) -> float:
        wanted = found.rows_NL[data.corpus.item_P[rows]]
        each = zip(beams, wanted, strict=True)
        return float(np.mean([(one.rows_KL == row).all(axis=1).any() for one, row in each]))

    told = hits(decoder.decode(media, caption_BW=tower.queries.caption(rows)))
    assert told > 0.8 > hits(decoder.decode(media)) + 0.2


def test_an_index_that_keeps_no_captions_has_identifiers_of_media(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Index, "keeps_captions", False)
    assert made_of(fit(trained).info) == "media"
