"""A model computed layer by layer over all tokens of a text, with the hidden states held elsewhere.

A layer goes three times over the tokens: attention by blocks of whole sequences, then each expert once over all tokens
that chose it, then what every token gets. So every expert is read once, whatever the length of the text, and memory is
that of a block. What is added to what, and in which order, is that of the architecture's `feed`.
"""

from __future__ import annotations

import itertools
import math
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from gguf_mla.errors import InputError
from gguf_mla.forward import layers, prediction, walk
from gguf_mla.forward.architecture import architecture_of
from gguf_mla.forward.choice import Chooser
from gguf_mla.forward.place import CHUNK_VALUES, as_array
from gguf_mla.forward.tensors import shapes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from gguf_mla.forward.architecture import Architecture, State
    from gguf_mla.forward.arrays import Floats, Rows
    from gguf_mla.forward.arrays import Numbers as TokenIds
    from gguf_mla.forward.indexer import Index
    from gguf_mla.forward.layers import Pass
    from gguf_mla.forward.model import Model
    from gguf_mla.forward.place import Place

    Numbers = NDArray[np.int64]

PIECE_BYTES = 1 << 21  # of rows that are normed at a time, few, so that what is made of them stays in the caches
BLOCK_BYTES = 64 << 20  # of what is held of the tokens that are computed at a time
KEPT_BYTES = 256 << 20  # of matrices that are kept for all blocks; larger ones are read for each


class States(Protocol):
    """Rows of float32 [N, width] on the host, one for every token of a text, wherever they lie."""

    def read(self, start: int, stop: int) -> Rows:
        """Return some rows, [stop-start, width]."""

    def write(self, start: int, rows: Rows) -> None:
        """Replace the rows from `start` on."""

    def take(self, numbers: Numbers) -> Rows:
        """Return the rows of these numbers, which rise, [len(numbers), hidden]."""

    def put(self, numbers: Numbers, rows: Rows) -> None:
        """Replace the rows of these numbers, which rise."""


