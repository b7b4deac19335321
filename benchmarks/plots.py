"""Draw what `latency.py --json` has measured: latency against the number of items.

python benchmarks/plots.py latency.json docs/benchmarks/latency.png
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

NAMES = {
    "cart, generative": "cart-qdrant, generative lane",
    "cart, auto": "cart-qdrant, auto",
    "cart, dense": "cart-qdrant, dense lane",
    "our encoder + numpy": "our encoder, numpy, all cosines",
    "our encoder + faiss HNSW": "our encoder, faiss HNSW",
    "ImageBind's text tower + faiss HNSW": "ImageBind-sized text tower, faiss HNSW",
    "cartq search, process": "cartq search, whole process",
}


def main() -> None:
    """Read, draw, save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("numbers", type=Path)
    parser.add_argument("picture", type=Path)
    given = parser.parse_args()
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    lines: dict[str, list[tuple[int, float, float]]] = defaultdict(list)
    for row in json.loads(given.numbers.read_text()):
        if "p95" not in row:  # memory, or what is found
            continue
        lines[row["by"].partition(", ef")[0]].append((row["items"], row["p50"], row["p95"]))
    figure, axes = plt.subplots(figsize=(8, 4.8), layout="constrained")
    for by, name in NAMES.items():
        points = sorted(lines.get(by, []))
        if not points:
            continue
        items, p50, p95 = zip(*points, strict=True)
        (line,) = axes.plot(items, p50, marker="o", linewidth=2, label=name)
        axes.fill_between(items, p50, p95, alpha=0.12, color=line.get_color())
    axes.set(xscale="log", yscale="log", xlabel="items", ylabel="ms a query (p50 to p95)")
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.set_title("One text to hits, two cores", loc="left", fontsize=11)
    figure.savefig(given.picture, dpi=150)


if __name__ == "__main__":
    main()
