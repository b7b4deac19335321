"""Training of the query tower: of texts as queries, and of captions as they are stored.

`tower_loss` has the losses. Media vectors stay as they are; the vectors of captions change with the
encoder. Where captions are few, the embedder's own text vectors are distilled as well, so that
training on a dozen captions does not lose what the embedder knew.
Shape legend: B batch, N items, P pairs, D vector width, W caption vector width.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from cart_qdrant.arrays.types import IndexArray
from cart_qdrant.progress import Reporter
from cart_qdrant.training.caption_bank import CaptionBank
from cart_qdrant.training.checkpoint import Resumable, load_checkpoint, save_checkpoint
from cart_qdrant.training.corpus import Corpus
from cart_qdrant.training.distillation import DISTILL_UNTIL, DistillationTargets
from cart_qdrant.training.options import TowerConfig
from cart_qdrant.training.query_encoder import QueryEncoder, pooled
from cart_qdrant.training.seeding import seeded
from cart_qdrant.training.split import Split
from cart_qdrant.training.stepper import Stepper
from cart_qdrant.training.text_states import TextStates
from cart_qdrant.training.tower_loss import TowerLoss

SCALE_LR = 1e-2
"""Peak learning rate of the factors of cosines."""
DISTILLED = 96
"""Texts of a step that are distilled."""


def lr_factor(step: int, steps: int) -> float:
    """One cycle: linear warm-up over a fifth, cosine decay to nothing."""
    warm = max(1, steps // 5)
    if step < warm:
        return (step + 1) / warm
    return float(0.5 * (1 + np.cos(np.pi * (step - warm) / max(1, steps - warm))))


@torch.inference_mode()
def encode_pairs(
    encoder: QueryEncoder, states: TextStates, rows: IndexArray, spaces: Sequence[str] = ()
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Vectors of texts `rows` in their order: in the caption space (B, W), and in some of the media
    spaces that have a head (B, D)."""
    encoder.eval()
    order = np.concatenate(list(states.batches(rows, 256, None))) if len(rows) else rows
    captions: list[Tensor] = []
    media: dict[str, list[Tensor]] = {space: [] for space in spaces}
    for begin in range(0, len(order), 256):
        low, mask, text = states.get(order[begin : begin + 256])
        with encoder.compute.autocast():
            tuned = pooled(encoder.tune(low, mask)[-1], mask)
            features = encoder.features(tuned, text)
            captions.append(tuned)
            for space, found in media.items():
                found.append(encoder.heads[space](features))
    position = {int(row): n for n, row in enumerate(order)}
    back = encoder.compute.tensor(np.asarray([position[int(row)] for row in rows], np.intp))
    return torch.cat(captions)[back], {s: torch.cat(x)[back] for s, x in media.items()}


