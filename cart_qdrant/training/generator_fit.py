"""Training of the generator's correction on top of the prior.

Shape legend: B batch, P pairs, N items, L levels, V codes, D vector width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from cart_qdrant.arrays.types import FloatArray, IndexArray
from cart_qdrant.generator.network import Generator
from cart_qdrant.generator.prior import prior_logits
from cart_qdrant.identifiers.codec import Codec
from cart_qdrant.progress import Reporter
from cart_qdrant.training.checkpoint import load_checkpoint, read_meta, save_checkpoint
from cart_qdrant.training.corpus import Corpus, Split
from cart_qdrant.training.query_encoder import QueryEncoder
from cart_qdrant.training.text_states import TextStates
from cart_qdrant.training.tower import lr_factor

MISSING = -30.0
"""Prior logit of codes of other spaces, and of clusters that are too far from the query to be
looked at; finite, so that losses stay so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorFitConfig:
    """How the generator is trained."""

    epochs: int = 2
    min_steps: int = 60
    batch: int = 256
    lr: float = 1e-3
    own_share: float = 0.25
    """Items per pair that are learned from their own noised vector."""
    own_noise: float = 0.5
    """Noise on an item's own vector, relative to its length."""
    rdrop: float = 0.0
    """Weight of the bidirectional KL between two dropout passes (R-Drop); the paper's gain is
    0.14 points, at twice the cost."""


@dataclass(frozen=True, slots=True)
class GeneratorData:
    """What the generator is trained and judged on.

    Attributes:
        query_PD: Query vector of each pair in its item's space.
        codes_NL: Codes of each item.
        scale: Of the prior.
    """

    corpus: Corpus
    split: Split
    states: TextStates
    codec: Codec
    query_PD: FloatArray
    codes_NL: npt.NDArray[np.int32]
    scale: float

    def blocks(self, rows: IndexArray, size: int = 64) -> Iterator[tuple[str, IndexArray]]:
        """Pairs `rows` in blocks whose items are of one space: the space, and places in `rows`."""
        spaces = self.corpus.vectors.spaces[self.corpus.item_P[rows]]
        for space in np.unique(spaces):
            mine = np.flatnonzero(spaces == space)
            for begin in range(0, len(mine), size):
                yield str(space), mine[begin : begin + size]

    def prior(self, q_BD: FloatArray, item_B: IndexArray) -> list[Tensor]:
        """Prior logits (B, V) of each level, each row in its item's space."""
        spaces = self.corpus.vectors.spaces[item_B]
        out: list[FloatArray] = []
        for space in np.unique(spaces):
            rows = spaces == space
            levels = prior_logits(self.codec, {str(space): q_BD[rows]}, str(space), self.scale)
            if not out:
                out = [np.empty((len(q_BD), x.shape[1]), dtype=np.float32) for x in levels]
            for target, level in zip(out, levels, strict=True):
                target[rows] = np.maximum(level, MISSING)
        return [torch.from_numpy(level) for level in out]


