"""Draw the rooms of the package: what each holds, how large it is, and what imports what.

`python docs/tools/rooms.py` reads the table of rooms in `CONTRIBUTING.md`, measures files, lines
and imports (those inside functions too) and writes `docs/images/rooms.svg`. `--package FOLDER`
draws another copy of the package, one that has no such table as well:

    git worktree add /tmp/before ff0c5ab
    python docs/tools/rooms.py --package /tmp/before/cart_qdrant --out docs/images/rooms-before.svg
"""

from __future__ import annotations

import argparse
import ast
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LEAVES = "leaves"
"""Name of the box of modules that lie beside the rooms."""

PIXELS_A_LINE = 0.03
"""Length of the bar in a box."""
LEAST_WIDTH = 138
LETTER = 5.9
"""Pixels of a letter of the notes."""
BOX_HEIGHT, LAYER_HEIGHT, GAP, MARGIN = 82, 122, 30, 28
INK, SOFT, PAPER, LINE, UPWARD = "#1f2937", "#4b5563", "#ffffff", "#94a3b8", "#dc2626"
BAR = "#64748b"
COLOURS = ("#dbeafe", "#dcfce7", "#fef9c3", "#fae8ff", "#ffedd5", "#e0f2fe", "#f1f5f9")


@dataclass(frozen=True, slots=True)
class Room:
    """One folder of the package, or its leaves.

    Attributes:
        note: What lives there, from the table; empty without one.
        largest: Lines of its longest module.
    """

    name: str
    note: str
    files: int
    lines: int
    largest: int

    @property
    def width(self) -> float:
        """Width of its box in pixels, with room for its words and its bar."""
        return max(LEAST_WIDTH, self.lines * PIXELS_A_LINE + 28, len(self.note) * LETTER + 28)


@dataclass(frozen=True, slots=True)
class Plan:
    """All rooms, the imports between them, and their order from the top."""

    rooms: dict[str, Room]
    imports: Counter[tuple[str, str]]
    order: list[str]

    def points_up(self, edge: tuple[str, str]) -> bool:
        """Whether an import goes from a room to one above it."""
        return self.order.index(edge[0]) > self.order.index(edge[1])


def _table(package: Path) -> dict[str, str]:
    contributing = package.parent / "CONTRIBUTING.md"
    text = contributing.read_text() if contributing.exists() else ""
    rows = re.findall(r"^\| `(\w+)` \| ([^|]*?) \|[^|]*\|$", text, re.M)
    return {name: note.replace("`", "") for name, note in rows}


