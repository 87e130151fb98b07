"""Draws which room of the package imports which, as a Mermaid graph in CONTRIBUTING.md.

    python tools/rooms.py

What a room has by way of another that it imports is left out. The site shows the same as an SVG.
"""

import ast
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "keras_balanced"
PAGE = ROOT / "CONTRIBUTING.md"
PATHS = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"
}
PACKAGES = ("keras_balanced", "keras_balanced.tuning")


def imports(tree):
    """Yields each module that is imported anywhere, also inside functions, by its full name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module in PACKAGES:
            yield from (
                f"{node.module}.{alias.name}" if is_room(node.module, alias.name) else node.module
                for alias in node.names
            )
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def is_room(package, name):
    return f"{package}.{name}".removeprefix("keras_balanced.") in PATHS


def arrows():
    """Returns the rooms that each room imports, except those that it has by way of another."""
    imported = {}
    for name, path in PATHS.items():
        modules = set(imports(ast.parse(path.read_text())))
        imported[name] = {room for room in PATHS if f"keras_balanced.{room}" in modules}

    def reached(name):
        return imported[name].union(*map(reached, imported[name]))

    return {
        name: sorted(rooms.difference(*map(reached, rooms))) for name, rooms in imported.items()
    }


def graph():
    lines = [f"    {room} --> {below}" for room, rooms in arrows().items() for below in rooms]
    return "\n".join(["```mermaid", "graph TD", *lines, "```\n"])


def with_graph(page):
    """Returns the text of a page with its graph drawn anew."""
    return re.sub(r"```mermaid\n.*?```\n", lambda _: graph(), page, flags=re.DOTALL)


def layers(below):
    """Returns the rooms in layers, from those that nothing imports down, to cross few arrows."""

    def depth(room):
        return 1 + max(map(depth, below[room]), default=-1)

    rows = [[] for _ in range(1 + max(map(depth, below)))]
    for room in below:
        rows[-1 - depth(room)].append(room)
    for _ in range(20):
        places = {room: (i + 0.5) / len(row) for row in rows for i, room in enumerate(row)}
        near = {room: list(rooms) for room, rooms in below.items()}
        for room, rooms in below.items():
            for other in rooms:
                near[other].append(room)
        for row in rows:
            middle = {
                room: sum(places[o] for o in near[room]) / len(near[room] or [0]) for room in row
            }
            row.sort(key=middle.get)
    return rows


def svg(width=880, step=66, height=26):
    """Returns the graph as an SVG that takes the colour of the text around it."""
    below = arrows()
    rows = layers(below)
    size = {room: 14 + 7.2 * len(room) for room in below}
    place = {}
    for y, row in enumerate(rows):
        gap = (width - sum(size[room] for room in row)) / len(row)
        x = gap / 2
        for room in row:
            place[room] = x + size[room] / 2, 20 + y * step
            x += size[room] + gap
    drawn = []
    for room, rooms in below.items():
        for other in rooms:
            (x, y), (to_x, to_y) = place[room], place[other]
            y, to_y = y + height / 2, to_y - height / 2 - 6
            middle = (y + to_y) / 2
            path = f"M{x:.0f} {y:.0f}C{x:.0f} {middle:.0f} {to_x:.0f} {middle:.0f} "
            path += f"{to_x:.0f} {to_y:.0f}"
            drawn.append(f'<path d="{path}" opacity=".5" marker-end="url(#arrow)"/>')
    for room, (x, y) in place.items():
        drawn.append(
            f'<rect x="{x - size[room] / 2:.0f}" y="{y - height / 2:.0f}" width="{size[room]:.0f}" '
            f'height="{height}" rx="4"/><text x="{x:.0f}" y="{y + 4:.0f}">{room}</text>'
        )
    return (
        f'<div class="rooms"><svg viewBox="0 0 {width} {(len(rows) - 1) * step + 40}" role="img" '
        'aria-label="Which room of the package imports which" fill="none" stroke="currentColor">'
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="2" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="currentColor"/></marker>'
        f"</defs>{''.join(drawn)}</svg></div>"
    )


def with_svg(page):
    """Returns the text of a page with an SVG in place of its graph."""
    return re.sub(r"```mermaid\n.*?```\n", lambda _: f"{svg()}\n", page, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(with_graph(PAGE.read_text()))
