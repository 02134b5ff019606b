"""A size instead of a file type: types are bought, one tensor at a time, where a byte saves the most harm."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from gguf_mla import ggtypes, units
from gguf_mla.errors import InputError
from gguf_mla.recipes.file_types import file_type
from gguf_mla.recipes.roles import EMBEDDINGS, OUTPUT
from gguf_mla.recipes.rules import NEEDS_IMPORTANCE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from gguf_mla.recipes.file_types import FileType

# What may be chosen: everything that some engine runs fast. Legacy types only where rows are too short for the others.
CANDIDATES = (
    "BF16", "Q8_0", "Q6_K", "Q5_K", "Q4_K", "IQ4_XS", "Q3_K", "IQ3_S", "IQ3_XXS", "Q2_K", "IQ2_S", "IQ2_XS", "IQ2_XXS",
    "IQ1_M", "IQ1_S",
)  # fmt: skip
MAX_BITS = 64  # per weight; the largest type has 32
FOR_SHORT_ROWS = ("BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "IQ4_NL", "Q4_0")


@dataclass(frozen=True)
class Budget:
    """How large a file may become: its weights `bits` each on average, or the whole file `nbytes`."""

    name: str
    bits: float | None = None
    nbytes: int | None = None

    def allowed(self, parameters: int, overhead: int) -> int:
        """Return how many bytes of tensor data so many weights may have, beside `overhead` bytes of everything else."""
        return self.nbytes - overhead if self.nbytes is not None else int((self.bits or 0) * parameters / 8)


def budget(name: str) -> Budget | None:
    """Read "3.5bpw" or a size with its unit, "200G"; None for anything else."""
    if found := re.fullmatch(r"([0-9.]+)bpw", name, re.IGNORECASE):
        return Budget(name, bits=_bits(found[1]))
    if units.has_unit(name):
        return Budget(name.replace(" ", ""), nbytes=units.parse_size(name))
    return None


def _bits(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,9})?", text) or not 0 < float(text) <= MAX_BITS:
        raise InputError("this is not a size", expected=f"up to {MAX_BITS} bits per weight", found=f"{text}bpw")
    return float(text)


def target(name: str) -> FileType | Budget:
    """Return what a user asked for by that name; InputError suggests near names."""
    return budget(name) or file_type(name)


def sensitivity(name: str, layers: int) -> float:
    """Return how much a tensor's relative squared error matters to the logits, 1 for the output's own.

    An error in the output is one in the logits as it is. Each layer adds two of the terms whose sum the output
    multiplies, so an error in a term is diluted by their number. That attention counts a quarter and embeddings a third
    was measured on the bundled checkpoint, one group of tensors at a time in Q3_K (docs/recipes.md).
    """
    if name == OUTPUT:
        return 1.0
    if name in EMBEDDINGS:
        return 1 / 3
    return (0.25 if ".attn_" in name else 1.0) / (2 * layers)


def candidates(columns: int, *, has_importance: bool) -> list[str]:
    """Return the types that rows of so many values may be bought."""
    fitting = [kind for kind in CANDIDATES if ggtypes.by_name(kind).fits(columns)]
    if fitting == ["BF16", "Q8_0"]:
        fitting = [kind for kind in FOR_SHORT_ROWS if ggtypes.by_name(kind).fits(columns)]
    return [kind for kind in fitting if has_importance or kind not in NEEDS_IMPORTANCE]


class Offer(NamedTuple):
    """A type that a tensor could have: what it costs in bytes, the error it leaves, and how much that matters."""

    type: str
    nbytes: int
    error: float
    weight: float = 1.0

    @property
    def harm(self) -> float:
        """What is to be kept small."""
        return self.error * self.weight


class _Step(NamedTuple):
    gain: float  # harm saved per byte
    tensor: int
    cost: int
    to: Offer


def spend(offers: Sequence[Mapping[str, Offer]], allowed: int) -> list[Offer]:
    """Return one offer for each tensor, so that the sum of harm is small and the sum of bytes at most `allowed`.

    Every tensor starts with its cheapest offer; then come the steps to better ones, most harm saved per byte first.
    Only offers on the lower convex hull of bytes and harm are considered, so the steps of a tensor come in their order
    and the result is optimal but for the last step, which may not fit. InputError if the cheapest do not fit.
    """
    hulls = [_hull(list(of.values())) for of in offers]
    chosen = [hull[0] for hull in hulls]
    left = allowed - sum(offer.nbytes for offer in chosen)
    check_enough(allowed - left, allowed)
    full = set()
    for step in sorted((s for t, hull in enumerate(hulls) for s in _steps(t, hull)), key=lambda s: (-s.gain, s.tensor)):
        if step.cost > left:
            full.add(step.tensor)
        if step.tensor not in full:
            chosen[step.tensor] = step.to
            left -= step.cost
    return chosen


def check_enough(
    least: int, allowed: int, name: str = "the wanted size", more: str = "", *, has_importance: bool = False
) -> None:
    """Raise InputError where the smallest that everything can be, `least` bytes, is more than what is allowed.

    `name` is the budget's, `more` says the same of the whole model in its unit.
    """
    if least > allowed:
        others = "" if has_importance else ", or give --imatrix, which allows types of fewer bits"
        raise InputError(
            f"{name} is too small for this model",
            expected=f"at least {units.size(least)} for what can be chosen{more}",
            found=units.size(max(allowed, 0)),
            remedy=f"Ask for more{others}",
        )


def _hull(offers: list[Offer]) -> list[Offer]:
    """Return the offers no mixture of others beats, cheapest first."""
    hull: list[Offer] = []
    for offer in sorted(offers, key=lambda o: (o.nbytes, o.harm)):
        if hull and offer.harm >= hull[-1].harm:
            continue
        while len(hull) > 1 and _gain(hull[-2], hull[-1]) <= _gain(hull[-2], offer):
            hull.pop()
        hull.append(offer)
    return hull


def _gain(worse: Offer, better: Offer) -> float:
    return (worse.harm - better.harm) / (better.nbytes - worse.nbytes)


def _steps(tensor: int, hull: list[Offer]) -> Iterator[_Step]:
    for worse, better in itertools.pairwise(hull):
        yield _Step(_gain(worse, better), tensor, better.nbytes - worse.nbytes, better)