def _imported(path: Path, package: Path) -> Iterator[str]:
    """Rooms and leaves that a module imports, once for each statement."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or node.module is None:
            continue
        head, *rest = node.module.split(".")
        if head != package.name:
            continue
        for name in rest[:1] or [alias.name for alias in node.names]:
            yield name if (package / name).is_dir() else LEAVES


def measure(package: Path) -> Plan:
    """Files, lines and imports of a package."""
    notes = _table(package)
    leaves = ", ".join(sorted(path.stem for path in package.glob("[!_]*.py")))
    notes_of_all = {**notes, LEAVES: leaves}
    folders = sorted(path.parent.name for path in package.glob("*/__init__.py"))
    rooms: dict[str, Room] = {}
    imports: Counter[tuple[str, str]] = Counter()
    for name in [*folders, LEAVES]:
        folder = package if name == LEAVES else package / name
        paths = sorted(folder.glob("*.py") if name == LEAVES else folder.rglob("*.py"))
        lengths = [len(path.read_text().splitlines()) for path in paths]
        real = [path for path in paths if path.name != "__init__.py"]
        rooms[name] = Room(name, notes_of_all.get(name, ""), len(real), sum(lengths), max(lengths))
        for path in paths:
            imports.update((name, other) for other in _imported(path, package) if other != name)
    imports = Counter({edge: n for edge, n in imports.items() if edge[0] != LEAVES})
    return Plan(rooms, imports, _order(rooms, notes, imports))


def _order(
    rooms: dict[str, Room], notes: dict[str, str], imports: Counter[tuple[str, str]]
) -> list[str]:
    """Rooms from the top: as the table has them, else so that few imports point up."""
    if notes:
        return [*notes, LEAVES]
    left = [name for name in rooms if name != LEAVES]
    order = []
    while left:

        def weight(name: str) -> int:
            return sum(imports[other, name] - imports[name, other] for other in left)

        top = min(left, key=weight)
        order.append(top)
        left.remove(top)
    return [*order, LEAVES]


def _layers(plan: Plan) -> list[list[str]]:
    """Rooms in layers, the lowest first: each as high as it can be below all that import it."""
    down = [edge for edge in plan.imports if not plan.points_up(edge) and LEAVES not in edge]
    depth: dict[str, int] = {}
    for name in plan.order[:-1]:
        depth[name] = 1 + max((depth[a] for a, b in down if b == name), default=0)
    depth[LEAVES] = 1 + max(depth.values())
    return [
        [name for name in plan.order if depth[name] == level]
        for level in range(depth[LEAVES], 0, -1)
    ]


def _reachable(start: str, goal: str, edges: Sequence[tuple[str, str]]) -> bool:
    """Whether one room reaches another by two or more imports."""
    seen = {b for a, b in edges if a == start and b != goal}
    waiting = list(seen)
    while waiting:
        here = waiting.pop()
        for a, b in edges:
            if a == here and b == goal:
                return True
            if a == here and b not in seen:
                seen.add(b)
                waiting.append(b)
    return False


@dataclass(frozen=True, slots=True)
class _Box:
    room: Room
    x: float
    y: float

    @property
    def middle(self) -> float:
        return self.x + self.room.width / 2


def _place(plan: Plan) -> tuple[dict[str, _Box], float, float]:
    """A box for each room; width and height of the drawing."""
    layers = [[plan.rooms[name] for name in layer] for layer in _layers(plan)]
    widths = [sum(r.width for r in layer) + GAP * (len(layer) - 1) for layer in layers]
    width = max(*widths, 800) + 2 * MARGIN
    arrows = _drawn(plan)
    boxes: dict[str, _Box] = {}
    for level in range(len(layers) - 1, -1, -1):  # from the top
        names = {room.name for room in layers[level]}
        above = [boxes[a].middle for a, b in arrows if b in names and a in boxes]
        middle = sum(above) / len(above) if above else width / 2
        least, most = MARGIN, width - MARGIN - widths[level]
        x = min(max(middle - widths[level] / 2, least), most)
        y = 78 + (len(layers) - 1 - level) * LAYER_HEIGHT
        for room in layers[level]:
            boxes[room.name] = _Box(room, x, y)
            x += room.width + GAP
    return boxes, width, 78 + len(layers) * LAYER_HEIGHT - 20


def _drawn(plan: Plan) -> list[tuple[str, str]]:
    """The imports that get an arrow: not those that follow from two others, nor those of leaves."""
    down = [edge for edge in plan.imports if not plan.points_up(edge)]
    return sorted(
        edge
        for edge in plan.imports
        if LEAVES not in edge and (plan.points_up(edge) or not _reachable(*edge, down))
    )


def _arrow(plan: Plan, boxes: dict[str, _Box], edge: tuple[str, str]) -> str:
    a, b = boxes[edge[0]], boxes[edge[1]]
    up = plan.points_up(edge)
    shift = max(-a.room.width / 3, min(a.room.width / 3, (b.middle - a.middle) / 4))
    x1, x2 = a.middle + shift, b.middle - max(-b.room.width / 3, min(b.room.width / 3, shift))
    y1, y2 = (a.y, b.y + BOX_HEIGHT) if up else (a.y + BOX_HEIGHT, b.y)
    bend = (y2 - y1) / 2
    colour = UPWARD if up else SOFT
    style = f'stroke="{colour}" stroke-width="{1 + min(plan.imports[edge], 40) / 16:.1f}"'
    title = f"{edge[0]} imports {edge[1]}: {plan.imports[edge]} statements"
    return (
        f'<path d="M{x1:.0f},{y1:.0f} C{x1:.0f},{y1 + bend:.0f} {x2:.0f},{y2 - bend:.0f} '
        f'{x2:.0f},{y2:.0f}" fill="none" {style} '
        f'marker-end="url(#{"up" if up else "down"})"><title>{escape(title)}</title></path>'
    )


def _draw_box(box: _Box, colour: str) -> list[str]:
    room = box.room
    files = f"{room.files} file{'' if room.files == 1 else 's'}, {room.lines:,} lines"
    rows = [(room.name, 16, INK, "600"), (room.note, 11.5, INK, "400"), (files, 11.5, SOFT, "400")]
    rows = [row for row in rows if row[0]]
    parts = [
        f"<g><title>longest module: {room.largest} lines</title>",
        f'<rect x="{box.x:.0f}" y="{box.y:.0f}" width="{room.width:.0f}" height="{BOX_HEIGHT}" '
        f'rx="8" fill="{colour}" stroke="{LINE}"/>',
    ]
    y = box.y + 24 + (3 - len(rows)) * 8
    for text, size, ink, weight in rows:
        parts.append(
            f'<text x="{box.middle:.0f}" y="{y:.0f}" text-anchor="middle" font-size="{size}" '
            f'font-weight="{weight}" fill="{ink}">{escape(text)}</text>'
        )
        y += 19
    bar = room.lines * PIXELS_A_LINE
    parts.append(
        f'<rect x="{box.middle - bar / 2:.0f}" y="{box.y + BOX_HEIGHT - 12:.0f}" '
        f'width="{bar:.0f}" height="4" rx="2" fill="{BAR}"/>'
    )
    return [*parts, "</g>"]


def draw(plan: Plan, title: str) -> str:
    """The drawing as SVG, readable on a light and on a dark page."""
    boxes, width, height = _place(plan)
    lines = sum(room.lines for room in plan.rooms.values())
    widest = max(plan.rooms.values(), key=lambda room: room.lines)
    note = (
        f"{lines:,} lines; the largest, {widest.name}, holds {widest.lines / lines:.0%}. "
        "Bars: lines of code. An arrow that follows from two others is left out."
    )
    marker = (
        '<marker id="{}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto" markerUnits="userSpaceOnUse"><path d="M0,0 L8,4 L0,8 z" fill="{}"/></marker>'
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'font-family="system-ui, Helvetica, Arial, sans-serif" role="img">',
        f"<title>{escape(title)}</title>",
        f"<defs>{marker.format('down', SOFT)}{marker.format('up', UPWARD)}</defs>",
        f'<rect width="{width:.0f}" height="{height:.0f}" rx="12" fill="{PAPER}"/>',
        f'<text x="{MARGIN}" y="36" font-size="19" font-weight="700" fill="{INK}">'
        f"{escape(title)}</text>",
        f'<text x="{MARGIN}" y="57" font-size="12.5" fill="{SOFT}">{escape(note)}</text>',
    ]
    parts += [_arrow(plan, boxes, edge) for edge in _drawn(plan)]
    for level, layer in enumerate(_layers(plan)):
        for name in layer:
            parts += _draw_box(boxes[name], COLOURS[-1 - level % len(COLOURS)])
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    """Draw what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--package", type=Path, default=ROOT / "cart_qdrant")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "rooms.svg")
    parser.add_argument("--title", default="Rooms of cart_qdrant: imports point down")
    given = parser.parse_args()
    plan = measure(given.package.resolve())
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(draw(plan, given.title))


if __name__ == "__main__":
    main()
