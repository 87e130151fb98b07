"""Draws which room of the package imports which, as a Mermaid graph in CONTRIBUTING.md.

    python tools/rooms.py

What a room has by way of another that it imports is left out.
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


if __name__ == "__main__":
    PAGE.write_text(with_graph(PAGE.read_text()))
