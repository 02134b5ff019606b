"""JSON Schema, as much of it as ours uses; a keyword that is not known here is an error, not a pass."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

TYPES: dict[str, Any] = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float),
                         "boolean": bool, "null": type(None)}  # fmt: skip
KNOWN = {"$schema", "$defs", "$ref", "title", "type", "properties", "required", "additionalProperties", "items", "enum",
         "const", "pattern", "minimum", "anyOf"}  # fmt: skip


def faults(value: Any, schema: Any, root: Any, path: str = "$") -> Iterator[str]:
    """Yield what is wrong with a value, each with its place."""
    if isinstance(schema, bool):
        if not schema:
            yield f"{path} should not be there"
        return
    assert schema.keys() <= KNOWN, schema.keys() - KNOWN
    if "$ref" in schema:
        yield from faults(value, root["$defs"][schema["$ref"].rpartition("/")[2]], root, path)
    if "anyOf" in schema and all(list(faults(value, option, root, path)) for option in schema["anyOf"]):
        yield f"{path}: none of the possibilities fits"
    if "type" in schema and not _is(value, schema["type"]):
        yield f"{path}: {value!r:.60} is not {schema['type']}"
        return
    yield from _limits(value, schema, path)
    if isinstance(value, dict):
        yield from _members(value, schema, root, path)
    if isinstance(value, list):
        for i, item in enumerate(value):
            yield from faults(item, schema.get("items", True), root, f"{path}[{i}]")


def _limits(value: Any, schema: Any, path: str) -> Iterator[str]:
    if ("const" in schema and value != schema["const"]) or ("enum" in schema and value not in schema["enum"]):
        yield f"{path}: {value!r:.60} is not allowed"
    if isinstance(value, str) and "pattern" in schema and not re.search(schema["pattern"], value):
        yield f"{path}: {value!r:.60} does not match"
    if isinstance(value, int | float) and value < schema.get("minimum", value):
        yield f"{path}: {value} is too small"


def _members(value: dict[str, Any], schema: Any, root: Any, path: str) -> Iterator[str]:
    properties = schema.get("properties", {})
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{path}.{name} is missing"
    for name, inner in value.items():
        yield from faults(inner, properties.get(name, schema.get("additionalProperties", True)), root, f"{path}.{name}")


def _is(value: Any, names: str | list[str]) -> bool:
    wanted = [names] if isinstance(names, str) else names
    if isinstance(value, bool):
        return "boolean" in wanted
    return any(isinstance(value, TYPES[name]) for name in wanted)
