"""What a training did, as JSON and as lines for a person."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cart_qdrant.compute import Compute, described
from cart_qdrant.search.fusion import MEANINGFUL, STRATA, Calibration


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What training did; `history` has a row an epoch."""

    profile: str
    items: int
    pairs: int
    val_r10: float
    unique_ratio: float
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
            "val_r10": self.val_r10,
            "identifiers": {"unique_ratio": round(self.unique_ratio, 4)},
            "seconds": round(self.seconds, 1),
            "compute": self.compute.to_json(),
            "router": {
                "high_caption_match": self.calibration.high_match_lane,
                "low_caption_match": self.calibration.low_match_lane,
                "threshold": self.calibration.match_threshold,
            },
            "gates": self.calibration.gates,
            "held_out": self.calibration.held_out,
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
            f"Unique-identifier ratio {self.unique_ratio:.3f}; gates of the generator {c.gates}.",
        ]
        for stratum, measured in c.held_out.items():
            queries = measured["queries"]
            if queries < MEANINGFUL:
                lines.append(
                    f"Held-out queries for {STRATA[stratum]}: {queries}, too few to compare lanes."
                )
                continue
            found = ", ".join(
                f"{lane} {100 * r['R@1']:.1f}/{100 * r['R@10']:.1f}"
                for lane, r in measured.items()
                if lane != "queries"
            )
            lines.append(
                f"{queries} held-out queries for {STRATA[stratum]}, R@1/R@10 in percent: {found}."
            )
        if c.ece is not None:
            lines.append(f"Expected calibration error of the confidence: {c.ece:.3f}.")
        return lines + self.remarks
