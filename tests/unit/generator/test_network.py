"""The generator: fusions switch, prefixes are causal, beams are scored alike alone and together."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cart_qdrant.errors import ConfigError
from cart_qdrant.generator.beam_search import beam_search
from cart_qdrant.generator.network import Generator, GeneratorConfig, GeneratorScorer
from cart_qdrant.identifiers.trie import Trie

SIZES = (5, 4, 4)


def make(**options: bool) -> Generator:
    torch.manual_seed(0)
    config = GeneratorConfig(
        sizes=SIZES, media_dim=8, text_width=16, width=32, heads=2, dropout=0.0, **options
    )
    return Generator(config).eval()


def context_of(generator: Generator, queries: int):
    torch.manual_seed(1)
    hidden_states = tuple(torch.randn(queries, 6, 16) for _ in range(3))
    mask = torch.ones(queries, 6, dtype=torch.bool)
    return generator.context(hidden_states, mask, torch.randn(queries, 8))


@pytest.mark.parametrize("coarse,fine", [(True, True), (True, False), (False, True)])
@torch.inference_mode()
def test_each_fusion_can_be_switched_off(coarse: bool, fine: bool) -> None:
    generator = make(coarse_fusion=coarse, fine_fusion=fine)
    state = generator(context_of(generator, 2), torch.tensor([[1, 2], [3, 0]]))
    assert state.shape == (2, 3, 32)
    assert generator.logits(state[:, 0], 0).shape == (2, SIZES[0])
    names = {name.split(".")[2] for name, _ in generator.named_parameters() if "layers." in name}
    assert ("coarse" in names, "fine" in names) == (coarse, fine)


def test_no_fusion_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing is read"):
        make(coarse_fusion=False, fine_fusion=False)


@torch.inference_mode()
def test_a_state_does_not_see_later_codes() -> None:
    generator = make()
    context = context_of(generator, 1)
    a = generator(context, torch.tensor([[1, 2]]))
    b = generator(context, torch.tensor([[1, 3]]))
    assert torch.allclose(a[:, :2], b[:, :2], atol=1e-6)
    assert not torch.allclose(a[:, 2], b[:, 2], atol=1e-3)


@torch.inference_mode()
def test_padding_of_the_context_is_not_read() -> None:
    generator = make()
    hidden_states = tuple(torch.randn(1, 4, 16) for _ in range(3))
    padded = tuple(torch.cat([t, 9 * torch.ones(1, 3, 16)], dim=1) for t in hidden_states)
    short = generator.context(hidden_states, torch.ones(1, 4, dtype=torch.bool), None)
    mask = torch.tensor([[True] * 4 + [False] * 3])
    long = generator.context(padded, mask, None)
    prefix = torch.tensor([[1]])
    assert torch.allclose(generator(short, prefix), generator(long, prefix), atol=1e-5)


def test_a_context_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs text"):
        make().context(None, None, None)


def test_full_width_beams_are_the_enumeration_with_the_learned_correction() -> None:
    generator = make()
    rng = np.random.default_rng(0)
    rows = np.unique(rng.integers(0, 4, (12, 3)), axis=0)
    trie = Trie.build(np.concatenate([rows, np.zeros((len(rows), 1), int)], axis=1))
    prior = [rng.normal(size=(2, v)).astype(np.float32) for v in SIZES]
    gates = [1.0, 0.5, 0.7]
    with torch.inference_mode():
        context = context_of(generator, 2)
    beams = beam_search(trie, GeneratorScorer(generator, context, prior, gates), 2, 1000)
    with torch.inference_mode():
        for query, found in enumerate(beams):
            assert len(found.scores_K) == len(trie)
            one = type(context)(
                tuple(t[query : query + 1] for t in context.hidden_states), context.mask[:1]
            )
            for row, score in zip(found.rows_KL, found.scores_K, strict=True):
                codes = torch.from_numpy(row[None, :2].astype(np.int64))  # the last is only scored
                state = generator(one, codes)
                total = 0.0
                for level in range(3):
                    logits = torch.from_numpy(prior[level][query])
                    logits = logits + gates[level] * generator.logits(state[:, level], level)[0]
                    total += float(torch.log_softmax(logits, -1)[row[level]])
                # bfloat16 in the scorer, float32 here.
                assert score == pytest.approx(total, abs=0.05)


def test_config_round_trip() -> None:
    config = make().config
    assert GeneratorConfig.from_json(config.to_json()) == config
