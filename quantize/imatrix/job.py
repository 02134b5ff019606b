"""A matrix, made stage by stage: the embeddings, every layer, what comes after the last, the prediction layers.

A stage reads the hidden states that the one before has left and leaves its own; its sums go to their places in the
output at once. Both are on the disk before the journal says so, and a rerun believes neither: it compares checksums and
goes on from the last stage whose states and sums are what the journal says. The states of a stage stay as they are
while the next one is computed, so a kill costs one stage.
"""

from __future__ import annotations

import hashlib
import math
import time
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from gguf_mla.container.writer import lay_out
from gguf_mla.files.guard import check_apart, check_free, partial_path
from gguf_mla.files.output import OutputFile, check_room
from gguf_mla.files.readable import here
from gguf_mla.files.stamp import Watch, stamp
from gguf_mla.forward import prediction, sweep, walk
from gguf_mla.forward.attention import FORMS, Form
from gguf_mla.forward.layers import Pass
from gguf_mla.forward.place import CPU, Place, enough_memory
from gguf_mla.importance.gguf import matrix_specs
from gguf_mla.importance.partial import About, part_specs
from gguf_mla.stream.engine import Done
from gguf_mla.stream.identity import Identity
from gguf_mla.stream.journal import Journal, finished, is_named_by, journal_path
from gguf_mla.stream.settling import settled
from gguf_mla.version import __version__
from quantize.imatrix.entries import OUTPUT, OWN_HEAD, Collector, Entry
from quantize.imatrix.head import Perplexity
from quantize.imatrix.spill import FileStates, MemoryStates

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from gguf_mla.container.writer import FileLayout, TensorSpec
    from gguf_mla.files.readable import AnyPath
    from gguf_mla.forward.arrays import Floats
    from gguf_mla.forward.tensors import Weights
    from gguf_mla.importance.exact import Sums

    Numbers = NDArray[np.int64]
    States = FileStates | MemoryStates

FORM = "expanded-keys"  # how it attends: the fewest products among the forms that can be observed
BESIDE = (".states-0", ".states-1", ".experts")  # files beside the output while it is made
Progress = Callable[[float], object]


@dataclass(frozen=True)
class Work:
    """What is computed, and what is collected.

    chunks       tokens [B, T]
    entries      by the names that the forward pass has for them
    about        what the sums are of; written as a part of a matrix with `partial`, as a matrix otherwise
    prediction   whether the layers of multi-token prediction are run, too
    perplexity   whether the text is scored
    """

    weights: Weights
    chunks: Numbers
    entries: Mapping[str, Entry]
    about: About
    partial: bool = False
    prediction: bool = False
    perplexity: bool = True

    @property
    def layers(self) -> int:
        """How many layers are run."""
        model = self.weights.model
        return model.blocks if self.prediction else model.layers

    @property
    def state_bytes(self) -> int:
        """How many bytes the states of all tokens have."""
        return 4 * self.chunks.size * math.prod(self.weights.model.state_shape)

    @property
    def widths(self) -> tuple[int, int, int]:
        """How many values a token has in each of the files beside: two of its states, one of what experts add."""
        state = math.prod(self.weights.model.state_shape)
        return state, state, self.weights.model.hidden

    @property
    def beside_bytes(self) -> int:
        """How many bytes these files have, all of them together."""
        return 4 * self.chunks.size * sum(self.widths)

    def specs(self) -> dict[str, list[TensorSpec]]:
        """Return the tensors of every entry in the output, in the order of their names there."""
        of = part_specs if self.partial else matrix_specs
        by_name = sorted(self.entries.values(), key=lambda entry: entry.name)
        return {entry.asked: of(entry.name, entry.shape, entry.counts) for entry in by_name}

    def arrays(self, sums: Sums) -> tuple[NDArray[Any], ...]:
        """Return what is stored of an entry's sums, in the order of its tensors."""
        return sums.stored() if self.partial else sums.rounded()

    def metadata(self) -> dict[str, Any]:
        """Return the output's metadata."""
        return self.about.of_part() if self.partial else self.about.of_matrix()


@dataclass(frozen=True)
class How:
    """How a run is done. The same device and the same number of threads give the same bytes; others round otherwise.

    inputs     the files that are read
    place      where the forward pass computes, and how it attends there (`form`)
    in_memory  whether the states are kept in memory; then nothing is left to go on from
    fresh      whether what an earlier run has left is thrown away
    """

    inputs: Sequence[AnyPath] = ()
    place: Place = CPU
    form: Form = FORMS[FORM]
    in_memory: bool = False
    fresh: bool = False
    overwrite: bool = False
    progress: Progress = lambda _: None


