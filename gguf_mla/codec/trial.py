"""Before a device is trusted with a run: every type in use encodes and decodes known rows there as it does on the CPU.

The rows hold what weights hold and what goes wrong first: zeros of either sign, subnormal numbers, the largest that a
half-precision scale can hold, one outlier, equal values, equal magnitudes, and random values at several scales.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gguf_mla import codec, ggtypes
from gguf_mla.codec.encoding import GGML, encodings
from gguf_mla.errors import MachineError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gguf_mla.codec.device import Device
    from gguf_mla.codec.encoding import Encoding

Array = np.ndarray[Any, Any]
COLS = 512  # two blocks of the largest types, so that a row has a first and a last
SCALES = (1e-30, 1e-6, 0.02, 1.0, 3e3)
LARGEST = 65000.0  # a half-precision scale holds no more, and what overflows it is NaN, whose sign devices choose


@dataclass(frozen=True, order=True)
class Use:
    """A type and what is done with it: "decode", or the name of the formula that encodes, such as "encode_weighted"."""

    type: str
    action: str

    @property
    def encoding(self) -> Encoding | None:
        """How the type is encoded; None if it is decoded."""
        ways = {way.formula: way for way in encodings(ggtypes.by_name(self.type))}
        return ways.get(self.action)


@functools.cache
def golden_rows() -> Array:
    """Return the known rows, float32 [rows, COLS]; the same in every run with one version of numpy."""
    rng = np.random.default_rng(2025)
    normal = rng.standard_normal((len(SCALES), COLS)) * np.array(SCALES)[:, np.newaxis]
    position = np.arange(COLS)
    rows = [
        np.zeros(COLS),
        np.where(position % 2, -0.0, 0.0),
        (position - COLS // 2) * 2.0**-149,
        rng.uniform(-LARGEST, LARGEST, COLS),
        np.where(position == 200, -80.0, 0.0),
        np.where(position == 300, 700.0, normal[2]),
        np.full(COLS, -0.37),
        np.where(position % 3, 1.25, -1.25),
        np.where(position < COLS // 2, 0.0, normal[3]),
        *normal,
    ]
    return np.array(rows, np.float32)


@functools.cache
def golden_importance() -> Array:
    """Return the importance of the known rows' columns, float32 [COLS]; a few are 0."""
    rng = np.random.default_rng(2026)
    return np.where(np.arange(COLS) % 37 == 5, 0.0, rng.random(COLS) ** 2 * 3).astype(np.float32)


def uses(type_name: str) -> list[Use]:
    """Return all that can be done with a type; nothing for floats, which stay on the CPU."""
    return [*reading(type_name), *_encoded_by(encodings(ggtypes.by_name(type_name)))]


def reading(type_name: str) -> list[Use]:
    """Return what reading rows of a type takes; nothing for floats."""
    tensor_type = ggtypes.by_name(type_name)
    return [Use(tensor_type.name, "decode")] if tensor_type.block > 1 else []


def writing(type_name: str, *, weighted: bool, search: str = GGML) -> list[Use]:
    """Return what writing rows of a type may take; nothing for floats. `weighted`: some may have importance."""
    known = encodings(ggtypes.by_name(type_name))
    return _encoded_by(way for way in known if way.search == search and (weighted or not way.weighted))


def _encoded_by(ways: Iterable[Encoding]) -> list[Use]:
    return [Use(way.type.name, way.formula) for way in ways if way.type.block > 1]


def check(device: Device, wanted: Iterable[Use]) -> list[Use]:
    """Try everything that is `wanted` on every part of a device; each once in a process. Returns what was tried.

    Raises MachineError at the first byte that is not the CPU's.
    """
    tried = sorted(set(wanted))
    for member in device.members():
        for use in tried if member.name != "cpu" else ():
            _try(member, use)
    return tried


def report(device: Device, tried: Iterable[Use]) -> str:
    """Say what `check` has found."""
    types = dict.fromkeys(use.type for use in tried)
    what = f"{', '.join(types)} like the CPU, byte for byte" if types else "nothing to compute in this run"
    return f"{device.name} ({device.title}): {what}"


@functools.cache
def _try(device: Device, use: Use) -> None:
    way = use.encoding or encodings(ggtypes.by_name(use.type))[0]
    importance = golden_importance() if way.weighted else None
    encode = functools.partial(
        codec.encode, golden_rows(), use.type, importance=importance, search=way.search, check=False
    )
    expected = encode()
    if use.encoding is None:
        values = codec.decode(expected, use.type).view(np.uint32)
        found = np.full(golden_rows().shape, np.nan, np.float32)
        codec.decode(expected, use.type, out=found, device=device)
        _compare(device, use, values, found.view(np.uint32))
    else:
        out = np.full(expected.shape, 0xAA, np.uint8)
        encode(out=out, device=device)
        _compare(device, use, expected, out)


def _compare(device: Device, use: Use, expected: Array, found: Array) -> None:
    wrong = np.argwhere(expected != found)
    if len(wrong):
        row, at = wrong[0]
        action, what = ("decode", "value") if use.encoding is None else ("encode", "byte")
        raise MachineError(
            f"{device.name} ({device.title}) does not {action} {use.type} as the CPU does",
            expected=f"{expected[row, at]:#x} at {what} {at} of known row {row}",
            found=f"{found[row, at]:#x}",
            remedy="Use --device cpu, and report this",
        )
