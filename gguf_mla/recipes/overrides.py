"""What the user asks for instead of the recipe."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gguf_mla.errors import InputError
from gguf_mla.files.input import unreadable
from gguf_mla.recipes.expressions import compiled
from gguf_mla.recipes.names import encodable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True)
class Overrides:
    """The options of llama-quantize that change types, checked and with types in their proper spelling.

    pure                  every tensor gets the file type's default
    tensor_types          (regular expression, type): a name in which it is found gets that type; the first match wins
    named_types           the type of a tensor by its name, where no expression comes first
    output_tensor_type    for output.weight, or for embeddings that serve as output
    token_embedding_type  for the token embeddings
    leave_output_tensor   output.weight keeps its type
    no_fallback           no type stands in for one that does not fit a tensor's rows: that is refused
    compat                exactly llama.cpp's choice, also where ours is deliberately another (docs/recipes.md)

    Raises InputError for a type that does not exist and for an expression that does not compile.
    """

    pure: bool = False
    tensor_types: tuple[tuple[str, str], ...] = ()
    named_types: Mapping[str, str] = field(default_factory=dict)
    output_tensor_type: str | None = None
    token_embedding_type: str | None = None
    leave_output_tensor: bool = False
    compat: bool = False
    no_fallback: bool = False

    def __post_init__(self) -> None:
        pairs = tuple((pattern, encodable(kind)) for pattern, kind in self.tensor_types)
        object.__setattr__(self, "tensor_types", pairs)
        self.expressions()  # an error now, not when they are used
        for option in ("output_tensor_type", "token_embedding_type"):
            kind = getattr(self, option)
            object.__setattr__(self, option, kind and encodable(kind))

    def expressions(self) -> tuple[re.Pattern[str], ...]:
        """Return the compiled expressions of `tensor_types`, which ignore case."""
        # llama-quantize lowers the expression itself, so \D becomes \d; a user who wants compatibility gets that too.
        patterns = (pattern.lower() if self.compat else pattern for pattern, _ in self.tensor_types)
        return tuple(map(compiled, patterns))


def parse_tensor_type(text: str) -> tuple[str, str]:
    """Return the (regular expression, type) of "REGEX=TYPE"; InputError if it is none."""
    pattern, _, kind = text.strip().rpartition("=")
    if not pattern or not kind:
        raise InputError("a tensor type cannot be read", expected="REGEX=TYPE, for instance attn_k_b=Q8_0", found=text)
    compiled(pattern)
    return pattern, encodable(kind)


def read_tensor_types(path: Path) -> tuple[tuple[str, str], ...]:
    """Read a file of REGEX=TYPE, one per line or several with spaces between; "#" begins a comment."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise InputError("not a text file", file=path, expected="lines of REGEX=TYPE") from None
    except OSError as error:
        raise unreadable(path, error) from None
    return tuple(_entry(path, number, item) for number, line in enumerate(lines, 1) for item in _items(line))


def _items(line: str) -> list[str]:
    return re.sub(r"(^|\s)#.*", "", line).split()


def _entry(path: Path, number: int, item: str) -> tuple[str, str]:
    try:
        return parse_tensor_type(item)
    except InputError as error:
        raise InputError(
            error.what, file=f"{path}, line {number}", expected=error.expected, found=error.found, remedy=error.remedy
        ) from None
