"""What a training did, as JSON and as lines for a person."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cart_qdrant.compute import Compute, described
from cart_qdrant.identifiers.parts import IN_WORDS, MadeOf
from cart_qdrant.search.fusion import ANCHORS, EMBEDDER, MEANINGFUL, STRATA, Calibration

_OWN = {
    ANCHORS: "vectors of texts that are kept with the model",
    EMBEDDER: "text tower, which each search loads: it finds more than what was learned",
}


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What training did.

    Attributes:
        pairs: Texts that were learned from.
        chosen_by: Held-out texts by which weights and lanes were chosen.
        val_r10: Best R@10 of an epoch on them; 0 where no epoch was chosen.
        identifiers_from: What the identifiers of items with captions are made of.
        history: A row an epoch.
    """

    profile: str
    items: int
    pairs: int
    chosen_by: int
    val_r10: float
    unique_ratio: float
    identifiers_from: MadeOf
    seconds: float
    compute: Compute
    calibration: Calibration
    history: list[dict[str, float | str]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """One object."""
        return {
            "profile": self.profile,
            "items": self.items,
            "pairs": self.pairs,
            "chosen_by": self.chosen_by,
            "val_r10": self.val_r10,
            "identifiers": {
                "unique_ratio": round(self.unique_ratio, 4),
                "from": self.identifiers_from,
            },
            "seconds": round(self.seconds, 1),
            "compute": self.compute.to_json(),
            "router": {
                "high_caption_match": self.calibration.high_match_lane,
                "low_caption_match": self.calibration.low_match_lane,
                "threshold": self.calibration.match_threshold,
            },
            "gates": self.calibration.gates,
            "zero_shot": {
                "share": self.calibration.zero_shot,
                "by": self.calibration.zero_shot_by if self.calibration.zero_shot else None,
            },
            "held_out": self.calibration.held_out,
            "cross_fitted": self.calibration.cross_fitted,
            "ece": self.calibration.ece,
            "history": self.history,
            "remarks": self.remarks,
        }

    def summary_lines(self) -> list[str]:
        """A few lines for a person."""
        c = self.calibration
        lines = [
            f"Trained on {self.pairs} captions of {self.items} items in {self.seconds:.0f} s, "
            f"profile {self.profile}, on {described(self.compute.to_json())}.",
            f"Identifiers of items with captions are made of {IN_WORDS[self.identifiers_from]}.",
            f"Unique-identifier ratio {self.unique_ratio:.3f}; gates of the generator {c.gates}.",
        ]
        if c.zero_shot:
            lines.append(
                f"{100 * c.zero_shot:.0f} % of a query's vector among media come from the "
                f"embedder's own {_OWN[c.zero_shot_by]}."
            )
        if c.held_out and self.chosen_by < MEANINGFUL:
            lines.append(
                f"{self.chosen_by} held-out queries are too few to choose by: weights are the "
                "usual ones, and lanes stay as before training."
            )
        elif c.held_out:
            by = (
                "folds, each measured by what the other folds chose"
                if c.cross_fitted
                else "a set of their own"
            )
            lines.append(
                f"Weights and lanes were chosen by {self.chosen_by} held-out queries. The recalls "
                f"are of queries that chose nothing: {by}."
            )
        for stratum, measured in c.held_out.items():
            queries = measured["queries"]
            if queries < MEANINGFUL:
                lines.append(
                    f"Held-out queries for {STRATA[stratum]}: {queries}, too few to compare lanes."
                )
                continue
            found = ", ".join(
                f"{lane} {_percent(recall, 'R@1')} / {_percent(recall, 'R@10')}"
                for lane, recall in measured.items()
                if isinstance(recall, Mapping)
            )
            lines.append(
                f"{queries} queries for {STRATA[stratum]}, of {measured['files']} files, R@1 / "
                f"R@10 in percent with 95 % intervals: {found}."
            )
        if c.ece is not None:
            lines.append(
                f"Expected calibration error of the confidence: {c.ece:.3f}, if every file is "
                "asked for equally often."
            )
        return lines + self.remarks


def _percent(recall: Mapping[str, Any], name: str) -> str:
    """A recall and its interval, such as `71.2 (66.0-76.1)`."""
    low, high = recall[f"{name} interval"]
    return f"{100 * recall[name]:.1f} ({100 * low:.1f}-{100 * high:.1f})"
