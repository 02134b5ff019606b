"""One family of errors: every message names the file, the tensor, what was expected, what was found and what to do.

A sentence may be printed as it is: what it says of a file is escaped and cut (gguf_mla/quoting.py), whatever the file
holds. The exit status of the command line is part of the error: 1 a verification found a difference, 2 bad usage or
input, 3 the machine failed (disk full, I/O, no GPU).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf_mla.quoting import NAME, TEXT, quoted, shown

if TYPE_CHECKING:
    from pathlib import PurePath

FACT = 600  # characters of what was expected or found: all ggml types with their numbers are about 500
# What to do about a file that is whole and says something impossible: another copy of it would say the same.
SAVED_SO = (
    "Compare the file with the published one (--verify-source, or by hand). If they are the same, the model was saved "
    "so: convert what it was made from"
)
EDITED = "A tool or a hand has written it so: take the file of the original model"


class GgufMlaError(Exception):
    """A failure that is explained to the user in sentences, never by a traceback.

    what      one clause: what is wrong, or what was being done
    file      the file concerned
    tensor    the tensor concerned
    expected  what a right input would have had there
    found     what is there
    remedy    what the user can do about it
    """

    status = 2

    def __init__(
        self,
        what: str,
        *,
        file: PurePath | str | None = None,
        tensor: str | None = None,
        expected: object = None,
        found: object = None,
        remedy: str | None = None,
    ) -> None:
        self.what, self.file, self.tensor = what, file, tensor
        self.expected, self.found, self.remedy = expected, found, remedy
        super().__init__(self._sentence())

    def _sentence(self) -> str:
        limits = ((self.file, TEXT), (self.tensor, NAME), (self.what, TEXT))
        text = ": ".join(quoted(str(part), limit) for part, limit in limits if part is not None)
        facts = [
            f"{word} {shown(fact, FACT)}"
            for word, fact in (("expected", self.expected), ("found", self.found))
            if fact is not None
        ]
        if facts:
            text += f" ({', '.join(facts)})"
        return f"{text}. {quoted(self.remedy, TEXT)}." if self.remedy else f"{text}."


class InputError(GgufMlaError):
    """The input or the request is wrong: status 2."""


class RangeError(InputError):
    """A weight is a number that the wanted type cannot hold; its `row` and `column` among the rows given."""

    def __init__(self, row: int, column: int, value: float, type_name: str, tensor: str | None = None) -> None:
        self.row, self.column, self.value, self.type_name = row, column, value, type_name
        wider = "F32" if type_name == "BF16" else "BF16"
        super().__init__(
            f"the value in row {row}, column {column} is too large for {type_name}, which would hold infinity or NaN",
            tensor=tensor,
            found=f"{value:.6g}",
            remedy=f"Choose {wider} for this tensor, or repair the source",
        )


class MachineError(GgufMlaError):
    """The machine failed, the input may be fine (disk full, I/O error, no GPU): status 3."""

    status = 3
