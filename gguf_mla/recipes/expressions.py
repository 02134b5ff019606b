r"""Regular expressions from a user, none of which can take longer than a moment.

Python tries every way in which repeats can share a text. One repeat in another, or many in a row, have so many ways
that a name of forty letters takes years: ([a-z]+)+! or .*.*.*.*.*.*.*!. Such expressions
are refused; each can be written otherwise.
"""

from __future__ import annotations

import re
import warnings
from re import _constants as codes  # type: ignore[attr-defined]  # the only parser of Python's dialect is its own
from re import _parser as parser  # type: ignore[attr-defined]
from typing import TYPE_CHECKING, Any

from gguf_mla.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_LENGTH = 1000
MAX_REPEATS = 8  # of an open number; each multiplies the ways, up to the length of a name
MAX_IN_A_ROW = 3  # with nothing fixed between
LONGEST_NAME = 63  # what ggml has room for

_REPEATS = {codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT}
_WIDTHLESS = {codes.AT, codes.ASSERT, codes.ASSERT_NOT}


def compiled(pattern: str) -> re.Pattern[str]:
    """Return an expression that ignores case; InputError for one that is not sound, or might take forever."""
    if len(pattern) > MAX_LENGTH:
        raise InputError("a regular expression is too long", expected=f"at most {MAX_LENGTH}", found=len(pattern))
    try:
        with warnings.catch_warnings():
            # llama-quantize's dialect has [[:digit:]], which Python takes for a set of letters, with this warning.
            warnings.simplefilter("error", FutureWarning)
            found = re.compile(pattern, re.IGNORECASE)
            open_repeats = _check(parser.parse(pattern, re.IGNORECASE), pattern, repeated=False)
    except FutureWarning:
        remedy = "Write [0-9] for [[:digit:]], and a backslash before a bracket that is meant"
        raise InputError("sets within sets are not understood", found=pattern, remedy=remedy) from None
    except (re.error, OverflowError) as error:
        raise InputError(f"not a regular expression ({error})", found=pattern) from None
    except RecursionError:
        raise InputError("a regular expression is nested too deeply", found=pattern) from None
    if open_repeats > MAX_REPEATS:
        raise _too_many_ways(pattern, f"it has {open_repeats} repeats")
    return found


def matches(expression: re.Pattern[str], name: str) -> bool:
    """Tell whether an expression is found in a tensor's name; never in one that is longer than any engine reads."""
    return len(name) <= LONGEST_NAME and expression.search(name) is not None


def _check(items: Iterable[Any], pattern: str, *, repeated: bool) -> int:
    """Return how many repeats of an open number there are; `repeated`: in another that runs more than once."""
    count = row = 0
    for code, argument in items:
        is_open = code in _REPEATS and argument[0] != argument[1]
        if repeated and (is_open or code is codes.BRANCH):
            raise _too_many_ways(pattern, "a repeat or a choice is repeated")
        inside = repeated or (code in _REPEATS and argument[1] > 1)
        found = [_check(part, pattern, repeated=inside) for part in _parts(code, argument)]
        here = is_open + (max(found, default=0) if code is codes.BRANCH else sum(found))
        row = row + here if here or code in _WIDTHLESS else 0
        if row > MAX_IN_A_ROW:
            raise _too_many_ways(pattern, f"more than {MAX_IN_A_ROW} repeats follow each other")
        count += here
    return count


def _parts(code: Any, argument: Any) -> list[Any]:
    """Return the sequences that an item of a parsed expression has inside."""
    if code is codes.BRANCH:
        return list(argument[1])
    if isinstance(argument, parser.SubPattern):
        return [argument]
    return [part for part in argument if isinstance(part, parser.SubPattern)] if isinstance(argument, tuple) else []


def _too_many_ways(pattern: str, why: str) -> InputError:
    return InputError(
        f"a regular expression could take forever on some names: {why}",
        found=pattern,
        remedy="Write it without, for instance [a-z_]+ for ([a-z]+_?)+",
    )
