"""The networks on another device than the CPU: on torch's `meta`, which refuses operands of two
devices as a GPU does, and computes no number."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from cart_qdrant.compute import Compute
from cart_qdrant.embedders.text.minilm import Bert
from cart_qdrant.generator.network import Generator, GeneratorConfig
from cart_qdrant.training.query_encoder import QueryEncoder, pooled


@dataclass(frozen=True)
class _Meta(Compute):
    """The device `meta`, which has no other formats."""

    device: str = "meta"

    def autocast(self) -> Any:
        return nullcontext()


META = _Meta()


def text_encoder() -> Any:
    """An untrained encoder in the place of the real one, whose weights are numbers."""
    bert = Bert(vocab=20, positions=16, width=8, layers=6, heads=2, inner=16)
    return SimpleNamespace(
        bert=bert, dim=8, tokenizer=None, tokenize=None, bert_on=lambda device: bert.to(device)
    )


def test_the_query_encoder_is_trained_where_it_lies() -> None:
    encoder = QueryEncoder(text_encoder(), {"visual": 6}, META)
    assert {x.device.type for x in encoder.parameters()} == {"meta"}
    found = encoder.encode([[1, 2, 3], [4, 5]])
    assert found.media["visual"].device.type == "meta"
    ids = torch.ones(2, 3, dtype=torch.long, device="meta")
    mask = torch.ones(2, 3, dtype=torch.bool, device="meta")
    low = encoder.shared(ids, mask)
    tuned = pooled(encoder.tune(low, mask)[-1], mask)
    features = encoder.features(tuned, encoder.sentence(low, mask), noise=0.5)
    loss = sum(encoder.scales().values()) * (encoder.heads["visual"](features) + 1).sum()
    loss.backward()
    assert all(x.grad is None or x.grad.device.type == "meta" for x in encoder.parameters())


def test_the_generator_is_trained_and_decodes_where_it_lies() -> None:
    config = GeneratorConfig(sizes=(4, 5, 5), media_dim=6, text_width=8, width=8, heads=2)
    generator = Generator(config, META)
    states = [torch.zeros(2, 3, 8, device="meta") for _ in range(3)]
    mask = torch.ones(2, 3, dtype=torch.bool, device="meta")
    media = META.tensor(np.zeros((2, 6), np.float32))
    with META.autocast():
        context = generator.context(states, mask, media)
        hidden = generator(context, torch.zeros(2, 2, dtype=torch.long, device="meta"))
        first, past = generator.step(generator.layer_contexts(context), None, 0, [])
    assert generator.logits(hidden[:, 1].float(), 1).device.type == "meta"
    assert first.device.type == past[0][0].device.type == "meta"
    generator.logits(hidden[:, 2].float(), 2).sum().backward()  # type: ignore[no-untyped-call]
