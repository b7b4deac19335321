"""What the diagnostics of a training say of a generator that fails, in sentences with remedies.

Four ways to fail are known from the paper's method (`docs/experiments.md`). No torch is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cart_qdrant.search.fusion import MEANINGFUL, STRATA

FIRST = 0.2
"""Share of the right answers among the first ten that should rank first."""
GROWTH = 1.25
"""Greatest gain of the generative lane among an eighth of the items, over that of the dense one."""
LOSS_RATIO = 1.5
"""Loss on unseen items over that on training pairs from which a generator has memorised."""
VALID = 0.02
"""Share of freely decoded identifiers that exist below which codes are guessed."""


def read_diagnostics(summary: Mapping[str, Any]) -> list[str]:
    """What the measurements of a training say is wrong, each sentence with its remedy; empty where
    nothing is wrong, or nothing was measured.

    Args:
        summary: Of `GeneratorInfo`.
    """
    out: list[str] = []
    for stratum, measured in summary.get("held_out", {}).items():
        if measured.get("queries", 0) >= MEANINGFUL:
            out += _read_recalls(STRATA[stratum], measured)
    diagnostics: Mapping[str, Any] = summary.get("diagnostics", {})
    loss = diagnostics.get("loss", {})
    if loss.get("train") and loss.get("unseen", 0.0) > LOSS_RATIO * loss["train"]:
        out.append(
            f"The generator has memorised its items: its loss is {loss['train']:.2f} on training "
            f"captions and {loss['unseen']:.2f} on unseen items. The lane `auto` is calibrated for "
            "it; a shorter training (`cartq train --profile default`) or captions of more items "
            "help."
        )
    valid = diagnostics.get("valid_identifiers")
    if valid is not None and valid < VALID:
        out.append(
            f"Without the prefix tree, {100 * valid:.1f} % of the generated identifiers exist. "
            "Searches are not affected, since the tree rules out all others, but the codes are "
            "guessed: check the unique-identifier ratio with `cartq doctor`, and train again."
        )
    return out


def _read_recalls(items: str, measured: Mapping[str, Any]) -> list[str]:
    """Sentences about the recalls of one stratum, whose right answers are `items`."""
    out = []
    auto, dense, generative = measured["auto"], measured["dense"], measured["generative"]
    if auto["R@10"] > 0.2 and auto["R@1"] < FIRST * auto["R@10"]:
        out.append(
            f"Right answers are found, but they are not first: for {items}, R@10 is "
            f"{100 * auto['R@10']:.0f} % and R@1 {100 * auto['R@1']:.0f} %. Many candidates look "
            "alike: caption more items, or narrow a search by --filter."
        )
    few, few_dense = (lane.get("R@10 among an eighth") for lane in (generative, dense))
    if few and few_dense and generative["R@10"] and dense["R@10"]:
        ratio, usual = few / generative["R@10"], few_dense / dense["R@10"]
        if ratio > GROWTH * usual:
            out.append(
                f"The generative lane depends on the size of the collection: for {items}, its "
                f"R@10 grows {ratio:.1f} times among an eighth of the items, that of the dense "
                f"lane {usual:.1f} times. Train longer (`cartq train --profile thorough`), or "
                "refit the identifiers: `cartq doctor` shows their unique-identifier ratio."
            )
    return out
