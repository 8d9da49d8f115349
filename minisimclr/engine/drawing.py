"""The drawing of a recorded graph, as SVG: boxes from the leaves above to the loss below.

The plain way to see a graph is to print names and parents. That is enough for five operations and not for twenty.
"""

from __future__ import annotations

import itertools
from html import escape

from ..values import shown
from .autograd import Node, Tensor
from .ledger import arrays_in

MOST = 150  # number of operations; a larger drawing would not be read
HIGH, ROW = 46, 88  # height of a box, and from one row of boxes to the next, pixels
LETTER, GAP, EDGE = 7.6, 26, 16  # width of a letter; between boxes of a row; around the drawing; pixels
SWEEPS = 30  # times that the rows are put in order by their neighbours; after that little moves

# Light, dark and on paper. The drawing brings its own ground, so that it is legible on any page.
STYLE = """
.ms-graph{--ground:#fff;--ink:#24292f;--soft:#5b6470;--line:#9aa4b0;--box:#f3f5f7;--leaf:#e2f2ec;--mark:#0b6e4f}
@media (prefers-color-scheme:dark){.ms-graph{--ground:#1d2127;--ink:#e3e6ea;--soft:#a0a9b4;--line:#6b7684;
--box:#2a3038;--leaf:#1e3a31;--mark:#5ec9a0}}
@media print{.ms-graph{--ground:#fff;--ink:#000;--soft:#444;--line:#777;--box:#f3f5f7;--leaf:#e2f2ec;--mark:#0b6e4f}}
.ms-graph .ground{fill:var(--ground)} .ms-graph text{text-anchor:middle;font:13px ui-monospace,Menlo,monospace}
.ms-graph .name{fill:var(--ink);font-weight:600} .ms-graph .shape{fill:var(--soft);font-size:11px}
.ms-graph .box{fill:var(--box);stroke:var(--line)} .ms-graph .leaf{fill:var(--leaf);stroke:var(--mark)}
.ms-graph .loss{fill:var(--box);stroke:var(--ink);stroke-width:2}
.ms-graph path{fill:none;stroke:var(--line);stroke-width:1.5} .ms-graph .head{fill:var(--line);stroke:none}
"""


class Drawing(str):
    """The text of an SVG image; a notebook shows it."""

    __slots__ = ()

    def _repr_svg_(self) -> str:
        return str(self)


def draw(tensor: Tensor, **names: Tensor) -> Drawing:
    """Draw the graph below a tensor: each operation with the shape of its value, and the bytes that its vjp keeps.

    names  tensors by the names that they are to have in the drawing: draw(loss, w=w, x=x)

    Numbers and constants are left out: no gradient flows to them.

    Raises: TypeError for what is no Tensor; RuntimeError if nothing was recorded, or if `backward` has freed the
            graph; ValueError for more than 150 operations.

    >>> import minisimclr as ms
    >>> w = ms.Tensor([1.0, 2.0], requires_grad=True)
    >>> picture = draw((w * w).sum(), w=w)
    >>> picture.count('class="leaf"'), picture.count('class="box"'), picture.count("keeps 16 B")  # w, its square, sum
    (1, 1, 1)
    """
    for one in (tensor, *names.values()):
        if not isinstance(one, Tensor):
            raise TypeError(f"draw takes a Tensor, not {shown(one)}")
    if tensor._node is None:
        raise RuntimeError("nothing was recorded: draw needs a tensor that depends on one with requires_grad=True")
    nodes = _below(tensor._node)
    called = {one._node: name for name, one in names.items() if one._node is not None}
    text = {node: _text(node, called.get(node)) for node in nodes}
    width = {node: max(56.0, LETTER * max(len(text[node][0]), 0.86 * len(text[node][1])) + 18) for node in nodes}
    rows, links = _in_rows(nodes)
    place = _placed(rows, links, width)
    return Drawing(_svg(nodes, links, place, width, text, tensor._node))


def _below(root: Node) -> list[Node]:
    """Return the nodes of the graph, the oldest first. Raises: RuntimeError, ValueError, as `draw`."""
    found, waiting = {root}, [root]
    while waiting:
        node = waiting.pop()
        if node.leaf is None and node.vjp is None:
            raise RuntimeError("backward has already gone through this graph and freed it; compute the value again")
        for parent in node.parents:
            if parent is not None and parent not in found:
                found.add(parent)
                waiting.append(parent)
        if len(found) > MOST:
            raise ValueError(f"the graph has more than {MOST} operations; draw a part of it, or a smaller example")
    return sorted(found, key=lambda node: node.age)


def _text(node: Node, name: str | None) -> tuple[str, str]:
    """Return the two lines of a box."""
    shape = "×".join(map(str, node.shape)) or "scalar"
    if node.leaf is not None:
        return name or "leaf", shape
    kept = sum({id(array): array.nbytes for array in arrays_in(node.vjp)}.values())
    return (f"{name} = {node.name}" if name else node.name), f"{shape}, keeps {kept:,} B" if kept else shape


