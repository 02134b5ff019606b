"""Numbers on the command line: finite, within bounds, and of a few digits, or a sentence says what is expected."""

from __future__ import annotations

import math
from typing import Any

import click

from gguf_mla import units
from gguf_mla.errors import InputError

MOST_DIGITS = 30
TOKENS = 1 << 40  # cached, far more than any memory
CONTEXT = 1 << 20  # tokens that are computed at once
THREADS = 1024
COUNT = 1 << 20  # of what takes memory or time by the piece


def _short(kind: click.ParamType[Any], value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
    if isinstance(value, str) and len(value) > MOST_DIGITS:
        kind.fail(f"a number of at most {MOST_DIGITS} characters is expected.", param, ctx)
    return value


class Whole(click.IntRange):
    """A whole number from `least` to `most`."""

    def __init__(self, most: int, least: int = 1) -> None:
        super().__init__(min=least, max=most)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number."""
        return super().convert(_short(self, value, param, ctx), param, ctx)


class Real(click.FloatRange):
    """A finite number from `least` to `most`."""

    def __init__(self, least: float, most: float) -> None:
        super().__init__(min=least, max=most)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number."""
        number = super().convert(_short(self, value, param, ctx), param, ctx)
        return number if math.isfinite(number) else self.fail(f"{number} is not a number to count on.", param, ctx)


class Size(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.5
    """A number of bytes as a user writes it, which stays as it is: 80G, 500M, 7.5GiB.

    letter  it has to say its unit
    """

    name = "size"

    def __init__(self, *, letter: bool = False) -> None:
        self._letter = letter

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the text, once it is known to be a size."""
        try:
            units.parse_size(str(value))
        except InputError as error:
            self.fail(str(error), param, ctx)
        if self._letter and not units.has_unit(value):
            self.fail("a size with K, M, G or T is expected, like 200G.", param, ctx)
        return value.strip()


class Fraction(click.ParamType):  # type: ignore[type-arg]  # as above
    """A part of a whole as a user writes it, which stays as it is: 1/64; also 0, for nothing."""

    name = "fraction"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the text, once it is known to be a fraction; InputError for what is none."""
        del param, ctx
        if value != "0":
            units.parse_fraction(str(value))
        return value