@dataclass
class Outcome:
    """What came of it.

    chunks      that were computed, all rounds together
    taken_over  stages that an earlier run had done
    perplexity  what the text was scored with
    seconds     by pass over the tokens
    """

    path: Path
    chunks: int = 0
    taken_over: int = 0
    perplexity: Perplexity = field(default_factory=Perplexity)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def estimate(self) -> tuple[float, float] | None:
        """The perplexity of all chunks and its standard error; None where an earlier run has scored some of them."""
        return self.perplexity.estimate() if len(self.perplexity.chunks) == self.chunks else None


class RunStopped(KeyboardInterrupt):
    """Ctrl-C: `done` of `total` layers are on the disk, None where nothing is left to go on from."""

    def __init__(self, done: int | None, total: int) -> None:
        super().__init__()
        self.done, self.total = done, total


def collect(work: Work, out: Path, how: How) -> Outcome:
    """Make a matrix, or a part of one; nothing has its name unless everything succeeded.

    Raises InputError for values that are not finite numbers, an unfinished run of something else and files in the way,
    MachineError for a full or failing disk and an input that has changed meanwhile, RunStopped.
    """
    sweep.check(work.weights.model, work.chunks.shape[1])
    specs = work.specs()
    layout = lay_out(work.metadata(), [spec for listed in specs.values() for spec in listed])
    tokens = 0 if how.in_memory else work.chunks.size
    beside = zip(BESIDE, work.widths, strict=True)
    sizes = {out: layout.size} | {out.with_name(out.name + suffix): 4 * tokens * width for suffix, width in beside}
    check_apart([out], [*map(partial_path, sizes), journal_path(out)], here(how.inputs))
    named = {} if how.fresh else finished(out, 2)
    check_free(out, overwrite=how.overwrite or is_named_by(named, out))
    outcome = Outcome(out, len(work.chunks))
    with ExitStack() as stack:
        watch = Watch(how.inputs)
        names = [path.name for path in sizes]
        journal = Journal(out, _identity(work, layout, how), names, 2, fresh=how.fresh or how.in_memory)
        stack.push(journal)
        journal.take_back()
        check_free(out, overwrite=how.overwrite)
        files = [
            stack.enter_context(OutputFile(path, size, known=journal.known_of(path))) for path, size in sizes.items()
        ]
        run = _Run(work, files, _placed(specs, layout), outcome, how)
        with settled(files, journal, lambda: _stopped(run, journal)):
            _prepare(files, journal, layout)
            _advance(run, journal)
            files[0].finish()
            watch.check()
            _commit(files, journal, overwrite=how.overwrite)
    return outcome


def _placed(specs: Mapping[str, Iterable[TensorSpec]], layout: FileLayout) -> dict[str, list[tuple[int, int]]]:
    """Return offset and size of every tensor of every entry."""
    offsets = iter(layout.offsets)
    return {name: [(next(offsets), spec.nbytes) for spec in listed] for name, listed in specs.items()}


def _identity(work: Work, layout: FileLayout, how: How) -> Identity:
    digest = hashlib.sha256(layout.head)
    digest.update(np.ascontiguousarray(work.chunks).tobytes())
    decides = work.chunks.shape, work.prediction, sweep.BLOCK_BYTES, work.weights.model, how.place.device.type
    digest.update(repr(decides).encode())
    return Identity(__version__, digest.hexdigest(), [stamp(path) for path in how.inputs], "")


def _prepare(files: Sequence[OutputFile], journal: Journal, layout: FileLayout) -> None:
    if not journal.nbytes:
        for file in files:
            file.clear()
    check_room(files, 0)
    journal.begin({file.final: file.inode() for file in files})
    files[0].write(np.frombuffer(layout.head, np.uint8), 0)


def _advance(run: _Run, journal: Journal) -> None:
    """Run the stages that an earlier run has not done."""
    run.done = run.outcome.taken_over = run.resumable(journal)
    run.how.progress(float(run.layers_before(run.done)))
    while run.done < len(run.stages):
        number = run.done
        begin, known = time.perf_counter(), sum(run.outcome.seconds.values())
        with enough_memory():
            run.stages[number]()
        rest = time.perf_counter() - begin - (sum(run.outcome.seconds.values()) - known)
        run.outcome.seconds["the rest"] = run.outcome.seconds.get("the rest", 0.0) + rest
        sums = run.store(number)
        if not run.how.in_memory:
            run.sync(number)
            journal.record([Done(number, (run.states[number % 2].digest(), sums), run.work.state_bytes, {})])
        run.done += 1


def _commit(files: Sequence[OutputFile], journal: Journal, *, overwrite: bool) -> None:
    out, *states = files
    out.overwrite = overwrite
    out.check()
    journal.finish({out.final: out.mark()})
    out.commit()
    for file in states:
        file.kept = False
        file.drop()
    journal.remove()


def _stopped(run: _Run, journal: Journal) -> RunStopped:
    return RunStopped(run.layers_before(run.done) if journal.nbytes else None, run.work.layers)


