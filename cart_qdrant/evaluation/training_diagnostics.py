"""What a training's measurements say is amiss, each with its remedy.

The four signatures of the seed paper's failures (`docs/experiments.md`). No torch is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cart_qdrant.search.fusion import MEANINGFUL

FIRST = 0.2
"""Share of the answers among the first ten that should come first; less is a bad order."""
SHRINKS = 1.25
"""How much more than the dense lane the generative one may gain among an eighth of the items."""
GAP = 1.5
"""Loss on unseen items over that on seen ones from which a generator has memorised."""
VALID = 0.02
"""Share of freely decoded identifiers that exist, under which codes are guessed."""


def read_diagnostics(summary: Mapping[str, Any]) -> list[str]:
    """Sentences for a person; empty where nothing is amiss or nothing was measured.

    Args:
        summary: Of `GeneratorInfo`.
    """
    out: list[str] = []
    held_out: Mapping[str, Any] = summary.get("held_out", {})
    for stratum, measured in held_out.items():
        if measured.get("queries", 0) < MEANINGFUL:
            continue
        what = "items never described" if stratum == "new" else "described items"
        auto, dense = measured["auto"], measured["dense"]
        generative = measured["generative"]
        if auto["R@10"] > 0.2 and auto["R@1"] < FIRST * auto["R@10"]:
            out.append(
                f"Right answers are found but not first: for {what}, R@10 is "
                f"{100 * auto['R@10']:.0f} % and R@1 {100 * auto['R@1']:.0f} %. Candidates are "
                "alike: describe more items, or narrow a search by --filter."
            )
        few, few_dense = (m.get("R@10 of an eighth") for m in (generative, dense))
        if few and few_dense and generative["R@10"] and dense["R@10"]:
            ratio, usual = few / generative["R@10"], few_dense / dense["R@10"]
            if ratio > SHRINKS * usual:
                out.append(
                    f"The generative lane depends on the size of the collection: for {what}, R@10 "
                    f"grows {ratio:.1f} times among an eighth of the items, the dense lane's "
                    f"{usual:.1f} times. Train longer (`cartq train --profile thorough`), or "
                    "renew the identifiers: `cartq doctor` shows U."
                )
    loss = summary.get("signs", {}).get("loss", {})
    if loss.get("train") and loss.get("new", 0.0) > GAP * loss["train"]:
        out.append(
            f"The generator has memorised: its loss is {loss['train']:.2f} on captions that it "
            f"saw and {loss['new']:.2f} on new items. `auto` is calibrated for it; a shorter "
            "training (`cartq train --profile default`) or more described items help."
        )
    valid = summary.get("signs", {}).get("valid")
    if valid is not None and valid < VALID:
        out.append(
            f"Without the tree, {100 * valid:.1f} % of the identifiers that are written exist. "
            "Searches are not affected, since the tree rules the others out, but codes are "
            "guessed: check U with `cartq doctor` and train again."
        )
    return out
