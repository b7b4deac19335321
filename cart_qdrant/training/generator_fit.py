"""Training of the generator's correction on top of the prior.

Shape legend: B batch, P pairs, L levels, V codes.
"""

from __future__ import annotations

import time
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cart_qdrant.arrays.types import IndexArray
from cart_qdrant.generator.network import Generator
from cart_qdrant.progress import Reporter
from cart_qdrant.training.checkpoint import Resumable, load_checkpoint, save_checkpoint
from cart_qdrant.training.generator_data import GeneratorData, reachable, read_hidden_states
from cart_qdrant.training.options import GeneratorFitConfig
from cart_qdrant.training.seeding import seeded
from cart_qdrant.training.stepper import Stepper
from cart_qdrant.training.tower import lr_factor

Reads = Literal["text", "vector", "both"]
READS: tuple[Reads, ...] = ("text", "vector", "both")


def corrections(
    generator: Generator, data: GeneratorData, batch: IndexArray, reads: Reads = "both"
) -> list[Tensor]:
    """Correction logits (B, V) of each level for a batch of pairs, given the right prefixes.

    Args:
        reads: Whether the generator reads a query's text, its vector, or both.
    """
    compute = data.encoder.compute
    codes = compute.tensor(data.codes_NL[data.corpus.item_P[batch]]).long()
    media = None if reads == "text" else compute.tensor(data.query_PD[batch])
    hidden_states, mask = (None, None) if reads == "vector" else read_hidden_states(data, batch)
    with compute.autocast():
        context = generator.context(hidden_states, mask, media)
        hidden = generator(context, codes[:, :-1])
    return [generator.logits(hidden[:, n].float(), n) for n in range(codes.shape[1])]


@torch.inference_mode()
def pair_loss(generator: Generator, data: GeneratorData, rows: IndexArray) -> float:
    """Mean cross-entropy of pairs, as in training but without dropout (nats a level)."""
    losses: list[float] = []
    for begin in range(0, len(rows), 256):
        part = rows[begin : begin + 256]
        logits = corrections(generator, data, part)
        codes = data.encoder.compute.tensor(data.codes_NL[data.corpus.item_P[part]]).long()
        each = _cross_entropy(logits, data.prior(part), codes)
        losses.append(float(each) * len(part))
    return sum(losses) / max(len(rows), 1)


def _own_loss(generator: Generator, data: GeneratorData, items: IndexArray, noise: float) -> Tensor:
    """Loss of items that are read from their own vector with noise."""
    compute = data.encoder.compute
    x = compute.tensor(data.corpus.vectors.x_ND[items])
    q = F.normalize(x + noise * torch.randn_like(x) / x.shape[1] ** 0.5, dim=-1)
    codes = compute.tensor(data.codes_NL[items]).long()
    with compute.autocast():
        hidden = generator(generator.context(None, None, q), codes[:, :-1])
    logits = [generator.logits(hidden[:, n].float(), n) for n in range(codes.shape[1])]
    return _cross_entropy(logits, data.prior_of(q.cpu().numpy(), items), codes)


def _cross_entropy(logits: list[Tensor], prior: list[Tensor], codes_BL: Tensor) -> Tensor:
    """Mean cross-entropy of corrected priors, over the levels."""
    losses = []
    for n, (p, c) in enumerate(zip(prior, logits, strict=True)):
        codes = codes_BL[:, n]
        each = F.cross_entropy(p + c, codes, reduction="none")
        # No correction makes a code reachable that the prior rules out: it does not count.
        reached = reachable(p, codes)
        losses.append((each * reached).sum() / reached.sum().clamp(min=1))
    return torch.stack(losses).mean()


def _symmetric_kl(first: list[Tensor], second: list[Tensor]) -> Tensor:
    """Bidirectional KL divergence of two passes (R-Drop), mean over the levels."""
    total = first[0].new_zeros(())
    for a, b in zip(first, second, strict=True):
        log_a, log_b = F.log_softmax(a, -1), F.log_softmax(b, -1)
        total = total + F.kl_div(log_a, log_b, log_target=True, reduction="batchmean")
        total = total + F.kl_div(log_b, log_a, log_target=True, reduction="batchmean")
    return total / (2 * len(first))


