"""An ablation as tables and plots: means and spreads over seeds."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from cart_qdrant.evaluation.ablation import STRATA, AblateOptions, Growth, Row
from cart_qdrant.extras import require

METHODS = ("dual tower", "prior", "prior + correction")


def require_plots() -> None:
    """Tell before an hour of work whether its plots can be drawn.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require("plots", "matplotlib")


def write_report(
    rows: Sequence[Row], growth: Sequence[Growth], options: AblateOptions, out: Path
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


def markdown(rows: Sequence[Row], growth: Sequence[Growth], options: AblateOptions) -> str:
    """Both tables."""
    lines = [
        f"Means over {options.seeds} seed{'' if options.seeds == 1 else 's'} ± standard deviation "
        f"(times: medians), in percent; at most {options.pairs} captions learned, {options.epochs} "
        f"epoch{'' if options.epochs == 1 else 's'}, {options.beams} beams. `beams`: ranked by the "
        "decoder's probability; `reranked`: the same candidates by the query vector.",
        "",
        "| experiment | variant | U | new, beams R@1 / R@10 | new, reranked R@10 "
        "| known, beams R@1 / R@10 | known, reranked R@10 | ms a query |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name in _names(rows):
        mine = [row for row in rows if row.variant == name]
        cells = [mine[0].group, name, f"{np.mean([row.unique_ratio for row in mine]):.3f}"]
        for stratum in STRATA:
            first = _spread(mine, lambda row, s=stratum: row.beams[s].get(1))  # type: ignore[misc]
            tenth = _spread(mine, lambda row, s=stratum: row.beams[s].get(10))  # type: ignore[misc]
            again = _spread(mine, lambda row, s=stratum: row.reranked[s].get(10))  # type: ignore[misc]
            cells += [f"{first} / {tenth}", again]
        cells.append(f"{np.median([row.decode_ms for row in mine]):.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    full = [row for row in rows if row.variant == "full"]
    dense = [_spread(full, lambda row, s=s: row.dense[s].get(10)) for s in STRATA]  # type: ignore[misc]
    lines += [
        "",
        f"Exact dense search on the same queries, R@10: new {dense[0]}, known {dense[1]}.",
        "",
        "| candidates | " + " | ".join(f"{m}: R@10, queries/s" for m in METHODS) + " |",
        "|---:|" + "---:|" * len(METHODS),
    ]
    for size in sorted({one.candidates for one in growth}):
        mine_g = [one for one in growth if one.candidates == size]
        cells = [str(size)]
        for method in METHODS:
            r10 = 100 * np.mean([one.r10[method] for one in mine_g])
            rate = np.median([one.per_second[method] for one in mine_g])
            cells.append(f"{r10:.1f}, {rate:,.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plots(rows: Sequence[Row], growth: Sequence[Growth], out: Path) -> list[Path]:
    """`variants.png` and `growth.png`.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require_plots()
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    names = _names(rows)[::-1]
    place = np.arange(len(names))
    figure, axes = plt.subplots(
        1, 2, figsize=(10, 1.2 + 0.32 * len(names)), sharey=True, layout="constrained"
    )
    for axis, stratum in zip(axes, STRATA, strict=True):
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
                place + shift, [np.mean(f) for f in found], 0.38, color=color, label=label,
                xerr=[np.std(f) for f in found], error_kw={"ecolor": "#666666", "lw": 1},
            )  # fmt: skip
        axis.set_yticks(place, names)
        axis.set_xlabel("R@10, %")
        axis.set_title("items never described" if stratum == "new" else "described items", size=10)
        _clean(axis)
    axes[1].legend(frameon=False, loc="lower right")
    paths = [out / "variants.png"]
    figure.savefig(paths[0], dpi=130)
    plt.close(figure)
    if growth:
        figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
        sizes = sorted({one.candidates for one in growth})
        for method, color in zip(METHODS, ("#c2703d", "#7aa6c2", "#1f4e79"), strict=True):
            for axis, value in zip(axes, ("r10", "per_second"), strict=True):
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
        paths.append(out / "growth.png")
        figure.savefig(paths[1], dpi=130)
        plt.close(figure)
    return paths


def _clean(axis) -> None:  # type: ignore[no-untyped-def]  # matplotlib has no types here
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="x", color="#dddddd", lw=0.6)
    axis.set_axisbelow(True)


def _names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.variant for row in rows))


def _spread(rows: Sequence[Row], value: Callable[[Row], float | None]) -> str:
    found = [100 * one for row in rows if (one := value(row)) is not None]
    if not found:
        return "-"
    return f"{np.mean(found):.1f}" + (f" ± {np.std(found):.1f}" if len(found) > 1 else "")