# ── Where each box stands ─────────────────────────────────────────────────────────────────────────

Box = Node | tuple[Node, Node, int]  # an operation, or the place in a row that a long link passes through
Links = list[tuple[Box, Box]]


def _in_rows(nodes: list[Node]) -> tuple[list[list[Box]], Links]:
    """Put each node below all of its parents, a leaf right above its first use; long links get places on their way."""
    row: dict[Node, int] = {}
    for node in nodes:  # the oldest first, so parents come before
        row[node] = 1 + max((row[parent] for parent in node.parents if parent is not None), default=-1)
    for node in nodes:
        if node.leaf is not None:
            row[node] = min((row[user] for user in nodes if node in user.parents), default=1) - 1
    rows: list[list[Box]] = [[] for _ in range(max(row.values()) + 1)]
    links: Links = []
    for node in nodes:
        rows[row[node]].append(node)
        for parent in dict.fromkeys(parent for parent in node.parents if parent is not None):
            way: list[Box] = [parent, *((parent, node, r) for r in range(row[parent] + 1, row[node])), node]
            for r, box in enumerate(way[1:-1], row[parent] + 1):
                rows[r].append(box)
            links += itertools.pairwise(way)
    return rows, links


def _placed(rows: list[list[Box]], links: Links, width: dict[Node, float]) -> dict[Box, tuple[float, float]]:
    """Order each row by the middle of its neighbours, and move boxes towards it as far as there is room."""
    near: dict[Box, list[Box]] = {}
    for a, b in links:
        near.setdefault(a, []).append(b)
        near.setdefault(b, []).append(a)
    x: dict[Box, float] = {box: 100.0 * k for row in rows for k, box in enumerate(row)}
    for sweep in range(2 * SWEEPS):
        for row in rows if sweep % 2 else reversed(rows):
            wanted = {box: sum(x[other] for other in near[box]) / len(near[box]) if box in near else 0.0 for box in row}
            row.sort(key=wanted.__getitem__)
            right = float("-inf")
            for box in row:  # each as far to the left as it wants, and right of the one before
                half = (width[box] if isinstance(box, Node) else 0.0) / 2
                x[box] = max(wanted[box], right + half)
                right = x[box] + half + GAP
            shift = sum(wanted[box] - x[box] for box in row) / len(row)  # the row as a whole stands where it wants
            for box in row:
                x[box] += shift
    return {box: (x[box], float(ROW * r)) for r, row in enumerate(rows) for box in row}


# ── As SVG ────────────────────────────────────────────────────────────────────────────────────────


def _svg(
    nodes: list[Node],
    links: Links,
    place: dict[Box, tuple[float, float]],
    width: dict[Node, float],
    text: dict[Node, tuple[str, str]],
    root: Node,
) -> str:
    left = min(min(place[n][0] - width[n] / 2 for n in nodes), min(x for x, _ in place.values())) - EDGE
    right = max(max(place[n][0] + width[n] / 2 for n in nodes), max(x for x, _ in place.values())) + EDGE
    high = max(y for _, y in place.values()) + HIGH + 2 * EDGE
    said = f"A graph of {sum(node.leaf is None for node in nodes)} operations"
    parts = [
        f'<svg class="ms-graph" xmlns="http://www.w3.org/2000/svg" viewBox="{left:.0f} {-EDGE} {right - left:.0f} '
        f'{high:.0f}" width="{right - left:.0f}" height="{high:.0f}" role="img" aria-label="{said}">',
        f"<style>{STYLE}</style>",
        f'<rect class="ground" x="{left:.0f}" y="{-EDGE}" width="{right - left:.0f}" height="{high:.0f}" rx="8"/>',
    ]
    for a, b in links:
        (ax, ay), (bx, by) = place[a], place[b]
        ay, ends = ay + (HIGH if isinstance(a, Node) else 0), isinstance(b, Node)
        by -= 7 if ends else 0
        half = (by - ay) / 2
        bend = f"{ax:.1f} {ay + half:.1f} {bx:.1f} {by - half:.1f}"
        parts.append(f'<path d="M{ax:.1f} {ay:.1f}C{bend} {bx:.1f} {by:.1f}"/>')
        if ends:
            parts.append(f'<path class="head" d="M{bx - 4:.1f} {by:.1f}h8l-4 7z"/>')
    for node in nodes:
        x, y = place[node]
        kind = "leaf" if node.leaf is not None else "loss" if node is root else "box"
        wide = width[node]
        parts.append(
            f'<rect class="{kind}" x="{x - wide / 2:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{HIGH}" rx="6"/>'
            f'<text class="name" x="{x:.1f}" y="{y + 20:.1f}">{escape(text[node][0])}</text>'
            f'<text class="shape" x="{x:.1f}" y="{y + 36:.1f}">{escape(text[node][1])}</text>'
        )
    return "".join([*parts, "</svg>"])
