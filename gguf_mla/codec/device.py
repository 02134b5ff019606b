"""Where rows are encoded and decoded: the CPU, or another device with the same bytes.

A device is one file `codec/on_NAME.py` with `open_device(number)`; nothing else has to name it.
"""

from __future__ import annotations

import functools
import re
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gguf_mla import discovery
from gguf_mla.errors import InputError, MachineError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from gguf_mla.codec.encoding import Encoding
    from gguf_mla.ggtypes import TensorType

PREFIX = "on_"
ON_THE_CPU = "use --device cpu: the bytes are the same"


class Device(Protocol):
    """A place to compute, for any number of threads at once. Arguments are checked by `codec`, its only caller.

    name          as `--device` names it: "cpu", "cuda", "cuda:1"
    title         for people: "the CPU", "NVIDIA H200"
    takes_blocks  rows that are quantized already are better handed over as they are than decoded on the CPU first
    """

    name: str
    title: str
    takes_blocks: bool

    def encode(
        self,
        encoding: Encoding,
        x: NDArray[Any],
        source: str,
        importance: NDArray[Any] | None,
        out: NDArray[Any],
        *,
        check: bool,
    ) -> int:
        """Encode rows [rows, cols] of a source format, or [rows, row_bytes] of a block type, into uint8 `out`.

        importance is float32 [cols] if the encoding is weighted, else None.
        Returns -1, or where `check` found NaN, infinity or a magnitude above `floats.CERTAIN`: a position at or before
        the first, counted in values. What comes after it may not have been encoded.
        """

    def decode(self, tensor_type: TensorType, data: NDArray[Any], out: NDArray[Any]) -> None:
        """Decode uint8 rows [rows, row_bytes] into `out`, float32 [rows, cols]."""

    def __hash__(self) -> int:
        """Tell devices apart: what is known of one is kept."""

    def members(self) -> Sequence[Device]:
        """Return the single devices it deals the work to; itself, if it is one."""


def names() -> list[str]:
    """Return the devices there are files for, whether or not this machine has them."""
    start = f"{__package__}.{PREFIX}"
    found = discovery.modules(str(__package__), [str(Path(__file__).parent)])
    return sorted(name.removeprefix(start) for name in found if name.startswith(start))


@functools.cache
def open_device(name_and_number: str) -> Device:
    """Return a device by name, "cuda", or by name and number, "cuda:1".

    InputError for an unknown name; MachineError if this machine has no such device or cannot use it.
    """
    name, _, number = name_and_number.partition(":")
    if name not in names() or not re.fullmatch(r"\w+(:\d{1,4})?", name_and_number):
        raise InputError(
            f"there is no device {name_and_number!r}", expected="cpu, cuda or cuda:N", found=name_and_number
        )
    try:
        module = import_module(f"{__package__}.{PREFIX}{name}")
    except ImportError as error:  # numba without CUDA, as its future versions may come
        raise MachineError(f"{name} cannot be used here: {error}", remedy=f"Install it, or {ON_THE_CPU}") from None
    device: Device = module.open_device(int(number) if number else None)
    return device
