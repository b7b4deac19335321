"""Training of the query tower, which maps texts into the media spaces and the caption space.

The loss is InfoNCE against all items of the text's space (van den Oord et al., arXiv 1807.03748).
Media vectors stay as they are, and so do caption vectors: the text of a pair is to find the mean of
the item's *other* captions. Where captions are few, the embedder's own text vectors are distilled
as well, so that training on a dozen captions does not lose what the embedder knew.
Shape legend: B batch, N items, P pairs, D vector width.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from cart_qdrant.arrays.types import FloatArray, IndexArray
from cart_qdrant.compute import Compute
from cart_qdrant.progress import Reporter
from cart_qdrant.training.checkpoint import Resumable, load_checkpoint, save_checkpoint
from cart_qdrant.training.corpus import Corpus, caption_sums
from cart_qdrant.training.distillation import DISTILL_UNTIL, DistillationTargets
from cart_qdrant.training.options import TowerConfig
from cart_qdrant.training.query_encoder import QueryEncoder
from cart_qdrant.training.seeding import seeded
from cart_qdrant.training.shared_texts import SharedTexts
from cart_qdrant.training.split import Split
from cart_qdrant.training.stepper import Stepper
from cart_qdrant.training.text_states import TextStates

NEGATIVES = 8_192
"""Items of a larger collection that a batch is contrasted with."""


def lr_factor(step: int, steps: int) -> float:
    """One cycle: linear warm-up over a fifth, cosine decay to nothing."""
    warm = max(1, steps // 5)
    if step < warm:
        return (step + 1) / warm
    return float(0.5 * (1 + np.cos(np.pi * (step - warm) / max(1, steps - warm))))


@torch.inference_mode()
def tower_vectors(
    encoder: QueryEncoder, states: TextStates, rows: IndexArray, space: str | None
) -> FloatArray:
    """Query vectors (B, D) of texts `rows` in a media space, in their order.

    Args:
        space: The media space; None for the caption space.
    """
    encoder.eval()
    head = encoder.caption if space is None else encoder.heads[space]
    position = {int(r): n for n, r in enumerate(rows)}
    out: FloatArray | None = None
    for batch in states.batches(rows, 256, None):
        low, mask, text = states.get(batch)
        with encoder.compute.autocast():
            top = encoder.tune(low, mask)[-1]
            q = head(encoder.features(top, mask, text)).float().cpu().numpy()
        if out is None:
            out = np.empty((len(rows), q.shape[1]), dtype=np.float32)
        out[[position[int(r)] for r in batch]] = q
    return out if out is not None else np.empty((0, 0), dtype=np.float32)


def recall_at(q_BD: FloatArray, x_ND: FloatArray, target_B: IndexArray, k: int) -> float:
    """Share of queries whose target is among the k nearest items."""
    if len(q_BD) == 0:
        return 0.0
    found = 0
    for begin in range(0, len(q_BD), 1024):
        scores = q_BD[begin : begin + 1024] @ x_ND.T
        target = target_B[begin : begin + 1024]
        better = (scores > scores[np.arange(len(target)), target][:, None]).sum(axis=1)
        found += int((better < k).sum())
    return found / len(q_BD)


@dataclass(frozen=True, slots=True)
class _Captions:
    """Captions of the training items.

    Attributes:
        sums_NW: Sum of the sentence vectors of each item's captions.
        items: Items that have one, rising.
        several_N: Items that have several.
    """

    sums_NW: Tensor
    items: IndexArray
    several_N: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, corpus: Corpus, split: Split, states: TextStates, compute: Compute) -> _Captions:
        sums, count = caption_sums(corpus, states.text_PW, split.train_P)
        return cls(compute.tensor(sums), np.flatnonzero(count), count > 1)


class TowerTrainer:
    """Trains `encoder` on the training pairs of a split."""

    def __init__(
        self,
        encoder: QueryEncoder,
        corpus: Corpus,
        split: Split,
        states: TextStates,
        config: TowerConfig,
        targets: DistillationTargets | None,
        seed: int,
    ) -> None:
        self.encoder, self.corpus, self.split, self.states = encoder, corpus, split, states
        self.config, self.targets, self.seed = config, targets, seed
        spaces = corpus.vectors.spaces
        self._x: dict[str, Tensor] = {}
        self._row: dict[str, IndexArray] = {}
        # An item without a training text is no negative: it would be pushed away from all texts,
        # also from those that ask for it.
        has_text = np.zeros(len(corpus), dtype=bool)
        has_text[corpus.item_P[split.train_P]] = True
        for space in encoder.heads:
            items = np.flatnonzero((spaces == space) & has_text)
            self._row[space] = np.full(len(corpus), -1, dtype=np.intp)
            self._row[space][items] = np.arange(len(items))
            self._x[space] = encoder.compute.tensor(corpus.vectors.x_ND[items])
        self._captions = _Captions.of(corpus, split, states, encoder.compute)
        self._shared = SharedTexts.of(corpus, split.train_P)
        self._optimizer = torch.optim.AdamW(
            [
                {"params": encoder.tuned.parameters(), "lr": config.lr, "weight_decay": 0.01},
                {
                    "params": [*encoder.heads.parameters(), *encoder.caption.parameters()],
                    "lr": config.head_lr,
                    "weight_decay": 0.05,
                },
                {
                    "params": [encoder.log_scale, encoder.log_caption_scale],
                    "lr": config.head_lr,
                    "weight_decay": 0.0,
                },
            ]
        )
        self._peaks = [group["lr"] for group in self._optimizer.param_groups]
        self._stepper = Stepper(encoder, self._optimizer, encoder.compute)

    def validate(self) -> float:
        """R@10 of held-out items among all items of their space."""
        corpus, hits, count = self.corpus, 0.0, 0
        for space in self.encoder.heads:
            items = np.flatnonzero(corpus.vectors.spaces == space)
            row = np.full(len(corpus), -1, dtype=np.intp)
            row[items] = np.arange(len(items))
            pairs = self.split.epoch_pairs
            pairs = pairs[row[corpus.item_P[pairs]] >= 0]
            if len(pairs):
                q = tower_vectors(self.encoder, self.states, pairs, space)
                target = row[corpus.item_P[pairs]]
                hits += recall_at(q, corpus.vectors.x_ND[items], target, 10) * len(pairs)
                count += len(pairs)
        return hits / count if count else 0.0

    def train(self, resumable: Resumable) -> float:
        """Train with early stopping; the encoder ends at its best epoch, or at the last one where
        no held-out item may choose.

        Returns:
            Best R@10 of the held-out items that chose; 0 without any.
        """
        config, encoder, reporter = self.config, self.encoder, resumable.reporter
        pairs = self.split.train_P
        pairs = pairs[np.isin(self.corpus.vectors.spaces[self.corpus.item_P[pairs]], list(self._x))]
        per_epoch = max(1, -(-len(pairs) // config.batch))
        epochs = max(config.epochs, -(-config.min_steps // per_epoch))
        steps = epochs * per_epoch
        meta = resumable.read()
        epoch, best, stale = 0, -1.0, 0
        best_path = resumable.path.with_name("tower-best.safetensors")
        if meta is not None:
            load_checkpoint(resumable.path, encoder, self._optimizer)
            epoch, best, stale = meta["epoch"], meta["best"], meta["stale"]
            reporter.say(f"The query tower's training was resumed after epoch {epoch}.")
        reporter.phase("query tower", steps)
        reporter.advance(epoch * per_epoch)
        # Tiny collections have epochs of one step: they are validated twenty times in all.
        every = max(1, epochs // 20)
        while epoch < epochs and stale < config.patience * every:
            begin = time.perf_counter()
            with seeded(self.seed * 1000 + epoch, encoder.compute.device):
                loss = self._epoch(pairs, epoch, steps, reporter)
            epoch += 1
            if epoch % every and epoch < epochs:
                continue
            # Where nothing may choose an epoch, the last one is taken.
            chooses = len(self.split.epoch_pairs) > 0
            recall = self.validate() if chooses else 0.0
            stale = 0 if not chooses or recall > best else stale + every
            if stale == 0:
                best = recall
            info = {
                "fingerprint": resumable.fingerprint,
                "epoch": epoch,
                "best": best,
                "stale": stale,
            }
            save_checkpoint(resumable.path, encoder, self._optimizer, info)
            if stale == 0:
                save_checkpoint(best_path, encoder, self._optimizer, info)
            resumable.log(
                {
                    "stage": "tower",
                    "epoch": epoch,
                    "loss": round(loss, 4),
                    "val_r10": round(max(recall, 0.0), 4),
                    "seconds": round(time.perf_counter() - begin, 1),
                }
            )
        load_checkpoint(best_path, encoder, self._optimizer)
        encoder.eval()
        return max(best, 0.0)

    def _epoch(self, pairs: IndexArray, epoch: int, steps: int, reporter: Reporter) -> float:
        """One pass over the pairs, in a training of so many steps; returns the mean loss."""
        rng = np.random.default_rng((self.seed, epoch))
        per_epoch = max(1, -(-len(pairs) // self.config.batch))
        self.encoder.train()
        losses = []
        batches = list(self.states.batches(pairs, self.config.batch, rng)) or [pairs]
        for n, batch in enumerate(batches):
            factor = lr_factor(epoch * per_epoch + n, steps)
            for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
                group["lr"] = peak * factor
            loss = self._loss(batch, rng)
            if loss is None:
                continue
            losses.append(self._stepper.step(loss))
            reporter.advance()
        return float(np.mean(losses)) if losses else 0.0

    def _features(self, states: TextStates, batch: IndexArray, noise: float) -> Tensor:
        low, mask, text = states.get(batch)
        with self.encoder.compute.autocast():
            top = self.encoder.tune(low, mask)[-1]
        return self.encoder.features(top, mask, text, noise)

    def _loss(self, batch: IndexArray, rng: np.random.Generator) -> Tensor | None:
        corpus, config, tensor = self.corpus, self.config, self.encoder.compute.tensor
        scale = self.encoder.log_scale.exp().clamp(max=100)
        parts: list[Tensor] = []
        if len(batch):
            features = self._features(self.states, batch, config.noise)
            items = corpus.item_P[batch]
            for space, head in self.encoder.heads.items():
                rows = np.flatnonzero(corpus.vectors.spaces[items] == space)
                if len(rows) == 0:
                    continue
                x_ND, chosen, target = self._contrast(space, self._row[space][items[rows]], rng)
                logits = scale * head(features[rows]) @ x_ND.T
                same_text = self._shared.shares_text(batch[rows], self._row[space], chosen)
                same_text[np.arange(len(rows)), target] = False
                logits = logits.masked_fill(tensor(same_text), -1e4)
                each = F.cross_entropy(logits, tensor(target), reduction="none")
                weight = tensor(corpus.trust_P[batch[rows]])
                parts.append((each * weight).sum() / len(batch))
            parts += self._caption_loss(features, batch, rng)
        share = max(0.0, 1.0 - len(self.split.train_P) / DISTILL_UNTIL)
        if self.targets is not None and share > 0:
            chosen = rng.choice(len(self.targets.states.ids), 96)
            features = self._features(self.targets.states, chosen, 0.2)
            for space, target_TD in self.targets.vectors.items():
                q = self.encoder.heads[space](features)
                cosine = (q * tensor(target_TD[chosen])).sum(dim=1)
                parts.append(share * 10 * (1 - cosine).mean())
        return torch.stack(parts).sum() if parts else None

    def _caption_loss(
        self, features: Tensor, batch: IndexArray, rng: np.random.Generator
    ) -> list[Tensor]:
        """InfoNCE in the caption space, of the pairs whose item has other captions; empty where no
        item has."""
        known, corpus, tensor = self._captions, self.corpus, self.encoder.compute.tensor
        rows = np.flatnonzero(known.several_N[corpus.item_P[batch]])
        if not len(rows):
            return []
        items = corpus.item_P[batch[rows]]
        among = known.items
        if len(among) > NEGATIVES:
            among = np.union1d(rng.choice(among, NEGATIVES, replace=False), items)
        sums_MW = known.sums_NW[among]
        others = F.normalize(
            known.sums_NW[items] - tensor(self.states.text_PW[batch[rows]]), dim=-1
        )
        q = self.encoder.caption(features[rows])
        scale = self.encoder.log_caption_scale.exp().clamp(max=100)
        logits = scale * q @ F.normalize(sums_MW, dim=-1).T
        # Segments of one file share captions: the others are no wrong answers.
        same = corpus.file_N[among][None, :] == corpus.file_N[items][:, None]
        same |= self._shared.shares_text(batch[rows], np.arange(len(corpus)), among)
        logits = logits.masked_fill(tensor(same), -1e4)
        target = tensor(np.searchsorted(among, items))[:, None]
        logits = logits.scatter(1, target, scale * (q * others).sum(dim=1, keepdim=True))
        return [F.cross_entropy(logits, target[:, 0], reduction="sum") / len(batch)]

    def _contrast(
        self, space: str, target: IndexArray, rng: np.random.Generator
    ) -> tuple[Tensor, IndexArray, IndexArray]:
        """Vectors of the items that the batch is contrasted with, their rows in the media space,
        and the positions of the batch's own items among them."""
        x = self._x[space]
        chosen = np.arange(len(x))
        if len(x) > NEGATIVES:
            extra = rng.choice(len(x), NEGATIVES, replace=False)
            chosen = np.union1d(extra, target)
            target = np.searchsorted(chosen, target)
            x = x[chosen]
        return x, chosen, target