def hits_at(score_BN: Tensor, target_B: Tensor, k: int) -> int:
    """Queries whose target is among the k items of highest score."""
    right = score_BN.gather(1, target_B[:, None])
    return int(((score_BN > right).sum(dim=1) < k).sum())


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
        self._bank = CaptionBank(corpus, split.train_P, states.text_PW, encoder.compute)
        self._loss_of = TowerLoss(encoder, corpus, split.train_P, self._bank)
        self._optimizer = torch.optim.AdamW(
            [
                {"params": encoder.tuned.parameters(), "lr": config.lr, "weight_decay": 0.01},
                {
                    "params": encoder.heads.parameters(),
                    "lr": config.head_lr,
                    "weight_decay": 0.05,
                },
                {
                    "params": encoder.log_scales.parameters(),
                    "lr": SCALE_LR,
                    "weight_decay": 0.0,
                },
            ]
        )
        self._peaks = [group["lr"] for group in self._optimizer.param_groups]
        self._stepper = Stepper(encoder, self._optimizer, encoder.compute)

    @torch.inference_mode()
    def validate(self) -> float:
        """R@10 of the queries that choose an epoch, among all items of their space: the mean of
        that for items without a caption, by media vectors, and for those with captions, by both."""
        pairs = self.split.epoch_pairs
        found = [
            self._recall(pairs.unseen_P, captions=False), self._recall(pairs.seen_P, captions=True)
        ]  # fmt: skip
        return float(np.mean([recall for recall in found if recall is not None]))

    def _standard_error(self, recall: float) -> float:
        """Standard error of a recall of the queries that choose an epoch."""
        queries = len(self.split.epoch_pairs)
        if not queries or not 0 < recall < 1:
            return 0.0
        return float(np.sqrt(recall * (1 - recall) / queries))

    def _recall(self, pairs: IndexArray, *, captions: bool) -> float | None:
        """R@10 of some pairs; None where no text of theirs reaches a media space.

        Args:
            captions: Whether the items' caption vectors are compared as well.
        """
        corpus, encoder, hits, count = self.corpus, self.encoder, 0, 0
        tensor, scales = encoder.compute.tensor, encoder.scales()
        for space in encoder.heads:
            items = np.flatnonzero(corpus.vectors.spaces == space)
            row = np.full(len(corpus), -1, dtype=np.intp)
            row[items] = np.arange(len(items))
            mine = pairs[row[corpus.item_P[pairs]] >= 0]
            x_ND = tensor(corpus.vectors.x_ND[items])
            m_NW = self._bank.means(items) if captions else None
            for begin in range(0, len(mine), 256):
                some = mine[begin : begin + 256]
                q_BW, media = encode_pairs(encoder, self.states, some, [space])
                score_BN = scales["beside"] * (media[space] @ x_ND.T)
                if m_NW is not None:
                    score_BN = score_BN + scales["caption"] * (q_BW @ m_NW.T)
                hits += hits_at(score_BN, tensor(row[corpus.item_P[some]]), 10)
            count += len(mine)
        return hits / count if count else None

    def train(self, resumable: Resumable) -> float:
        """Train with early stopping; the encoder ends at its best epoch, or at the last one where
        no held-out query may choose.

        Returns:
            Best R@10 of the held-out queries that chose, see `validate`; 0 without any.
        """
        config, encoder, reporter = self.config, self.encoder, resumable.reporter
        pairs = self.split.train_P
        spaces = self.corpus.vectors.spaces[self.corpus.item_P[pairs]]
        pairs = pairs[np.isin(spaces, list(encoder.heads))]
        per_epoch = max(1, -(-len(pairs) // config.batch))
        epochs = max(config.epochs, -(-config.min_steps // per_epoch))
        steps = epochs * per_epoch
        meta = resumable.read()
        epoch, best, stale = 0, -1.0, 0
        best_path = resumable.path.with_name("tower-best.safetensors")
        if meta is not None:
            load_checkpoint(resumable.path, encoder, self._optimizer)
            epoch, best, stale = meta["epoch"], meta["best"], meta["stale"]
            self._bank.replace(pairs, encode_pairs(encoder, self.states, pairs)[0])
            reporter.say(f"The query tower's training was resumed after epoch {epoch}.")
        reporter.phase("query tower", steps)
        reporter.advance(epoch * per_epoch)
        # Tiny collections have epochs of one step: they are validated twenty times in all.
        every = max(1, epochs // 20)
        while epoch < epochs and stale < config.patience * every:
            begin = time.perf_counter()
            with seeded(self.seed * 1000 + epoch, encoder.compute.device):
                loss = self._epoch(pairs, epoch, steps, reporter)
            self._bank.settle()
            epoch += 1
            if epoch % every and epoch < epochs:
                continue
            # Where nothing may choose an epoch, the last one is taken.
            chooses = len(self.split.epoch_pairs) > 0
            recall = self.validate() if chooses else 0.0
            stale = 0 if not chooses or recall > best else stale + every
            # Of epochs that chance may have put in this order the later one, of a lower learning
            # rate, is taken.
            taken = recall >= best - self._standard_error(best)
            best = max(best, recall)
            info = {
                "fingerprint": resumable.fingerprint,
                "epoch": epoch,
                "best": best,
                "stale": stale,
            }
            # The best first: a full disk may end the run before the next file, and what is resumed
            # needs it.
            if taken:
                save_checkpoint(best_path, encoder, self._optimizer, info)
            save_checkpoint(resumable.path, encoder, self._optimizer, info)
            row: dict[str, float | str] = {
                "stage": "tower", "epoch": epoch, "loss": round(loss, 4)
            }  # fmt: skip
            if chooses:
                row["val_r10"] = round(recall, 4)
            resumable.log(row | {"seconds": round(time.perf_counter() - begin, 1)})
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

    def _read(self, states: TextStates, batch: IndexArray, noise: float) -> tuple[Tensor, Tensor]:
        """Tuned sentence vectors (B, W) of texts, some of their tokens left out, and the features
        (B, F) of the heads."""
        low, mask, text = states.get(batch)
        kept = torch.rand(mask.shape, device=mask.device) >= self.config.token_dropout
        kept[:, 0] = True  # the first token, so that none is left without any
        mask = mask & kept
        with self.encoder.compute.autocast():
            top = self.encoder.tune(low, mask)[-1]
        tuned = pooled(top, mask)
        return tuned, self.encoder.features(tuned, text, noise)

    def _loss(self, batch: IndexArray, rng: np.random.Generator) -> Tensor | None:
        parts: list[Tensor] = []
        if len(batch):
            tuned, features = self._read(self.states, batch, self.config.noise)
            parts += self._loss_of(tuned, features, batch, rng)
            self._bank.replace(batch, tuned)
        share = max(0.0, 1.0 - len(self.split.train_P) / DISTILL_UNTIL)
        if self.targets is not None and share > 0:
            chosen = rng.choice(len(self.targets.states.ids), DISTILLED)
            _, features = self._read(self.targets.states, chosen, 0.2)
            for space, target_TD in self.targets.vectors.items():
                q = self.encoder.heads[space](features)
                cosine = (q * self.encoder.compute.tensor(target_TD[chosen])).sum(dim=1)
                parts.append(share * 10 * (1 - cosine).mean())
        return torch.stack(parts).sum() if parts else None
