"""The text encoder: BERT as in all-MiniLM-L6-v2, with taps on its layers.

Written here rather than taken from `transformers`: importing that costs two seconds a command,
and the generator needs the states of inner layers. Parameter names follow the checkpoint.
Shape legend: B batch, S tokens, D width, H heads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from cart_qdrant.embedders.text.tokenizer import load_tokenizer


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, inner: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)
        self.norm2 = nn.LayerNorm(width, eps=eps)

    def forward(self, x_BSD: Tensor, mask_B11S: Tensor) -> Tensor:
        b, s, d = x_BSD.shape
        qkv = self.qkv(x_BSD).view(b, s, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], attn_mask=mask_B11S)
        x = self.norm1(x_BSD + self.out(y.transpose(1, 2).reshape(b, s, d)))
        return cast(Tensor, self.norm2(x + self.down(F.gelu(self.up(x)))))


class Bert(nn.Module):
    """A post-norm BERT encoder whose `forward` returns the states of all its layers."""

    def __init__(
        self, *, vocab: int, positions: int, width: int, layers: int, heads: int, inner: int,
        eps: float = 1e-12,
    ) -> None:  # fmt: skip
        super().__init__()
        self.words = nn.Embedding(vocab, width)
        self.positions = nn.Embedding(positions, width)
        self.types = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.layers = nn.ModuleList(_Layer(width, heads, inner, eps) for _ in range(layers))

    def forward(self, ids_BS: Tensor, mask_BS: Tensor) -> list[Tensor]:
        """States after each layer.

        Args:
            ids_BS: Token ids.
            mask_BS: True where there is a token.

        Returns:
            One (B, S, D) tensor per layer.
        """
        s = ids_BS.shape[1]
        x = self.words(ids_BS) + self.positions.weight[:s] + self.types.weight[0]
        x = self.norm(x)
        mask = mask_BS[:, None, None, :]
        states = []
        for layer in self.layers:
            x = layer(x, mask)
            states.append(x)
        return states


def _convert(state: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Rename the Hugging Face parameters to ours."""
    out = {
        "words.weight": state["embeddings.word_embeddings.weight"],
        "positions.weight": state["embeddings.position_embeddings.weight"],
        "types.weight": state["embeddings.token_type_embeddings.weight"],
        "norm.weight": state["embeddings.LayerNorm.weight"],
        "norm.bias": state["embeddings.LayerNorm.bias"],
    }
    for n in range(layers):
        src, dst = f"encoder.layer.{n}.", f"layers.{n}."
        for kind in ("weight", "bias"):
            out[f"{dst}qkv.{kind}"] = torch.cat(
                [state[f"{src}attention.self.{p}.{kind}"] for p in ("query", "key", "value")]
            )
            out[f"{dst}out.{kind}"] = state[f"{src}attention.output.dense.{kind}"]
            out[f"{dst}norm1.{kind}"] = state[f"{src}attention.output.LayerNorm.{kind}"]
            out[f"{dst}up.{kind}"] = state[f"{src}intermediate.dense.{kind}"]
            out[f"{dst}down.{kind}"] = state[f"{src}output.dense.{kind}"]
            out[f"{dst}norm2.{kind}"] = state[f"{src}output.LayerNorm.{kind}"]
    return out


@dataclass(frozen=True, slots=True)
class Encoded:
    """A batch of encoded texts.

    Attributes:
        taps: States of the tapped layers, each (B, S, D).
        mask_BS: True where there is a token.
        pooled_BD: Mean of the last layer over tokens, L2-normalised: the MiniLM sentence vector.
    """

    hidden_states: tuple[Tensor, ...]
    mask_BS: Tensor
    pooled_BD: Tensor


class TextEncoder:
    """Tokenizer and BERT together, frozen, for inference.

    Args:
        folder: Holds `config.json`, `tokenizer.json` and `model.safetensors`.
    """

    hidden_states = (1, 3, 5)
    """Layers whose states the generator reads, counted from 0: the paper's E1, E2, E3."""

    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        self.tokenizer = load_tokenizer(folder)
        layers = int(config["num_hidden_layers"])
        self.dim = int(config["hidden_size"])
        with torch.device("meta"):
            self.bert = Bert(
                vocab=config["vocab_size"],
                positions=config["max_position_embeddings"],
                width=self.dim,
                layers=layers,
                heads=config["num_attention_heads"],
                inner=config["intermediate_size"],
                eps=config["layer_norm_eps"],
            )
        state = _convert(load_file(folder / "model.safetensors"), layers)
        self.bert.load_state_dict(state, strict=True, assign=True)
        self.bert.eval().requires_grad_(False)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, at most `tokens.MAX_TOKENS`."""
        return [e.ids for e in self.tokenizer.encode_batch(list(texts))]

    @torch.inference_mode()
    def encode_ids(self, ids: Sequence[Sequence[int]], *, bf16: bool = False) -> Encoded:
        """Encode one padded batch of token ids."""
        longest = max(map(len, ids))
        ids_BS = torch.zeros(len(ids), longest, dtype=torch.long)
        mask_BS = torch.zeros(len(ids), longest, dtype=torch.bool)
        for row, one in enumerate(ids):
            ids_BS[row, : len(one)] = torch.tensor(one)
            mask_BS[row, : len(one)] = True
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            states = self.bert(ids_BS, mask_BS)
        last = states[-1].float()
        weight = mask_BS[:, :, None].float()
        pooled = F.normalize((last * weight).sum(1) / weight.sum(1), dim=-1)
        return Encoded(tuple(states[n] for n in self.hidden_states), mask_BS, pooled)

    def batches(
        self, texts: Sequence[str], *, batch: int = 256, bf16: bool = False
    ) -> Iterator[tuple[list[int], Encoded]]:
        """Encode many texts in batches of like length; yields (positions in `texts`, batch)."""
        ids = self.tokenize(texts)
        order = sorted(range(len(ids)), key=lambda n: len(ids[n]))
        for begin in range(0, len(order), batch):
            rows = order[begin : begin + batch]
            yield rows, self.encode_ids([ids[n] for n in rows], bf16=bf16)

    def embed(self, texts: Sequence[str], *, batch: int = 256) -> npt.NDArray[np.float32]:
        """Sentence vectors x_BD, float32, L2-normalised."""
        out_BD = np.zeros((len(texts), self.dim), dtype=np.float32)
        for rows, encoded in self.batches(texts, batch=batch, bf16=len(texts) > 8):
            out_BD[rows] = encoded.pooled_BD.numpy()
        return out_BD
