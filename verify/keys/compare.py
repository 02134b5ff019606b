"""Every key of a file held against what explains it: the reference, or what is known of engines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from verify.findings import Finding, Grade
from verify.keys import general
from verify.keys.expected import LEVEL, judge, same, short
from verify.keys.known import PROVENANCE, honoured, inert

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gguf_mla.container.reader import GgufFile
    from verify.keys.expected import Expected
    from verify.keys.statements import Statement


def compare_keys(
    statement: Statement, model: Mapping[str, Expected], file: GgufFile, architecture: str
) -> Iterator[Finding]:
    """Yield what a file's keys say otherwise than the reference, and those that nothing explains.

    `model` holds the keys that describe the model, without the prefix of the file's `architecture`.
    """
    metadata, prefix = file.metadata, f"{architecture}."
    expected = {**statement.keys(architecture), **{prefix + name: wanted for name, wanted in model.items()}}
    for key, wanted in expected.items():
        if finding := judge(key, wanted, metadata):
            yield finding
    yield from statement.findings(metadata)
    yield from general.looks(file)
    for key, value in metadata.items():
        if key not in expected and not statement.settles(key) and (finding := _unexplained(key, value, prefix)):
            yield finding


def _unexplained(key: str, value: Any, prefix: str) -> Finding | None:
    """Return what to say of a key that the reference says nothing of; None where it can do nothing."""
    name = key.removeprefix(prefix)
    if read := honoured(name):
        if any(same(neutral, value) for neutral in read.neutral):
            return None
        wanted = short(read.neutral[0]) if read.neutral else "nothing"
        return Finding(LEVEL, key, f"is not in the reference: {read.reads}", wanted, short(value))
    if key.startswith(PROVENANCE):
        return None
    reason = inert(name) or "nothing known here reads it, but a newer engine may"
    return Finding(LEVEL, key, f"is not in the reference: {reason}", found=short(value), grade=Grade.DIFFERS)