@dataclass(frozen=True)
class Text:
    """Sequences of tokens [B, T], of which `block` are computed at a time; row b·stride + t is of token t of b."""

    tokens: Numbers
    block: int
    stride: int

    @classmethod
    def of(cls, tokens: Numbers, model: Model) -> Text:
        """Return sequences in blocks as large as BLOCK_BYTES allows, and of one sequence at least."""
        count, context = tokens.shape
        block = max(1, BLOCK_BYTES // (4 * _widest(model)) // context)
        return cls(tokens, min(block, count), context)

    def blocks(self) -> Iterator[slice]:
        """Yield which sequences are computed together."""
        for start in range(0, len(self.tokens), self.block):
            yield slice(start, min(start + self.block, len(self.tokens)))

    def rows(self, part: slice) -> slice:
        """Return where the rows of some sequences lie."""
        return slice(part.start * self.stride, part.stop * self.stride)

    def read(self, states: States, part: slice, place: Place) -> Floats:
        """Return the states of some sequences, [B, T, width]."""
        rows = self.rows(part)
        found = place.tensor(states.read(rows.start, rows.stop))
        shape = part.stop - part.start, self.stride, found.shape[-1]
        return found.reshape(shape)[:, : self.tokens.shape[1]]

    def write(self, states: States, part: slice, hidden: Floats) -> None:
        """Replace the states of some sequences, [B, T, ...]; what lies after a sequence's last token becomes 0."""
        missing, hidden = self.stride - hidden.shape[1], hidden.flatten(2)
        if missing:
            hidden = torch.nn.functional.pad(hidden, (0, 0, 0, missing))
        states.write(self.rows(part).start, as_array(hidden.flatten(0, 1)))

    def numbers(self) -> Numbers:
        """Return the number of every token's row, int64 [B·T]."""
        starts = np.arange(len(self.tokens))[:, None] * self.stride
        numbers: Numbers = (starts + np.arange(self.tokens.shape[1])).reshape(-1)
        return numbers

    def shorter(self) -> Text:
        """Return the sequences without their first token, as a prediction layer sees them."""
        return replace(self, tokens=self.tokens[:, 1:])


def _widest(model: Model) -> int:
    """Return about how many values a token takes while it is computed."""
    dense = 3 * model.ffn if model.dense_layers or not model.routing.experts else 0
    head = min(model.vocab, CHUNK_VALUES // model.hidden)  # and as much again, for half of the tokens
    return 4 * model.hidden + max(model.attention_width, dense, 3 * model.shared * model.expert_ffn, head)


class EveryToken(Chooser):
    """The choices over no more tokens than may be chosen: all of them, which needs no memory of the layer before."""

    def take(self, indexes: Sequence[Index] | None, _top_k: int) -> Sequence[torch.Tensor]:
        """Return that every sequence attends to all tokens."""
        del indexes
        return _Always()  # type: ignore[return-value]  # None for every sequence


class _Always:
    def __getitem__(self, _sequence: int) -> None:
        return None


def check(model: Model, context: int) -> None:
    """Raise InputError for a context that the layers of a model would have to remember.

    Where layers share their choice of tokens, the choices would have to be kept for every token of a text.
    """
    indexer = model.indexer
    if indexer is not None and context > indexer.top_k and not all(indexer.own_layers):
        raise InputError(
            "the context is longer than what an indexer chooses, and layers of this model share their choice",
            expected=f"at most {indexer.top_k} tokens",
            found=context,
            remedy="Give a shorter --context",
        )


def embed(pass_: Pass, text: Text, target: States) -> None:
    """Write the state before the first layer."""
    for part in text.blocks():
        text.write(target, part, walk.embed(pass_, text.tokens[part]))


@dataclass(frozen=True)
class Layer:
    """One layer over all tokens of a text.

    target  receives the states after it; between the passes, those after attention
    spare   rows of the same size for what experts add; what is in it is lost
    tell    is called with the share of the layer's work that was done since the last call
    spent   gets the seconds of each pass: "attention" with a dense layer's MLP, "experts", "shared experts"
    """

    pass_: Pass
    number: int
    text: Text
    target: States
    spare: States
    tell: Callable[[float], object] = lambda _: None
    spent: dict[str, float] = field(default_factory=dict)

    def run(self, before: Callable[[slice], Floats], after: Callable[[Floats], Floats] = lambda x: x) -> None:
        """Compute it: `before` gives the states [B, T, width] of some sequences, `after` what is made of the last."""
        if self.pass_.model.is_dense(self.number):
            with self._timed("attention"):
                self._dense(before, after)
            return
        with self._timed("attention"):
            chosen, shares = self._choose(before)
        with self._timed("experts"):
            self._experts(chosen, shares)
        with self._timed("shared experts"):
            self._add(after)

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.spent[name] = self.spent.get(name, 0.0) + time.perf_counter() - begin

    def _dense(self, before: Callable[[slice], Floats], after: Callable[[Floats], Floats]) -> None:
        for part, state in self._attended(before, self._pass(self._computed.attends)):
            fed = self._computed.feed(self.pass_, self.number, state, self._tokens(part))
            self.text.write(self.target, part, after(fed))
            self._told(part, 1.0)

    def _choose(self, before: Callable[[slice], Floats]) -> tuple[NDArray[np.int32], Rows]:
        """Write the states after attention, and return every token's experts and their weights, [N, K]."""
        chosen, shares = [], []
        for part, state in self._attended(before, self._pass(self._computed.attends)):
            x = self._computed.experts.enter(self.pass_, self.number, state.flatten(0, 1))
            found, weights = self._computed.experts.route(self.pass_, self.number, x, self._tokens(part).flatten())
            chosen.append(as_array(found).astype(np.int32))
            shares.append(as_array(weights))
            self.text.write(self.spare, part, torch.zeros_like(x).unflatten(0, state.shape[:2]))
            self.text.write(self.target, part, state)
            self._told(part, 0.3)
        return np.concatenate(chosen), np.concatenate(shares)

    def _attended(self, before: Callable[[slice], Floats], pass_: Pass) -> Iterator[tuple[slice, Floats]]:
        """Yield some sequences and their states after attention."""
        for part in self.text.blocks():
            state = before(part).unflatten(-1, pass_.model.state_shape)
            yield part, self._computed.attend(pass_, self.number, state, self._tokens(part))

    def _add(self, after: Callable[[Floats], Floats]) -> None:
        """Add to the states what the experts and the shared experts give."""
        pass_, place = self._pass(f"ffn_{part}_shexp" for part in ("gate", "up", "down")), self.pass_.place
        for part in self.text.blocks():
            state = self.text.read(self.target, part, place).flatten(0, 1)
            shared = layers.mlp(pass_, self._at, "_shexp", self._entered(state), limit=pass_.model.limit)
            added = self.text.read(self.spare, part, place).flatten(0, 1) + shared
            shaped = state.unflatten(-1, pass_.model.state_shape)
            left = self._computed.experts.leave(self._again, self.number, shaped, added)
            self.text.write(self.target, part, after(left.unflatten(0, (part.stop - part.start, -1))))
            self._told(part, 0.1)

    @property
    def _computed(self) -> Architecture:
        return architecture_of(self.pass_.model)

    @cached_property
    def _again(self) -> Pass:
        """The pass for what has been computed, and observed, before; it keeps what that takes, which is small."""
        return replace(self.pass_, observe=None).keeping()

    def _tokens(self, part: slice) -> TokenIds:
        return self.pass_.place.ids(self.text.tokens[part])

    def _pass(self, names: Iterable[str]) -> Pass:
        """Return the pass for all blocks, which keeps these matrices of the layer where they are not too large."""
        indexer, sizes = self.pass_.model.indexer, shapes(self.pass_.model)
        every = indexer is not None and self.text.tokens.shape[1] <= indexer.top_k
        values = sum(int(np.prod(sizes.get(f"{self._at}{name}.weight", (0,)))) for name in names)
        return replace(self._keeping(values), chooser=EveryToken() if every else Chooser())

    def _keeping(self, values: int) -> Pass:
        """Return a pass that keeps matrices of so many values, where they are not too many."""
        keeps = 4 * values <= KEPT_BYTES or self.pass_.place.device.type != "cpu"
        return self.pass_.keeping() if keeps else self.pass_

    def _told(self, part: slice, share: float) -> None:
        self.tell(share * (part.stop - part.start) / len(self.text.tokens))

    @property
    def _at(self) -> str:
        return f"blk.{self.number}."

    def _entered(self, state: State) -> Floats:
        """Return what the experts and the shared experts read, as the router has before, of states [N, width]."""
        shaped = state.unflatten(-1, self.pass_.model.state_shape)
        return self._computed.experts.enter(self._again, self.number, shaped)

    def _experts(self, chosen: NDArray[np.int32], shares: Rows) -> None:
        """Add to the spare rows what experts chosen [N, K] give, weighted by shares [N, K]; each is read once."""
        place, used, numbers = self.pass_.place, chosen.shape[1], self.text.numbers()
        flat = chosen.reshape(-1)
        order = np.argsort(flat, kind="stable")  # by expert, and by token
        expert, pass_ = -1, self.pass_
        for group in self._groups(np.bincount(flat).tolist(), len(numbers)):
            places = order[group[0].first : group[-1].last]
            rows, where = np.unique(numbers[places // used], return_inverse=True)
            x, out = self._at_hand(self.target, rows, self._entered), self._at_hand(self.spare, rows)
            weights = place.tensor(shares.reshape(-1)[places])[:, None]
            for part in group:
                if part.expert != expert:
                    expert, pass_ = part.expert, self._pass_for(part)
                within = slice(part.first - group[0].first, part.last - group[0].first)
                tokens = place.ids(where[within])
                given = layers.mlp(pass_, self._at, "_exps", x[tokens], expert, self.pass_.model.limit)
                out.index_add_(0, tokens, given.mul_(weights[within]))
                self.tell(0.6 * len(tokens) / flat.size)
            self.spare.put(rows, as_array(out))

    def _at_hand(self, states: States, rows: Numbers, made: Callable[[Floats], Floats] = lambda x: x) -> Floats:
        """Return what is made of the rows of these numbers, [len(rows), hidden], piece by piece."""
        model, place = self.pass_.model, self.pass_.place
        out = torch.empty(len(rows), model.hidden, device=place.device)
        step = max(1, PIECE_BYTES // (4 * math.prod(model.state_shape)))
        for piece in (slice(start, start + step) for start in range(0, len(rows), step)):
            out[piece] = made(place.tensor(states.take(rows[piece])))
        return out

    def _pass_for(self, part: _Part) -> Pass:
        """Return the pass for an expert, which keeps its matrices if its tokens come in parts."""
        return self._keeping(3 * self.pass_.model.hidden * self.pass_.model.expert_ffn) if part.more else self.pass_

    @property
    def _most(self) -> int:
        """How many tokens an expert computes at a time."""
        return max(1, BLOCK_BYTES // (16 * (self.pass_.model.hidden + self.pass_.model.expert_ffn)))

    def _groups(self, counts: Sequence[int], tokens: int) -> Iterator[list[_Part]]:
        """Yield what is computed with the same tokens at hand: experts in turn, or a part of one with many tokens."""
        room = max(BLOCK_BYTES // (16 * self.pass_.model.hidden), self._most)
        room = room if tokens > room else sum(counts)
        group: list[_Part] = []
        for expert, (last, count) in enumerate(zip(itertools.accumulate(counts), counts, strict=True)):
            parts = -(-count // self._most)
            cuts = [last - count + count * part // parts for part in range(parts)] + [last]
            for part in itertools.starmap(partial(_Part, expert, parts > 1), itertools.pairwise(cuts)):
                if group and part.last - group[0].first > room:
                    yield group
                    group = []
                group.append(part)
        if group:
            yield group


@dataclass(frozen=True)
class _Part:
    """Tokens of one expert, by their places in the order of experts; `more` if they are not all that it has."""

    expert: int
    more: bool
    first: int
    last: int


def predicting(pass_: Pass, number: int, text: Text, source: States) -> tuple[Callable[[slice], Floats], Text]:
    """Return what a prediction layer begins with, for what it reads of a text, and the text as that layer sees it."""

    def before(part: slice) -> Floats:
        states = text.read(source, part, pass_.place).unflatten(-1, pass_.model.state_shape)
        entered: Floats = prediction.enter(pass_, number, states, text.tokens[part])
        return entered.flatten(2)

    return before, text.shorter()
