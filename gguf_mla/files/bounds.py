"""What no model exceeds: every count, product and length that a file states is held against these before work begins.

A hole costs nothing on a disk, so a file can be as large as anything that it claims: its size alone bounds neither time
nor memory. The numbers are far beyond any published model, and so small that whatever stays below them is read in about
a second and 200 MB. What is written keeps them too, so that it can be read again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gguf_mla.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import PurePath

NAME_BYTES = (1 << 16) - 1  # of a name or key, as the GGUF specification has it
TEXT_BYTES = 1 << 24  # of all names, keys and texts of a head together, without what is in lists
CONFIG_BYTES = 1 << 22  # of a config.json or generation_config.json; a long list of layers not quantized is 1 MB
TEMPLATE_BYTES = 1 << 22  # of a chat template that is a file
CARD_BYTES = 1 << 16  # of a model card's front matter
NOTE_BYTES = 1 << 20  # of a small file beside another: checksums
TENSORS = 1 << 17  # of a file; Kimi-K2 has 2 000 in GGUF and 200 000 in 62 shards
DIMENSIONS = 32  # of a tensor in a checkpoint; numpy's limit
ROW_VALUES = 1 << 20  # of a row: what a thread takes at a time, so that memory depends on no row
HEAD_VALUES = 1 << 20  # of a head's matrix, which is transposed whole; the largest published has 256 x 512
SLICES = 1 << 19  # experts and heads of all stacked tensors of a file together
LAYERS = 1 << 14  # of a model
EXPERTS = 1 << 16  # of a layer
VOCABULARY = 1 << 20  # tokens
SHARDS = 1 << 16  # of a checkpoint
SUMS = 1 << 24  # importance values of a tensor, all experts together
ALIGNMENT = 1 << 16  # bytes between tensors, the largest page of memory that is common
NUMBER_DIGITS = 40  # of a whole number in JSON; some configurations write 10^30 for "no limit"


def product(numbers: Sequence[int], at_most: int) -> int:
    """Return the product of numbers that are not negative; `at_most` + 1 as soon as it is more than `at_most`."""
    if 0 in numbers:
        return 0
    found = 1
    for number in numbers:
        found *= number
        if found > at_most:
            return at_most + 1
    return found


def bounded(
    value: Any,
    at_most: int,
    what: str,
    *,
    at_least: int = 0,
    file: PurePath | str | None = None,
    tensor: str | None = None,
) -> int:
    """Return a whole number between two bounds; InputError for anything else. `what` names it in the sentence."""
    if type(value) is not int or not at_least <= value <= at_most:
        raise InputError(
            f"{what} is not one that a model can have",
            file=file,
            tensor=tensor,
            expected=f"a whole number from {at_least} to {at_most}",
            found="nothing" if value is None else shown(value),
        )
    return value


def shown(value: object, length: int = 80) -> str:
    """Return what a file says as a short text: a list or a number from a stranger can be millions of characters."""
    if type(value) is int and value.bit_length() > 4 * NUMBER_DIGITS:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, (list, tuple)) and len(value) > 8:
        return f"{shown(value[:8], length)[:-1]}, ...{']' if isinstance(value, list) else ')'}"
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= length else text[: length - 3] + "..."


def named(names: Iterable[str], at_most: int = 8) -> str:
    """Return the first of some names, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - at_most} more" if len(listed) > at_most else ""
    return ", ".join(listed[:at_most]) + more