@torch.no_grad()
def read_hidden_states(
    encoder: QueryEncoder, data: GeneratorData, rows: IndexArray
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Text states (B, S, W) of pairs that the generator reads, and their mask (B, S)."""
    low, mask, _ = data.states.get(rows)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        states = encoder.tune(low, mask)
    return (low.float(), states[-2].float(), states[-1].float()), mask


def corrections(
    generator: Generator,
    encoder: QueryEncoder,
    data: GeneratorData,
    batch: IndexArray,
    reads: str = "both",
) -> list[Tensor]:
    """Correction logits (B, V) of each level for pairs, right prefixes given.

    Args:
        reads: `text`, `vector`, or `both` of a query.
    """
    codes = torch.from_numpy(data.codes_NL[data.corpus.item_P[batch]]).long()
    media = None if reads == "text" else torch.from_numpy(data.query_PD[batch])
    hidden_states, mask = (
        (None, None) if reads == "vector" else read_hidden_states(encoder, data, batch)
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        memory = generator.memory(hidden_states, mask, media)
        hidden = generator(memory, codes[:, :-1])
    return [generator.logits(hidden[:, n].float(), n) for n in range(codes.shape[1])]


@torch.inference_mode()
def pair_loss(
    generator: Generator, encoder: QueryEncoder, data: GeneratorData, rows: IndexArray
) -> float:
    """Mean cross-entropy of pairs, as in training but without dropout (nats a level)."""
    losses: list[float] = []
    for begin in range(0, len(rows), 256):
        part = rows[begin : begin + 256]
        items = data.corpus.item_P[part]
        logits = corrections(generator, encoder, data, part)
        codes = torch.from_numpy(data.codes_NL[items]).long()
        each = _cross_entropy(logits, data.prior(data.query_PD[part], items), codes)
        losses.append(float(each) * len(part))
    return sum(losses) / max(len(rows), 1)


def _own_loss(generator: Generator, data: GeneratorData, items: IndexArray, noise: float) -> Tensor:
    """Loss of items read from their own noised vector."""
    x = torch.from_numpy(data.corpus.vectors.x_ND[items])
    q = F.normalize(x + noise * torch.randn_like(x) / x.shape[1] ** 0.5, dim=-1)
    codes = torch.from_numpy(data.codes_NL[items]).long()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = generator(generator.memory(None, None, q), codes[:, :-1])
    logits = [generator.logits(hidden[:, n].float(), n) for n in range(codes.shape[1])]
    return _cross_entropy(logits, data.prior(q.numpy(), items), codes)


def _cross_entropy(logits: list[Tensor], prior: list[Tensor], codes_BL: Tensor) -> Tensor:
    losses = []
    for n, (p, c) in enumerate(zip(prior, logits, strict=True)):
        codes = codes_BL[:, n]
        each = F.cross_entropy(p + c, codes, reduction="none")
        # What a search cannot reach, no correction can: it teaches nothing.
        reached = reachable(p, codes)
        losses.append((each * reached).sum() / reached.sum().clamp(min=1))
    return torch.stack(losses).mean()


def reachable(prior_BV: Tensor, code_B: Tensor) -> Tensor:
    """Whether the search may take the right code of each row (B,)."""
    return prior_BV.gather(1, code_B[:, None])[:, 0] > MISSING


def _symmetric_kl(first: list[Tensor], second: list[Tensor]) -> Tensor:
    total = first[0].new_zeros(())
    for a, b in zip(first, second, strict=True):
        log_a, log_b = F.log_softmax(a, -1), F.log_softmax(b, -1)
        total = total + F.kl_div(log_a, log_b, log_target=True, reduction="batchmean")
        total = total + F.kl_div(log_b, log_a, log_target=True, reduction="batchmean")
    return total / (2 * len(first))


def fit_generator(
    generator: Generator,
    encoder: QueryEncoder,
    data: GeneratorData,
    config: GeneratorFitConfig,
    *,
    seed: int,
    checkpoint: Path,
    fingerprint: str,
    reporter: Reporter,
    log: Callable[[dict[str, float | str]], None],
) -> None:
    """Train the generator; resumes from its checkpoint, ends in eval mode."""
    corpus, split = data.corpus, data.split
    pairs = split.train_P
    items = np.flatnonzero(~split.held_items)
    per_epoch = max(1, -(-len(pairs) // config.batch))
    epochs = max(config.epochs, -(-config.min_steps // per_epoch))
    steps = epochs * per_epoch
    optimizer = torch.optim.AdamW(generator.parameters(), lr=config.lr, weight_decay=0.05)
    epoch = 0
    meta = read_meta(checkpoint)
    if meta is not None and meta["fingerprint"] == fingerprint:
        load_checkpoint(checkpoint, generator, optimizer)
        epoch = meta["epoch"]
        reporter.say(f"generator: resumed after epoch {epoch}")
    reporter.phase("generator", steps)
    reporter.advance(epoch * per_epoch)
    every = max(1, epochs // 10)
    while epoch < epochs:
        begin = time.perf_counter()
        rng = np.random.default_rng((seed, 1, epoch))
        torch.manual_seed(seed * 1000 + 500 + epoch)
        generator.train()
        encoder.eval()
        losses = []
        batches = list(data.states.batches(pairs, config.batch, rng)) if len(pairs) else [pairs]
        for n, batch in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = config.lr * lr_factor(epoch * per_epoch + n, steps)
            own = rng.choice(items, max(1, int(config.own_share * config.batch)))
            loss = _own_loss(generator, data, own, config.own_noise)
            if len(batch):
                # A third of the batches reads text alone, a third the vector alone.
                reads = ("text", "vector", "both")[rng.integers(3)]
                logits = corrections(generator, encoder, data, batch, reads)
                target = corpus.item_P[batch]
                codes = torch.from_numpy(data.codes_NL[target]).long()
                prior = data.prior(data.query_PD[batch], target)
                loss = loss * config.own_share + _cross_entropy(logits, prior, codes)
                if config.rdrop:
                    again = corrections(generator, encoder, data, batch, reads)
                    both = [[p + c for p, c in zip(prior, x, strict=True)] for x in (logits, again)]
                    loss = loss + config.rdrop * _symmetric_kl(*both)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(generator.parameters(), 1.0)
            optimizer.step()
            losses.append(float(loss.detach()))
            reporter.advance()
        epoch += 1
        if epoch % every == 0 or epoch == epochs:
            info = {"fingerprint": fingerprint, "epoch": epoch}
            save_checkpoint(checkpoint, generator, optimizer, info)
            log(
                {
                    "stage": "generator",
                    "epoch": epoch,
                    "loss": round(float(np.mean(losses)), 4),
                    "seconds": round(time.perf_counter() - begin, 1),
                }
            )
    generator.eval()