class _Run:
    """The stages of a run, and where they leave what they find."""

    def __init__(
        self,
        work: Work,
        files: Sequence[OutputFile],
        places: Mapping[str, list[tuple[int, int]]],
        outcome: Outcome,
        how: How,
    ) -> None:
        self.work, self.outcome, self.how, self.done = work, outcome, how, 0
        self._files, self._places = files, places
        model = work.weights.model
        in_files = [FileStates(file, width) for file, width in zip(files[1:], work.widths, strict=True)]
        first, second, spare = _memory(work) if how.in_memory else in_files
        self.states: tuple[States, States] = (first, second)
        self._spare: States = spare
        self._collector = Collector(dict(work.entries))
        self._observed, self._alone = (
            Pass(work.weights, how.form, observe=observe, place=how.place) for observe in (self._collector, None)
        )
        self._text = sweep.Text.of(work.chunks, model)
        self._told = how.progress, outcome.seconds
        layers = [partial(self._layer, number) for number in range(model.layers)]
        predictors = [partial(self._predict, number) for number in range(model.layers, work.layers)]
        self.stages: list[Callable[[], object]] = [self._embed, *layers, self._finish, *predictors]

    def layers_before(self, stage: int) -> int:
        """Return how many layers are computed by the stages before one."""
        return max(0, stage - 1) if stage <= self.work.weights.model.layers + 1 else stage - 2

    def resumable(self, journal: Journal) -> int:
        """Return the first stage that has to be run: all before are on the disk as the journal says."""
        sound = 0
        while (claim := journal.claims.of(sound)) is not None and claim[1] == self._digest(sound):
            sound += 1
        for stage in range(sound, 0, -1):
            claim = journal.claims.of(stage - 1)
            if claim is not None and claim[0] == self.states[(stage - 1) % 2].digest():
                return stage
        return 0

    def store(self, stage: int) -> int:
        """Write the sums of a stage to their places, and return their CRC-32."""
        found = 0
        for entry in self._entries(stage):
            arrays = self.work.arrays(self._collector.done(entry))
            for data, (offset, _) in zip(arrays, self._places[entry.asked], strict=True):
                stored = np.ascontiguousarray(data)
                self._files[0].write(stored, offset)
                found = zlib.crc32(stored.data, found)
        return found

    def sync(self, stage: int) -> None:
        """Wait until the sums and the states of a stage are on the disk; what experts add is of no use to a rerun."""
        self._files[0].sync()
        self._files[1 + stage % 2].sync()

    def _digest(self, stage: int) -> int:
        """Return the CRC-32 of the sums that the output has for a stage."""
        found = 0
        for entry in self._entries(stage):
            for offset, nbytes in self._places[entry.asked]:
                found = zlib.crc32(self._files[0].read(offset, nbytes).data, found)
        return found

    def _entries(self, stage: int) -> list[Entry]:
        """Return the entries whose sums are complete after a stage."""
        layers = self.work.weights.model.layers
        wanted = None if stage == layers + 1 else self.layers_before(stage + 1) - 1
        return [entry for entry in self.work.entries.values() if stage and entry.layer == wanted]

    def _embed(self) -> None:
        sweep.embed(self._alone, self._text, self.states[0])

    def _layer(self, number: int) -> None:
        source, target = self.states[number % 2], self.states[(number + 1) % 2]
        layer = sweep.Layer(self._observed, number, self._text, target, self._spare, *self._told)
        layer.run(lambda part: self._text.read(source, part, self.how.place))

    def _finish(self) -> None:
        """Norm the last states, for what reads them: the output head, and multi-token prediction."""
        work, text = self.work, self._text
        layers = work.weights.model.layers
        source, target = self.states[layers % 2], self.states[(layers + 1) % 2]
        for part in text.blocks():
            state = text.read(source, part, self.how.place).unflatten(-1, work.weights.model.state_shape)
            normed = walk.finish(self._alone, state)
            if OUTPUT in work.entries:
                self._collector(OUTPUT, 0, normed.flatten(0, 1))
            if work.perplexity:
                self.outcome.perplexity.add(self._alone, normed, text.tokens[part])
            if work.prediction:
                text.write(target, part, prediction.begin(self._alone, state))

    def _predict(self, number: int) -> None:
        source, target = self.states[number % 2 ^ 1], self.states[number % 2]
        seen = replace(self._text, tokens=self._text.tokens[:, number - self.work.weights.model.layers :])
        before, text = sweep.predicting(self._observed, number, seen, source)
        head, asked = f"blk.{number}.{OWN_HEAD}", self._collector

        def after(hidden: Floats) -> Floats:
            left: Floats = prediction.leave(self._alone, number, hidden)
            asked(head, 0, prediction.read(self._alone, number, left).flatten(0, 1))
            return left

        sweep.Layer(self._observed, number, text, target, self._spare, *self._told).run(before, after)


def _memory(work: Work) -> list[MemoryStates]:
    """Return rows for the states before and after a layer, and for what experts add."""
    return [MemoryStates(np.zeros((work.chunks.size, width), np.float32)) for width in work.widths]
