"""Numbers for people."""

from __future__ import annotations


def size(nbytes: float) -> str:
    """Return a number of bytes as people read it, in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < 1024:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.2f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.2f} TiB"


def count(number: int) -> str:
    """Return a number of parameters in the field's units: 8.4M, 671.0B."""
    for limit, unit in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= limit:
            return f"{number / limit:.1f}{unit}"
    return str(number)


def bits_per_weight(nbytes: int, parameters: int) -> str:
    """Return bits per weight with two decimals."""
    return f"{8 * nbytes / parameters:.2f}" if parameters else "-"
