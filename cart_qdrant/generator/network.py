"""The generator in torch: a decoder that scores the codes of an identifier for an encoded query.

The decoder reads the hidden states E1..E3 of the query encoder by coarse and fine fusion as in
CART (arXiv 2406.17507, section 3.2); each fusion can be switched off. Its logits *correct* the
prior of `beam_search.PriorScorer`:
`log p(v | prefix) = log softmax(scale_m * q . e_{m,v} + gate_m * h_m . w_{m,v})`, so that an item
that training never saw keeps the score of its code vectors. The decoder context holds the text's
hidden states, a vector of the media space (an item's own, if the item has no caption), or both.
Shape legend: B queries, R prefixes, T codes of a prefix, S positions of the decoder context, W
width, V codes, L levels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from cart_qdrant.arrays.types import FloatArray, IndexArray, IntArray, MaskArray
from cart_qdrant.compute import Compute, attend
from cart_qdrant.errors import ConfigError

HIDDEN_STATES = 3
"""Layers of the query encoder whose states the decoder reads: E1, E2, E3."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorConfig:
    """Sizes and switches of a generator's network."""

    sizes: tuple[int, ...]
    """Number of codes of each level: coarse clusters, then the codes of each residual level."""
    media_dim: int
    """Width of a media vector."""
    text_width: int = 384
    """Width of the query encoder's hidden states."""
    width: int = 256
    heads: int = 4
    layers: int = 2
    prefix: int = 2
    """Positions of the decoder context that one media vector is projected to."""
    dropout: float = 0.1
    coarse_fusion: bool = True
    fine_fusion: bool = True
    fine_gates: bool = True
    """Whether fine fusion weights each encoder layer by a learned gate, or averages them."""

    def __post_init__(self) -> None:
        if not (self.coarse_fusion or self.fine_fusion):
            raise ConfigError("coarse_fusion and fine_fusion are both off: nothing is read.")
        if self.width % self.heads:
            raise ConfigError(f"width is {self.width}, but must be a multiple of {self.heads}.")

    def to_json(self) -> dict[str, Any]:
        """The configuration as JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> GeneratorConfig:
        """The configuration that `to_json` wrote."""
        return cls(**{**data, "sizes": tuple(data["sizes"])})


@dataclass(frozen=True, slots=True)
class DecoderContext:
    """What the cross-attention of the decoder reads.

    Attributes:
        hidden_states: States (B, S, W) of each encoder layer, projected to the decoder's width.
        mask: Whether a position holds a state (B, 1, 1, S); False for padding.
    """

    hidden_states: tuple[Tensor, ...]
    mask: Tensor


KeyValues = tuple[Tensor, Tensor]
"""Keys and values, (B, heads, S, W / heads) each."""


class _Attention(nn.Module):
    """Multi-head attention whose keys and values are computed apart from its queries."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def keys(self, x_BSW: Tensor) -> KeyValues:
        """Keys and values of a sequence."""
        b, s, _ = x_BSW.shape
        k, v = self.kv(x_BSW).view(b, s, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        return k, v

    def forward(self, x_BTW: Tensor, keys: KeyValues, mask: Tensor | None) -> Tensor:
        b, t, w = x_BTW.shape
        q = self.q(x_BTW).view(b, t, self.heads, -1).transpose(1, 2)
        y = attend(q, *keys, mask)
        out: Tensor = self.out(y.transpose(1, 2).reshape(b, t, w))
        return out


@dataclass(frozen=True, slots=True)
class LayerContext:
    """The keys and values of a decoder context in one layer."""

    coarse: KeyValues | None
    fine: tuple[KeyValues, ...]
    mask: Tensor


class _Layer(nn.Module):
    """Self-attention over the prefix, fused cross-attention over the context, feed-forward."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        w = config.width
        self.own = _Attention(w, config.heads)
        self.coarse = _Attention(w, config.heads) if config.coarse_fusion else None
        self.coarse_gate = nn.Linear(w, w) if config.coarse_fusion else None
        self.fine = nn.ModuleList()
        self.fine_gates = nn.ModuleList()
        if config.fine_fusion:
            self.fine.extend(_Attention(w, config.heads) for _ in range(HIDDEN_STATES))
            if config.fine_gates:
                self.fine_gates.extend(nn.Linear(2 * w, w) for _ in range(HIDDEN_STATES))
        self.norms = nn.ModuleList(nn.LayerNorm(w) for _ in range(3))
        self.up, self.down = nn.Linear(w, 4 * w), nn.Linear(4 * w, w)
        self.dropout = nn.Dropout(config.dropout)

    def context_keys(self, context: DecoderContext, fused_BSW: Tensor | None) -> LayerContext:
        """Keys and values of a decoder context.

        Args:
            fused_BSW: The hidden states fused to one; None without coarse fusion.
        """
        coarse = None
        if self.coarse is not None:
            assert fused_BSW is not None
            coarse = self.coarse.keys(fused_BSW)
        fine = [
            attention.keys(state)
            # Without fine fusion there are no attentions.
            for attention, state in zip(self.fine, context.hidden_states, strict=False)
            if isinstance(attention, _Attention)
        ]
        return LayerContext(coarse, tuple(fine), context.mask)

    def forward(
        self, x_RTW: Tensor, context: LayerContext, queries: int, past: KeyValues | None = None
    ) -> tuple[Tensor, KeyValues]:
        """New states, and the keys and values of all codes so far.

        Args:
            queries: B; R is a multiple of it.
            past: Keys and values of the earlier codes; T is then 1.
        """
        r, t, w = x_RTW.shape
        y = self.norms[0](x_RTW)
        own = self.own.keys(y)
        if past is not None:
            own = (torch.cat([past[0], own[0]], dim=2), torch.cat([past[1], own[1]], dim=2))
        causal = x_RTW.new_ones(t, t, dtype=torch.bool).tril() if t > 1 else None
        x = x_RTW + self.dropout(self.own(y, own, causal))
        # All beams of a query read the same context: they share the time axis.
        y = self.norms[1](x).reshape(queries, (r // queries) * t, w)
        found = torch.zeros_like(y)
        if self.coarse is not None and self.coarse_gate is not None:
            assert context.coarse is not None
            c = self.coarse(y, context.coarse, context.mask)
            found = found + torch.sigmoid(self.coarse_gate(c)) * c
        for n, (attention, keys) in enumerate(zip(self.fine, context.fine, strict=True)):
            c = attention(y, keys, context.mask)
            if self.fine_gates:
                c = c * torch.sigmoid(self.fine_gates[n](torch.cat([y, c], dim=-1)))
            else:
                c = c / HIDDEN_STATES
            found = found + c
        x = x + self.dropout(found.reshape(r, t, w))
        out: Tensor = x + self.dropout(self.down(F.gelu(self.up(self.norms[2](x)))))
        return out, own


class Generator(nn.Module):
    """A transformer decoder over the codes of identifiers that reads an encoded query.

    Args:
        config: Sizes and switches.
        compute: Where it lies, and in which number format it computes.
    """

    def __init__(self, config: GeneratorConfig, compute: Compute | None = None) -> None:
        super().__init__()
        self.config = config
        self.compute = compute or Compute()
        w = config.width
        self.hidden_states_in = nn.ModuleList(
            nn.Linear(config.text_width, w) for _ in range(HIDDEN_STATES)
        )
        self.media_in = nn.Linear(config.media_dim, HIDDEN_STATES * config.prefix * w)
        self.fuse = nn.Linear(HIDDEN_STATES * w, w) if config.coarse_fusion else None
        self.start = nn.Parameter(torch.randn(w) * 0.02)
        self.positions = nn.Parameter(torch.randn(len(config.sizes), w) * 0.02)
        self.token_embeddings = nn.ModuleList(nn.Embedding(v, w) for v in config.sizes)
        for table in self.token_embeddings:
            assert isinstance(table, nn.Embedding)
            nn.init.normal_(table.weight, std=w**-0.5)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(w)
        self.to(self.compute.device)

    def context(
        self,
        hidden_states: Sequence[Tensor] | None,
        mask_BS: Tensor | None,
        media_BD: Tensor | None,
    ) -> DecoderContext:
        """The decoder context of a text's hidden states, of a media vector, or of both.

        Args:
            hidden_states: States E1, E2, E3 (B, S, width of the encoder).
            mask_BS: Whether a position holds a token.
            media_BD: Vectors in the media space.

        Raises:
            ConfigError: Neither is given.
        """
        parts: list[list[Tensor]] = [[] for _ in range(HIDDEN_STATES)]
        masks: list[Tensor] = []
        if media_BD is not None:
            b = len(media_BD)
            made = self.media_in(media_BD).view(b, HIDDEN_STATES, self.config.prefix, -1)
            for n in range(HIDDEN_STATES):
                parts[n].append(made[:, n])
            masks.append(made.new_ones(b, self.config.prefix, dtype=torch.bool))
        if hidden_states is not None and mask_BS is not None:
            for part, project, state in zip(
                parts, self.hidden_states_in, hidden_states, strict=True
            ):
                part.append(project(state))
            masks.append(mask_BS)
        if not masks:
            raise ConfigError("A decoder context needs text states or a media vector.")
        return DecoderContext(
            tuple(torch.cat([p.to(part[0].dtype) for p in part], dim=1) for part in parts),
            torch.cat(masks, dim=1)[:, None, None, :],
        )

    def forward(self, context: DecoderContext, prefix_RT: Tensor) -> Tensor:
        """Hidden states after the start and after each code of a prefix.

        Args:
            context: The decoder context of B queries.
            prefix_RT: Codes (R, T); R is a multiple of B, and the beams of a query are adjacent.

        Returns:
            (R, T + 1, W): state `t` scores the codes of level `t`.
        """
        r, t = prefix_RT.shape
        x = [self.start.expand(r, 1, -1)]
        x += [self.token_embeddings[n](prefix_RT[:, n : n + 1]) for n in range(t)]
        x_RTW = torch.cat(x, dim=1) + self.positions[: t + 1]
        for layer, keys in zip(self.layers, self.layer_contexts(context), strict=True):
            x_RTW, _ = layer(x_RTW, keys, len(context.mask))
        out: Tensor = self.norm(x_RTW)
        return out

    def layer_contexts(self, context: DecoderContext) -> list[LayerContext]:
        """The keys and values of a decoder context in each layer, for all steps of a decoding."""
        fused = (
            self.fuse(torch.cat(context.hidden_states, dim=-1)) if self.fuse is not None else None
        )
        layers = (layer for layer in self.layers if isinstance(layer, _Layer))
        return [layer.context_keys(context, fused) for layer in layers]

    def step(
        self,
        contexts: Sequence[LayerContext],
        code_R: Tensor | None,
        level: int,
        past: Sequence[KeyValues],
    ) -> tuple[Tensor, list[KeyValues]]:
        """One step of `forward`: the state (R, W) that scores `level`, after one more code.

        Args:
            contexts: What `layer_contexts` returned for B queries; R is a multiple of B.
            code_R: Codes of the level above; None at level 0, where R is B.
            level: The level that the state scores.
            past: Keys and values that each layer returned for these prefixes; empty at level 0.

        Returns:
            The state, and the keys and values of each layer, prefixes of length `level` included.
        """
        queries = len(contexts[0].mask)
        if code_R is None:
            x_R1W = self.start.expand(queries, 1, -1)
        else:
            x_R1W = self.token_embeddings[level - 1](code_R)[:, None]
        x_R1W = x_R1W + self.positions[level]
        kept: list[KeyValues] = []
        for n, (layer, keys) in enumerate(zip(self.layers, contexts, strict=True)):
            x_R1W, own = layer(x_R1W, keys, queries, past[n] if past else None)
            kept.append(own)
        return self.norm(x_R1W[:, 0]), kept

    def logits(self, state_RW: Tensor, level: int) -> Tensor:
        """Correction logits (R, V) of one level's codes."""
        table = self.token_embeddings[level]
        assert isinstance(table, nn.Embedding)
        return state_RW @ table.weight.T


def load_generator(
    path: Path, config: Mapping[str, Any], compute: Compute | None = None
) -> Generator:
    """Load a generator from its safetensors file, for inference.

    Raises:
        RuntimeError: The file holds the weights of another architecture.
    """
    with torch.random.fork_rng(devices=[]):  # its first weights are drawn
        generator = Generator(GeneratorConfig.from_json(dict(config)), compute)
    generator.load_state_dict(load_file(path))
    return generator.eval().requires_grad_(False)


class GeneratorScorer:
    """Scores codes by the prior and the gated correction, as log-probabilities for `beam_search`.

    Args:
        generator: In eval mode.
        context: The decoder context of B queries.
        levels_BV: Prior logits of each level, as for `PriorScorer`.
        gates: Weight of the correction at each level.
    """

    per_prefix = True

    def __init__(
        self,
        generator: Generator,
        context: DecoderContext,
        levels_BV: Sequence[FloatArray],
        gates: Sequence[float],
    ) -> None:
        self._generator = generator
        self._levels, self._gates = levels_BV, gates
        self._queries = len(context.mask)
        self._past: list[KeyValues] = []
        self._slots: IndexArray = np.arange(self._queries)
        self._compute = generator.compute
        with torch.inference_mode(), self._compute.autocast():
            self._contexts = generator.layer_contexts(context)

    @classmethod
    def of(
        cls,
        generator: Generator,
        hidden_states: Sequence[FloatArray] | Sequence[Tensor] | None,
        mask_BS: MaskArray | Tensor | None,
        media_BD: FloatArray,
        levels_BV: Sequence[FloatArray],
        gates: Sequence[float],
    ) -> GeneratorScorer:
        """A scorer for queries, given their hidden states and their vectors in a media space."""
        device, states = generator.compute.device, None
        if hidden_states is not None:
            states = [torch.as_tensor(x, device=device) for x in hidden_states]
        mask = None if mask_BS is None else torch.as_tensor(mask_BS, device=device)
        with torch.inference_mode():
            context = generator.context(states, mask, generator.compute.tensor(media_BD))
        return cls(generator, context, levels_BV, gates)

    @torch.inference_mode()
    def __call__(
        self, level: int, query_R: IndexArray, prefix_RL: IntArray, parent_R: IndexArray
    ) -> FloatArray:
        """Log-probabilities (R, V) of a level's codes; levels must be scored in order, from 0."""
        prior = torch.from_numpy(self._levels[level])[query_R]
        if not any(self._gates[level:]):
            return np.asarray(F.log_softmax(prior, dim=-1).numpy())
        prior = prior.to(self._compute.device)
        counts = np.bincount(query_R, minlength=self._queries)
        beam = np.arange(len(query_R)) - np.repeat(np.cumsum(counts) - counts, counts)
        # Queries with fewer beams are padded with prefix 0, whose scores are dropped.
        widest = max(int(counts.max()), 1)
        slots = query_R * widest + beam
        code, past = None, self._past
        if level:
            codes = np.zeros(self._queries * widest, dtype=np.int64)
            codes[slots] = prefix_RL[:, -1]
            before = np.zeros(self._queries * widest, dtype=np.int64)
            before[slots] = self._slots[parent_R]
            code, rows = self._compute.tensor(codes), self._compute.tensor(before)
            past = [(k[rows], v[rows]) for k, v in past]
        with self._compute.autocast():
            state, self._past = self._generator.step(self._contexts, code, level, past)
        self._slots = slots
        correction = self._generator.logits(state.float()[self._compute.tensor(slots)], level)
        scores = F.log_softmax(prior + self._gates[level] * correction, dim=-1)
        return np.asarray(scores.cpu().numpy())
