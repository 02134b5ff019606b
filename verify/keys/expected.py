"""What a key must say, what engines take where it is missing, and what is to be said of a file that differs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gguf_mla.files.bounds import shown
from verify.findings import Finding, Grade

LEVEL = "structure"
STORED_FLOAT = 1e-6  # metadata are float32, config.json is decimal


class Required:
    """In place of what engines take for a missing key: they do not load the file, or misread it."""


REQUIRED = Required()


@dataclass(frozen=True)
class Expected:
    """What the reference says of a key.

    value     what the key must say; None: it must not be there
    absent    what engines take where the key is missing, REQUIRED where they need it
    grade     of a file in which it says something else
    note      what engines do with it
    optional  whether files without it are as usual as files with it, where that is the same
    alike     other values that engines take for the same, or that the reference states elsewhere
    missing   the grade of a file without it, where that is not `grade`
    """

    value: Any
    absent: Any = REQUIRED
    grade: Grade = Grade.WRONG
    note: str = ""
    optional: bool = False
    alike: tuple[Any, ...] = ()
    missing: Grade | None = None


def judge(key: str, expected: Expected, metadata: Mapping[str, Any]) -> Finding | None:
    """Return what is to be said of a file's key; None when it says what it must."""
    if key not in metadata:
        return _missing(key, expected)
    found = metadata[key]
    if same(expected.value, found):
        return None
    what = "must not be there" if expected.value is None else "is wrong"
    wanted = "nothing" if expected.value is None else short(expected.value)
    if any(same(other, found) for other in expected.alike):
        return Finding(LEVEL, key, "is another, which comes to the same", wanted, short(found), Grade.DIFFERS)
    return Finding(LEVEL, key, _with(what, expected.note), wanted, short(found), expected.grade)


def _missing(key: str, expected: Expected) -> Finding | None:
    if expected.value is None:
        return None
    wanted, grade = short(expected.value), expected.missing or expected.grade
    if expected.absent is REQUIRED:
        return Finding(LEVEL, key, _with("is missing", expected.note), wanted, "nothing", grade)
    taken = f"is missing, and engines take {'none' if expected.absent is None else short(expected.absent)}"
    if not same(expected.value, expected.absent):
        return Finding(LEVEL, key, _with(taken, expected.note), wanted, "nothing", grade)
    if expected.optional:
        return None
    return Finding(LEVEL, key, f"{taken}, which is the same", grade=Grade.DIFFERS)


def _with(what: str, note: str) -> str:
    return f"{what}: {note}" if note else what


def same(expected: Any, found: Any) -> bool:
    """Whether two values are one for an engine: numbers up to float32, lists by their entries, truth by its kind."""
    if isinstance(expected, bool) or isinstance(found, bool):
        return type(expected) is type(found) and expected == found
    if isinstance(expected, int | float) and isinstance(found, int | float):
        return expected == found or math.isclose(expected, found, rel_tol=STORED_FLOAT)
    if _is_list(expected) and _is_list(found):
        return len(expected) == len(found) and all(map(same, expected, found))
    return bool(type(expected) is type(found) and expected == found)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def short(value: Any) -> Any:
    """Return a value as a sentence can hold it."""
    if isinstance(value, float):
        return f"{value:.7g}"
    return shown(list(value)) if _is_list(value) else value
