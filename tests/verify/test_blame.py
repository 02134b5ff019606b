"""Structured mistakes are named: which expert, head or row is off, and what is there instead."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.support import hub
from tests.support.command import convert
from tests.verify.faults import HEADS, NOPE, RANK, ROPE, VALUE, Image, changed, copied, rope_first, swapped
from verify.job import Request, prove

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TYPES = ("Q8_0", "Q4_K_M")


@dataclass(frozen=True)
class Mistake:
    """What is done to a file, the tensor to blame, and what has to be said of it."""

    tensor: str
    says: str
    damage: Callable[[Image], None]


def of(tensor: str, says: str, how: Callable[[np.ndarray], np.ndarray]) -> Mistake:
    name = f"{tensor}.weight"
    return Mistake(name, says, changed(name, how))


def put(index: object, value: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """Put into one part of a tensor what is made of the whole."""

    def change(x: np.ndarray) -> np.ndarray:
        broken = x.copy()
        broken[index] = value(x)
        return broken

    return change


def of_both(first: str, second: str, at: object, *, exchanged: bool) -> Callable[[Image], None]:
    """Put a part of the second tensor into the first, and the other way round."""

    def damage(image: Image) -> None:
        ours, theirs = image.values(first), image.values(second)
        image.change(first, put(at, lambda _: theirs[at]))
        if exchanged:
            image.change(second, put(at, lambda _: ours[at]))

    return damage


def head_rows(head: int) -> slice:
    return slice(head * (NOPE + ROPE), (head + 1) * (NOPE + ROPE))


def heads(x: np.ndarray) -> np.ndarray:
    return x.reshape(HEADS, -1, x.shape[-1])


GATE, UP = "blk.1.ffn_gate_exps.weight", "blk.1.ffn_up_exps.weight"
MISTAKES = (
    # experts
    of("blk.1.ffn_up_exps", "expert 3 has expert 5's values", put(3, lambda x: x[5])),
    of("blk.2.ffn_down_exps", "experts 2 and 5 are exchanged", put([2, 5], lambda x: x[[5, 2]])),
    of("blk.1.ffn_up_exps", "expert order is shifted by 1: expert 0 has expert 7's", lambda x: np.roll(x, 1, 0)),
    of("blk.1.ffn_up_exps", "expert order is permuted: expert 0 has expert 7's values", lambda x: x[::-1]),
    of("blk.1.ffn_up_exps", "expert 6: the values are 2 times the reference's", put(6, lambda x: 2 * x[6])),
    of("blk.1.ffn_down_exps", "expert 4: the values are all zero", put(4, lambda x: 0 * x[4])),
    of("blk.2.ffn_gate_exps", "experts 1, 2: the values are -1 times", put([1, 2], lambda x: -x[[1, 2]])),
    of("blk.1.ffn_up_exps", "expert 7: the rows are in reverse order", put(7, lambda x: x[7, ::-1])),
    Mistake(GATE, "gate and up are exchanged", swapped(GATE, UP)),
    Mistake(GATE, "gate and up of expert 3 are exchanged", of_both(GATE, UP, 3, exchanged=True)),
    Mistake(GATE, "expert 3 has up's values", of_both(GATE, UP, 3, exchanged=False)),
    Mistake(UP, "expert 2 has blk.2's values", of_both(UP, "blk.2.ffn_up_exps.weight", 2, exchanged=False)),
    # layers
    Mistake("blk.1.attn_q_a.weight", "blk.1 and blk.2 are exchanged",
            swapped("blk.1.attn_q_a.weight", "blk.2.attn_q_a.weight")),
    Mistake("blk.2.attn_q_a.weight", "blk.2 has blk.1's values",
            copied("blk.1.attn_q_a.weight", "blk.2.attn_q_a.weight")),
    Mistake("blk.1.attn_norm.weight", "attn_norm and ffn_norm are exchanged",
            swapped("blk.1.attn_norm.weight", "blk.1.ffn_norm.weight")),
    Mistake("output.weight", "output has token_embd's values", copied("token_embd.weight", "output.weight")),
    # heads
    of("blk.2.attn_k_b", "head order is shifted by 1: head 0 has head 3's values", lambda x: np.roll(x, 1, 0)),
    of("blk.2.attn_v_b", "heads 1 and 2 are exchanged", put([1, 2], lambda x: x[[2, 1]])),
    of("blk.2.attn_v_b", "head 3: the rows are in reverse order", put(3, lambda x: x[3, ::-1])),
    of("blk.1.attn_q_b", "head 2 has head 0's values", put(head_rows(2), lambda x: x[head_rows(0)])),
    of("blk.0.attn_output", "head order is shifted by 1", lambda x: np.roll(x, VALUE, axis=1)),
    of("blk.1.attn_k_b", "the matrix is transposed, under the shape", lambda x: x.transpose(0, 2, 1).reshape(x.shape)),
    # rows and columns
    of("blk.0.attn_q_b", "row order is", rope_first),
    of("blk.1.attn_kv_a_mqa", f"row order is shifted by {ROPE}", lambda x: np.concatenate([x[RANK:], x[:RANK]])),
    of("token_embd", "row order is shifted by 1", lambda x: np.roll(x, 1, axis=0)),
    of("blk.1.ffn_gate_inp", "row order is shifted by 1", lambda x: np.roll(x, 1, axis=0)),
    of("blk.1.attn_q_a", "the matrix is transposed", lambda x: np.ascontiguousarray(x.T)),
    of("blk.1.attn_q_a", "column order is shifted by 32", lambda x: np.roll(x, 32, axis=1)),
    of("blk.0.ffn_up", "row 0: the values are 3 times", put(0, lambda x: 3 * x[0])),
    # vectors
    of("blk.0.attn_norm", "the values are the reference's minus 1", lambda x: x - 1),
    of("blk.2.attn_q_a_norm", "the values are 0.5 times", lambda x: x / 2),
    of("blk.2.ffn_norm", "the values are the reference's in another order", lambda x: x[::-1]),
)  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Image]:
    directory = tmp_path_factory.mktemp("blame")
    more = [option for name in TYPES[1:] for option in ("--type", name)]
    convert(hub.BUNDLED, directory / "{type}.gguf", TYPES[0], *more)
    return {name: Image.of(directory / f"{name}.gguf") for name in TYPES}


CASES = [(mistake, "Q8_0") for mistake in MISTAKES] + [(mistake, "Q4_K_M") for mistake in MISTAKES[::4]]


@pytest.mark.parametrize(("mistake", "kind"), CASES, ids=lambda case: case if isinstance(case, str) else case.says)
def test_a_mistake_is_named(mistake: Mistake, kind: str, images: dict[str, Image], tmp_path: Path) -> None:
    image = copy.deepcopy(images[kind])
    mistake.damage(image)
    proof = prove(Request(hub.BUNDLED, image.write(tmp_path / "wrong.gguf"), "weights", threads=2))
    first = proof.findings[0]
    assert first.subject == mistake.tensor, first.sentence
    assert mistake.says in first.what, first.sentence
