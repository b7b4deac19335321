"""Draw the figure of the pipeline, `docs/images/pipeline.svg`.

Three rows: what `cartq ingest` does, what `cartq train` does, what `cartq search` does. The drawing
has a light ground of its own, so that it reads the same on a light and on a dark page.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path

TARGET = Path(__file__).resolve().parents[1] / "images" / "pipeline.svg"
WIDTH, HEIGHT = 1080, 640
INK, SOFT, LINE = "#1f2937", "#4b5563", "#94a3b8"
CAPTIONS, SPACES = "captions and identifier", "and to the caption space"
CORRECTED = "corrected by a transformer"
BLUE, GREEN, YELLOW, PINK, GREY = "#dbeafe", "#dcfce7", "#fef9c3", "#fae8ff", "#f1f5f9"


@dataclass(frozen=True, slots=True)
class Box:
    """A step: a title and lines below it, at a place and of a size in pixels."""

    x: int
    y: int
    width: int
    height: int
    colour: str
    title: str
    lines: tuple[str, ...] = ()

    def draw(self) -> str:
        """The box as SVG."""
        middle = self.x + self.width / 2
        y = self.y + self.height / 2 - 9 * len(self.lines) + 5
        parts = [
            f'<rect x="{self.x}" y="{self.y}" width="{self.width}" height="{self.height}" rx="8" '
            f'fill="{self.colour}" stroke="{LINE}"/>',
            f'<text x="{middle:.0f}" y="{y:.0f}" text-anchor="middle" font-size="14.5" '
            f'font-weight="600" fill="{INK}">{escape(self.title)}</text>',
        ]
        for number, line in enumerate(self.lines, 1):
            parts.append(
                f'<text x="{middle:.0f}" y="{y + 18 * number:.0f}" text-anchor="middle" '
                f'font-size="12" fill="{SOFT}">{escape(line)}</text>'
            )
        return "\n".join(parts)

    @property
    def right(self) -> tuple[int, int]:
        """The middle of the right side."""
        return self.x + self.width, self.y + self.height // 2

    @property
    def left(self) -> tuple[int, int]:
        """The middle of the left side."""
        return self.x, self.y + self.height // 2


def arrow(start: tuple[int, int], end: tuple[int, int], *, dashed: bool = False) -> str:
    """An arrow that leaves and arrives level."""
    (x1, y1), (x2, y2) = start, end
    bend = (x2 - x1) / 2
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return (
        f'<path d="M{x1},{y1} C{x1 + bend:.0f},{y1} {x2 - bend:.0f},{y2} {x2},{y2}" fill="none" '
        f'stroke="{SOFT}" stroke-width="1.5"{dash} marker-end="url(#head)"/>'
    )


def label(x: int, y: int, text: str, *, size: float = 15, weight: int = 700) -> str:
    """A line of text that begins at a place."""
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" font-weight="{weight}" '
        f'fill="{INK if weight > 500 else SOFT}">{escape(text)}</text>'
    )


def _chain(name: str, y: int, *boxes: Box) -> list[str]:
    """A row: its command, and boxes with an arrow from each to the next."""
    arrows = [arrow(a.right, b.left) for a, b in pairwise(boxes)]
    return [label(28, y - 18, name), *arrows, *(box.draw() for box in boxes)]


def _index_row(y: int = 62) -> list[str]:
    shots, identifier = "shots and windows,", "codes: 17-203-44-9-0"
    return _chain(
        "cartq ingest", y,
        Box(28, y, 150, 74, GREY, "files", ("images, videos, audio,", "captions beside them")),
        Box(222, y, 150, 74, BLUE, "segments", (shots, "with start and end")),
        Box(416, y, 176, 74, BLUE, "vectors", ("one of the media,", "one of the captions")),
        Box(636, y, 186, 74, GREEN, "identifiers", ("K-Means cluster, residual", identifier)),
        Box(866, y, 186, 74, YELLOW, "Qdrant points", ("vectors, payload with", CAPTIONS)),
    )  # fmt: skip


def _train_row(y: int = 218) -> list[str]:
    calibrated = "fusion, modality prior, confidence,"
    return _chain(
        "cartq train", y,
        Box(28, y, 150, 74, GREY, "captions", ("what people or models", "say of the items")),
        Box(222, y, 250, 74, PINK, "query encoder", ("text to the media space", SPACES)),
        Box(502, y, 250, 74, PINK, "generator", ("a dense prior over identifiers,", CORRECTED)),
        Box(782, y, 270, 74, PINK, "calibration", (calibrated, "on captions that were held out")),
    )  # fmt: skip


def _search_row() -> list[str]:
    query = Box(28, 452, 150, 74, GREY, "query", ("text, image, audio,", "item, or a mix"))
    dense = Box(222, 374, 454, 62, BLUE, "dense lane: nearest media vectors in Qdrant")
    caption = Box(222, 458, 454, 62, BLUE, "caption lane: nearest caption vectors in Qdrant")
    beams = Box(222, 542, 210, 62, GREEN, "generative lane", ("beam search in a prefix tree",))
    resolve = Box(466, 542, 210, 62, GREEN, "payload filter", ("identifiers to points",))
    weighed = ("similarities, hubness,", "modality prior,", "then the confidence")
    fusion = Box(720, 436, 160, 106, PINK, "fusion", weighed)
    hits = Box(922, 446, 130, 86, YELLOW, "hits", ("path, start, end,", "confidence"))
    return [
        label(28, 356, "cartq search"),
        *(arrow(query.right, box.left) for box in (dense, caption, beams)),
        arrow(beams.right, resolve.left),
        *(arrow(box.right, fusion.left) for box in (dense, caption)),
        arrow(resolve.right, fusion.left, dashed=True),
        arrow(fusion.right, hits.left),
        *(box.draw() for box in (query, dense, caption, beams, resolve, fusion, hits)),
        label(
            222, 626, size=12, weight=400,
            text="Dashed: the default lane, auto, uses the beams only where they helped on "
            "captions that were held out.",
        ),
    ]  # fmt: skip


def draw() -> str:
    """The whole figure."""
    return (
        "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
                'font-family="system-ui, Helvetica, Arial, sans-serif" role="img">',
                "<title>From files to hits: what ingest, train and search do</title>",
                '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
                'markerHeight="8" orient="auto" markerUnits="userSpaceOnUse">'
                f'<path d="M0,0 L8,4 L0,8 z" fill="{SOFT}"/></marker></defs>',
                f'<rect width="{WIDTH}" height="{HEIGHT}" rx="12" fill="#ffffff"/>',
                *_index_row(),
                *_train_row(),
                *_search_row(),
                "</svg>",
            ]
        )
        + "\n"
    )


if __name__ == "__main__":
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text(draw())
