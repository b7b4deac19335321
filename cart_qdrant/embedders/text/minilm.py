"""The text encoder in torch: BERT as in all-MiniLM-L6-v2.

Written here rather than taken from `transformers`, whose import costs two seconds a command, and
because training needs the hidden states of inner layers.
Shape legend: B batch, S tokens, D width.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from cart_qdrant.compute import Compute, ComputeOptions, Work, attend, choose
from cart_qdrant.embedders.text.tokenizer import load_tokenizer


class _Layer(nn.Module):
    """One post-norm transformer layer."""

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
        y = attend(qkv[0], qkv[1], qkv[2], mask_B11S)
        x = self.norm1(x_BSD + self.out(y.transpose(1, 2).reshape(b, s, d)))
        return cast(Tensor, self.norm2(x + self.down(F.gelu(self.up(x)))))


class Bert(nn.Module):
    """A post-norm BERT encoder whose `forward` returns the hidden states of all its layers."""

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
        """Hidden states after each layer.

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
    """The parameters of a Hugging Face checkpoint under the names of `Bert`."""
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


class TextEncoder:
    """A tokenizer and a frozen BERT that turn texts into sentence vectors.

    Args:
        folder: Holds `config.json`, `tokenizer.json` and `model.safetensors`.
        options: Where `embed` computes, and in which number format.
    """

    def __init__(self, folder: Path, options: ComputeOptions | None = None) -> None:
        self._options = options or ComputeOptions()
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
        self._elsewhere: dict[str, Bert] = {}

    def bert_on(self, device: str) -> Bert:
        """The encoder on a device; the one on the CPU stays there."""
        if device == "cpu":
            return self.bert
        if device not in self._elsewhere:
            self._elsewhere[device] = copy.deepcopy(self.bert).to(device)
        return self._elsewhere[device]

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, at most `tokenizer.MAX_TOKENS` of them."""
        return [e.ids for e in self.tokenizer.encode_batch(list(texts))]

    @torch.inference_mode()
    def encode_ids(self, ids: Sequence[Sequence[int]], *, compute: Compute | None = None) -> Tensor:
        """Sentence vectors x_BD: the mean of the last layer over tokens, L2-normalised.

        Args:
            ids: Token ids of each text.
            compute: Where, and in which number format; by default on the CPU in float32.
        """
        compute = compute or Compute()
        longest = max(map(len, ids))
        ids_BS = torch.zeros(len(ids), longest, dtype=torch.long)
        mask_BS = torch.zeros(len(ids), longest, dtype=torch.bool)
        for row, one in enumerate(ids):
            ids_BS[row, : len(one)] = torch.tensor(one)
            mask_BS[row, : len(one)] = True
        ids_BS, mask_BS = ids_BS.to(compute.device), mask_BS.to(compute.device)
        with compute.autocast():
            last = self.bert_on(compute.device)(ids_BS, mask_BS)[-1].float()
        weight = mask_BS[:, :, None].float()
        return F.normalize((last * weight).sum(1) / weight.sum(1), dim=-1).cpu()

    def batches(
        self, texts: Sequence[str], *, batch: int = 256, compute: Compute | None = None
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Encode texts in batches of one length: without padding, no text's vector depends on the
        others, and none is computed for nothing.

        Yields:
            Positions of the batch's texts in `texts`, and their sentence vectors x_BD.
        """
        ids = self.tokenize(texts)
        by_length: dict[int, list[int]] = {}
        for n, one in enumerate(ids):
            by_length.setdefault(len(one), []).append(n)
        for _, alike in sorted(by_length.items()):
            for begin in range(0, len(alike), batch):
                rows = alike[begin : begin + batch]
                yield rows, self.encode_ids([ids[n] for n in rows], compute=compute)

    def embed(self, texts: Sequence[str], *, batch: int = 256) -> npt.NDArray[np.float32]:
        """Sentence vectors x_BD, float32, L2-normalised, computed in one format however many texts
        there are: in bfloat16 within 1e-4 of the cosines of float32 (docs/experiments.md)."""
        out_BD = np.zeros((len(texts), self.dim), dtype=np.float32)
        compute = choose(self._options, Work.TEXT)
        for rows, vectors_BD in self.batches(texts, batch=batch, compute=compute):
            out_BD[rows] = vectors_BD.numpy()
        return out_BD
