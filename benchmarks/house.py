"""Print how the house stands: rooms, arrows between them, circles, arrows upward, and what has grown too large.

    python benchmarks/house.py [CHECKOUT]

A room is a folder of the four packages; a module that stands beside folders is a room of its own. An arrow is an import
of any module of one room by any of another, wherever the import statement stands. It is upward if it runs against the
layers that pyproject.toml states.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PACKAGES = ("gguf_mla", "convert", "quantize", "verify")
LONG_FILE = 300

Arrows = dict[str, set[str]]


def modules(root: Path) -> dict[str, tuple[Path, ast.Module]]:
    """Return every module by dotted name, with its file and its parsed text."""
    found = {}
    for path in (path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))):
        name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        found[name] = path, ast.parse(path.read_text(encoding="utf-8"))
    return found


def imported(tree: ast.AST, known: Mapping[str, object]) -> Iterator[str]:
    """Yield the modules among `known` that a module imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield from (name for name in (full if full in known else node.module,) if name in known)


def room_of(module: str, found: Mapping[str, tuple[Path, ast.Module]]) -> str:
    """Return the folder that a module stands in, dotted; the module itself where rooms stand beside it."""
    path = found[module][0]
    if path.name == "__init__.py":
        return module
    beside = any((folder / "__init__.py").is_file() for folder in path.parent.iterdir())
    return module if beside else module.rpartition(".")[0]


def arrows_between(found: Mapping[str, tuple[Path, ast.Module]]) -> Arrows:
    """Return the rooms that each room imports from."""
    arrows: Arrows = defaultdict(set)
    for name, (_, tree) in found.items():
        here = room_of(name, found)
        arrows[here] |= {there for other in imported(tree, found) if (there := room_of(other, found)) != here}
    return arrows


def reached(arrows: Arrows, start: str) -> set[str]:
    """Return every room that can be reached from one."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        new = arrows.get(waiting.pop(), set()) - seen
        seen |= new
        waiting += new
    return seen


def circles(arrows: Arrows) -> set[frozenset[str]]:
    """Return the groups of rooms that reach each other."""
    reach = {room: reached(arrows, room) for room in arrows}
    groups = (frozenset(other for other in reach[room] if room in reach.get(other, ())) for room in arrows)
    return {group for group in groups if group}


def order(root: Path) -> list[set[str]]:
    """Return the layers that pyproject.toml states, from the top; [] where it states none."""
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    for contract in settings.get("tool", {}).get("importlinter", {}).get("contracts", []):
        if contract.get("containers") == ["gguf_mla"]:
            jobs = {"convert", "quantize", "verify"}
            return [jobs, *({f"gguf_mla.{name.strip()}" for name in layer.split("|")} for layer in contract["layers"])]
    return []


def floor_of(room: str, layers: list[set[str]]) -> int | None:
    """Return the layer that a room or the room it lies in belongs to; 0 is the top."""
    return next((n for n, names in enumerate(layers) if any(f"{room}.".startswith(f"{name}.") for name in names)), None)


def upward(arrows: Arrows, layers: list[set[str]]) -> list[tuple[str, str]]:
    """Return the arrows that run against the layers."""
    pairs = ((here, there) for here, others in arrows.items() for there in others)
    floors = ((pair, floor_of(pair[0], layers), floor_of(pair[1], layers)) for pair in pairs)
    return [pair for pair, here, there in floors if here is not None and there is not None and here > there]


def running(found: Mapping[str, tuple[Path, ast.Module]]) -> dict[str, tuple[Path, ast.Module]]:
    """Return the modules without what is imported for annotations alone."""
    kept = {}
    for name, (path, tree) in found.items():
        body = [node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))]
        kept[name] = path, ast.Module(body, [])
    return kept


def inside_functions(tree: ast.AST) -> int:
    """Return how many import statements stand inside functions."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    inner = {node for function in functions for node in ast.walk(function)}
    return sum(isinstance(node, ast.Import | ast.ImportFrom) for node in inner)


def longest_function(found: Mapping[str, tuple[Path, ast.Module]]) -> tuple[int, str]:
    """Return the lines and the name of the longest function."""
    return max(
        (node.end_lineno - node.lineno + 1, f"{name}.{node.name}")
        for name, (_, tree) in found.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
    )


def main(root: Path) -> None:
    """Print the figures of a checkout."""
    found = modules(root)
    arrows, layers = arrows_between(found), order(root)
    lengths = {name: path.read_text(encoding="utf-8").count("\n") for name, (path, _) in found.items()}
    against = upward(arrows, layers)
    print(f"rooms             {len({room_of(name, found) for name in found})}")
    print(f"modules           {len(found)}, {sum(lengths.values())} lines")
    print(f"arrows            {sum(map(len, arrows.values()))}")
    print(f"circles           {len(circles(arrows_between(running(found))))}, by annotations: {len(circles(arrows))}")
    for group in circles(arrows):
        print("                 ", " <-> ".join(sorted(group)))
    print(f"upward            {len(against) if layers else 'no order is stated'}", *(f"{a} -> {b}" for a, b in against))
    print(f"inner imports     {sum(inside_functions(tree) for _, tree in found.values())}")
    print(f"noqa              {sum(path.read_text(encoding='utf-8').count('noqa') for path, _ in found.values())}")
    for name, count in sorted(lengths.items(), key=lambda item: -item[1]):
        if count > LONG_FILE:
            print(f"over {LONG_FILE} lines    {name} {count}")
    print("longest function  {} lines, {}".format(*longest_function(found)))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parents[1])
