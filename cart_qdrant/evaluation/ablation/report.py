"""The tables and plots of an ablation: means and spreads over seeds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cart_qdrant.evaluation.ablation.results import GrowthResult, Recalls, VariantResult
from cart_qdrant.evaluation.ablation.variants import AblationOptions
from cart_qdrant.extras import require
from cart_qdrant.search.fusion import STRATA

METHODS = ("dual tower", "prior", "prior + correction")


def require_plots() -> None:
    """Check that plots can be drawn, before an hour of work.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require("plots", "matplotlib")


def write_report(
    rows: Sequence[VariantResult],
    growth: Sequence[GrowthResult],
    options: AblationOptions,
    out: Path,
) -> list[Path]:
    """Write `ablation.json`, `ablation.md` and plots into a folder; returns their paths.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    out.mkdir(parents=True, exist_ok=True)
    data = {
        "seeds": options.seeds, "pairs": options.pairs, "queries": options.queries,
        "beams": options.beams, "epochs": options.epochs,
        "rows": [row.to_json() for row in rows], "growth": [one.to_json() for one in growth],
    }  # fmt: skip
    paths = [out / "ablation.json", out / "ablation.md"]
    paths[0].write_text(json.dumps(data, indent=1) + "\n")
    paths[1].write_text(markdown(rows, growth, options))
    return [*paths, *plots(rows, growth, out)]


def markdown(
    rows: Sequence[VariantResult], growth: Sequence[GrowthResult], options: AblationOptions
) -> str:
    """The table of the variants, and that of the growing collection."""
    plural = "" if options.seeds == 1 else "s"
    epochs = f"{options.epochs} epoch{'' if options.epochs == 1 else 's'}"
    full = [row for row in rows if row.variant == "full"]
    dense = {stratum: _spread([row.dense for row in full], stratum, 10) for stratum in STRATA}
    lines = [
        f"Means over {options.seeds} seed{plural} ± standard deviation (times: medians), in "
        f"percent; at most {options.pairs} captions learned, {epochs}, {options.beams} beams. "
        "`beams`: candidates in the order of the decoder's probability; `reranked`: the same in "
        "the order of their cosines; `unseen`: queries for items without a training caption; "
        "`seen`: queries for items with training captions.",
        "",
        *_variant_table(rows),
        "",
        f"Exact dense search on the same queries, R@10: unseen {dense['unseen']}, "
        f"seen {dense['seen']}.",
        "",
        *_growth_table(growth),
    ]
    return "\n".join(lines) + "\n"


def _variant_table(rows: Sequence[VariantResult]) -> list[str]:
    lines = [
        "| experiment | variant | unique ratio | unseen, beams R@1 / R@10 | unseen, reranked R@10 "
        "| seen, beams R@1 / R@10 | seen, reranked R@10 | ms a query |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name in _names(rows):
        mine = [row for row in rows if row.variant == name]
        beams, reranked = [row.beams for row in mine], [row.reranked for row in mine]
        cells = [mine[0].group, name, f"{np.mean([row.unique_ratio for row in mine]):.3f}"]
        for stratum in STRATA:
            cells.append(f"{_spread(beams, stratum, 1)} / {_spread(beams, stratum, 10)}")
            cells.append(_spread(reranked, stratum, 10))
        cells.append(f"{np.median([row.decode_ms for row in mine]):.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _growth_table(growth: Sequence[GrowthResult]) -> list[str]:
    lines = [
        "| candidates | " + " | ".join(f"{m}: R@10, queries/s" for m in METHODS) + " |",
        "|---:|" + "---:|" * len(METHODS),
    ]
    for size in sorted({one.candidates for one in growth}):
        mine = [one for one in growth if one.candidates == size]
        cells = [str(size)]
        for method in METHODS:
            r10 = 100 * np.mean([one.r10[method] for one in mine])
            rate = np.median([one.queries_per_second[method] for one in mine])
            cells.append(f"{r10:.1f}, {rate:,.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def plots(rows: Sequence[VariantResult], growth: Sequence[GrowthResult], out: Path) -> list[Path]:
    """Draw `variants.png`, and `growth.png` where growth was measured; returns their paths.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require_plots()
    import matplotlib as mpl

    mpl.use("Agg")
    paths = [out / "variants.png"]
    _plot_variants(rows, paths[0])
    if growth:
        paths.append(out / "growth.png")
        _plot_growth(growth, paths[1])
    return paths


def _plot_variants(rows: Sequence[VariantResult], path: Path) -> None:
    """Bars: R@10 of each variant, by probability and reranked, one panel a stratum."""
    from matplotlib import pyplot as plt

    names = _names(rows)[::-1]
    position = np.arange(len(names))
    figure, axes = plt.subplots(
        1, 2, figsize=(10, 1.2 + 0.32 * len(names)), sharey=True, layout="constrained"
    )
    for axis, (stratum, title) in zip(axes, STRATA.items(), strict=True):
        for shift, label, color in ((0.2, "reranked", "#7aa6c2"), (-0.2, "beams", "#1f4e79")):
            found = [
                [
                    100 * getattr(row, label)[stratum].get(10, 0.0)
                    for row in rows
                    if row.variant == name
                ]
                for name in names
            ]
            axis.barh(
                position + shift, [np.mean(f) for f in found], 0.38, color=color, label=label,
                xerr=[np.std(f) for f in found], error_kw={"ecolor": "#666666", "lw": 1},
            )  # fmt: skip
        axis.set_yticks(position, names)
        axis.set_xlabel("R@10, %")
        axis.set_title(title, size=10)
        _clean(axis)
    axes[1].legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _plot_growth(growth: Sequence[GrowthResult], path: Path) -> None:
    """Lines: R@10 and queries a second over the number of candidates."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    sizes = sorted({one.candidates for one in growth})
    for method, color in zip(METHODS, ("#c2703d", "#7aa6c2", "#1f4e79"), strict=True):
        for axis, value in zip(axes, ("r10", "queries_per_second"), strict=True):
            scale, middle = (100, np.mean) if value == "r10" else (1, np.median)
            found = [
                scale * middle([getattr(g, value)[method] for g in growth if g.candidates == n])
                for n in sizes
            ]
            axis.plot(sizes, found, marker="o", color=color, label=method)
    for axis, label in zip(axes, ("R@10, %", "queries a second"), strict=True):
        axis.set(xlabel="candidates", ylabel=label, xscale="log")
        axis.set_xticks(sizes, [f"{n:,}" for n in sizes])
        axis.minorticks_off()
        _clean(axis)
    axes[1].set_yscale("log")
    axes[0].set_ylim(bottom=0)
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _clean(axis) -> None:  # type: ignore[no-untyped-def]  # matplotlib has no types here
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="x", color="#dddddd", lw=0.6)
    axis.set_axisbelow(True)


def _names(rows: Sequence[VariantResult]) -> list[str]:
    return list(dict.fromkeys(row.variant for row in rows))


def _spread(found: Sequence[Recalls], stratum: str, k: int) -> str:
    """Mean recall at k in percent, with its spread over seeds; a dash where nothing was asked."""
    values = [100 * one[stratum][k] for one in found if k in one[stratum]]
    if not values:
        return "-"
    return f"{np.mean(values):.1f}" + (f" ± {np.std(values):.1f}" if len(values) > 1 else "")