class GeneratorTrainer:
    """Trains a generator on the training pairs of `data`, and on its items' own vectors."""

    def __init__(
        self, generator: Generator, data: GeneratorData, config: GeneratorFitConfig, seed: int
    ) -> None:
        self.generator, self.data, self.config, self.seed = generator, data, config, seed
        self._items = np.flatnonzero(~data.split.held_items)
        self._optimizer = torch.optim.AdamW(generator.parameters(), lr=config.lr, weight_decay=0.05)
        self._stepper = Stepper(generator, self._optimizer, generator.compute)
        self._per_epoch = max(1, -(-len(data.split.train_P) // config.batch))
        self._epochs = max(config.epochs, -(-config.min_steps // self._per_epoch))

    def train(self, resumable: Resumable) -> None:
        """Train to the end, from the checkpoint where there is one; the generator ends in eval
        mode."""
        reporter, epoch = resumable.reporter, 0
        meta = resumable.read()
        if meta is not None:
            load_checkpoint(resumable.path, self.generator, self._optimizer)
            epoch = meta["epoch"]
            reporter.say(f"The generator's training was resumed after epoch {epoch}.")
        reporter.phase("generator", self._epochs * self._per_epoch)
        reporter.advance(epoch * self._per_epoch)
        every = max(1, self._epochs // 10)
        while epoch < self._epochs:
            begin = time.perf_counter()
            with seeded(self.seed * 1000 + 500 + epoch, self.generator.compute.device):
                loss = self._epoch(epoch, reporter)
            epoch += 1
            if epoch % every == 0 or epoch == self._epochs:
                info = {"fingerprint": resumable.fingerprint, "epoch": epoch}
                save_checkpoint(resumable.path, self.generator, self._optimizer, info)
                resumable.log(
                    {
                        "stage": "generator",
                        "epoch": epoch,
                        "loss": round(loss, 4),
                        "seconds": round(time.perf_counter() - begin, 1),
                    }
                )
        self.generator.eval()

    def _epoch(self, epoch: int, reporter: Reporter) -> float:
        """One pass over the training pairs; returns the mean loss."""
        config, pairs = self.config, self.data.split.train_P
        rng = np.random.default_rng((self.seed, 1, epoch))
        self.generator.train()
        self.data.encoder.eval()
        losses = []
        states = self.data.states
        batches = list(states.batches(pairs, config.batch, rng)) if len(pairs) else [pairs]
        for n, batch in enumerate(batches):
            step = epoch * self._per_epoch + n
            for group in self._optimizer.param_groups:
                group["lr"] = config.lr * lr_factor(step, self._epochs * self._per_epoch)
            loss = self._loss(batch, rng)
            losses.append(self._stepper.step(loss))
            reporter.advance()
        return float(np.mean(losses))

    def _loss(self, batch: IndexArray, rng: np.random.Generator) -> Tensor:
        """Loss of a batch of pairs, and of items that are read from their own vector."""
        config, data = self.config, self.data
        own = rng.choice(self._items, max(1, int(config.own_share * config.batch)))
        loss = _own_loss(self.generator, data, own, config.own_noise)
        if not len(batch):
            return loss
        # A third of the batches reads the text alone, a third the vector alone.
        reads = READS[rng.integers(3)]
        logits = corrections(self.generator, data, batch, reads)
        codes = data.encoder.compute.tensor(data.codes_NL[data.corpus.item_P[batch]]).long()
        prior = data.prior(batch)
        loss = loss * config.own_share + _cross_entropy(logits, prior, codes)
        if config.rdrop:
            second = corrections(self.generator, data, batch, reads)
            passes = [[p + c for p, c in zip(prior, x, strict=True)] for x in (logits, second)]
            loss = loss + config.rdrop * _symmetric_kl(*passes)
        return loss
