"""What a ggml tensor type is: numbers for the file format and formulas for the kernels."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from gguf_mla.errors import InputError

if TYPE_CHECKING:
    from types import ModuleType


@dataclass(frozen=True)
class TensorType:
    """One ggml tensor type.

    name              ggml's name in upper case: Q4_K
    id                ggml's number of the type, as GGUF files hold it
    block             values per block; a row is a whole number of blocks
    bytes             bytes per block
    needs_importance  ggml refuses to encode without importance weights
    scratch           float32 a formula needs per lane beside the block itself
    row_spread        with importance, a formula finds the mean square of its whole row in scratch[0]
    module_name       the module that holds the formulas (its __name__); "" for types that are only stored, not encoded
    """

    name: str
    id: int
    block: int
    bytes: int
    needs_importance: bool = False
    scratch: int = field(default=1, repr=False)
    row_spread: bool = field(default=False, repr=False)
    module_name: str = field(default="", repr=False)

    def fits(self, cols: int) -> bool:
        """Tell whether a row of `cols` values can have this type."""
        return cols % self.block == 0

    def row_bytes(self, cols: int) -> int:
        """Bytes of a row of `cols` values; InputError if it is not a whole number of blocks."""
        if not self.fits(cols):
            raise InputError(
                f"a row of {cols} values cannot be {self.name}",
                expected=f"a multiple of {self.block} values",
                found=cols,
                remedy="Choose a type with smaller blocks for this tensor",
            )
        return cols // self.block * self.bytes

    @property
    def module(self) -> ModuleType:
        """The type's own file."""
        return import_module(self.module_name)

    def tables(self) -> tuple[Any, ...]:
        """Return the codebooks the formulas look up; loaded from the `gguf` package when a kernel first needs them."""
        load = getattr(self.module, "tables", None)
        return load() if load else ()
