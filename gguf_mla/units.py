"""Numbers for people, and from them."""

from __future__ import annotations

import re

from gguf_mla.errors import InputError

_SCALES = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4}
_BINARY = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?(?:([KMGT]?)B?|([KMGT])IB)", re.ASCII | re.IGNORECASE)
_NUMBER = r"[0-9]{1,9}(?:\.[0-9]{1,9})?"


def parse_size(text: str) -> int:
    """Return a size such as "48G", "7.5GB", "8GiB" or "4096" in bytes, rounded down; InputError for what is not one.

    Units are decimal, with or without B, as gguf-split has them; KiB, MiB, GiB and TiB are binary.
    """
    from fractions import Fraction  # noqa: PLC0415 - it loads decimal, and every command's help would wait for that

    match = _SIZE.fullmatch(text.strip())
    scale = 1 if match is None else _BINARY[match[3].upper()] if match[3] else _SCALES[match[2].upper()]
    size = 0 if match is None else int(Fraction(match[1]) * scale)
    if not size:
        expected = "a positive number and K, M, G, T, GB, GiB or the like, or nothing, like 48G"
        raise InputError("this is not a size", expected=expected, found=repr(text))
    return size


def has_unit(text: str) -> bool:
    """Whether a text is a size that says its unit, so that it cannot be taken for another number."""
    return not text.strip()[-1:].isdigit() and _SIZE.fullmatch(text.strip()) is not None


def parse_fraction(text: str) -> float:
    """Return a number such as "1/64" or "0.25", above 0 and up to 1."""
    over, slash, under = text.strip().partition("/")
    if all(re.fullmatch(_NUMBER, part, re.ASCII) for part in ((over, under) if slash else (over,))):
        below = float(under) if slash else 1.0
        if 0 < float(over) <= below:
            return float(over) / below
    raise InputError("--fraction cannot be read", expected="a number such as 1/64", found=repr(text))


def size(nbytes: float) -> str:
    """Return a number of bytes as people read it, in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < 1024:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.2f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.2f} TiB"


def span(seconds: float) -> str:
    """Return a time as people read it: 45 s, 12 min, 3 h 20 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def count(number: int) -> str:
    """Return a number of parameters in the field's units: 8.4M, 671.0B."""
    for limit, unit in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= limit:
            return f"{number / limit:.1f}{unit}"
    return str(number)


def bits_per_weight(nbytes: int, parameters: int) -> str:
    """Return bits per weight with two decimals."""
    return f"{8 * nbytes / parameters:.2f}" if parameters else "-"
