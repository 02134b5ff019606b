"""What a command that makes a matrix was asked for, and what it opens for that."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gguf_mla import units
from gguf_mla.cli.options import RAY
from gguf_mla.errors import InputError
from gguf_mla.files import platform
from gguf_mla.forward.on_device import form_on, place_on
from gguf_mla.forward.opening import files_of, open_weights
from gguf_mla.importance.partial import About
from gguf_mla.text.calibration import STDIN, Cut, dataset, expanded
from gguf_mla.version import __version__
from quantize.imatrix.entries import entries
from quantize.imatrix.job import FORM, How, Work
from quantize.imatrix.model import name_of, reader_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from gguf_mla.cli.options import ReadingOptions
    from gguf_mla.files.readable import AnyPath
    from gguf_mla.forward.tensors import CheckpointWeights, GgufWeights
    from quantize.imatrix.command import MatrixOptions

    Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Wanted:
    """What of a model is run and collected."""

    output: bool
    prediction: bool
    perplexity: bool


@dataclass(frozen=True)
class Asked:
    """A command line that makes a matrix."""

    model: AnyPath
    out: Path | None
    options: MatrixOptions
    reading: ReadingOptions

    @property
    def path(self) -> Path:
        """Where the matrix goes."""
        return self.out or Path(f"{name_of(self.model)}.imatrix.{self.options.form}")

    @property
    def names(self) -> list[str]:
        """What the texts are called in it."""
        texts = self.options.texts or (self.options.tokens,)
        return [dataset(path) for path in texts if path is not None]

    @property
    def choice(self) -> Wanted:
        """What of the model is run and collected."""
        return Wanted(self.options.process_output, self.options.mtp, not self.options.no_ppl)

    def check(self) -> None:
        """Raise InputError for options that exclude each other."""
        options = self.options
        if (options.seen is None) != (not options.more_text):
            raise InputError("--min-tokens-per-expert and --more-text go together", remedy="Give both, or neither")
        if options.engine == RAY and options.seen is not None:
            raise InputError("--engine ray cannot go on in rounds", remedy="Leave out --min-tokens-per-expert")
        if options.engine == RAY and STDIN in options.texts:
            raise InputError("--engine ray has the text read on every machine, and standard input is on one alone")
        if options.engine != RAY and options.split_work and (options.seen or options.form != "gguf"):
            raise InputError(
                "--split-work makes a part of a matrix in GGUF form, and goes with neither rounds nor .dat"
            )


class Opened:
    """A model and the text that it is run over, as they were asked for.

    chunks  of tokens [B, context]
    reader  of more text
    inputs  the files that are read
    """

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        options = asked.options
        platform.return_large_blocks()
        self._place = place_on(options.device, options.threads or platform.cores())
        self._form = form_on(options.device, FORM)
        asked.check()
        self.weights = open_weights(asked.model, asked.reading.choices)
        if options.mtp and not self.weights.model.predictors:
            what = "--mtp is for a model with multi-token prediction"
            raise InputError(what, file=asked.model, found="no such layer")
        self.reader = reader_of(self.weights, special=options.parse_special)
        self.chunks = self._tokens()
        self.inputs = [*files_of(self.weights), *self._texts()]

    def _tokens(self) -> Numbers:
        asked = self.asked.options
        if bool(asked.texts) == (asked.tokens is not None):
            raise InputError("the model needs a text to be run over", remedy="Give either --text or --tokens")
        found = self.reader.texts(asked.texts) if asked.tokens is None else self.reader.ids(asked.tokens)
        return Cut(asked.context, asked.chunks, asked.from_chunk).chunks(found, self.reader.bos)

    def _texts(self) -> Iterator[Path]:
        for path in expanded((*self.asked.options.texts, *self.asked.options.more_text)):
            if path != STDIN and path.is_file():
                yield path
        if self.asked.options.tokens and self.asked.options.tokens.is_file():
            yield self.asked.options.tokens

    def work(self, split_work: str | None = None) -> Work:
        """Return the work on all chunks, or on part I/N of them."""
        return work_of(self.weights, self.chunks, self.asked.choice, self.asked.names, split_work)

    def more(self) -> Iterator[Work]:
        """Yield the work on more text, in rounds of as many chunks."""
        tokens = (
            self.reader.texts(self.asked.options.more_text) if self.asked.options.more_text else np.zeros(0, np.int64)
        )
        names = [dataset(text) for text in self.asked.options.more_text]
        for chunks in cut_rest(tokens, self.chunks.shape, self.reader.bos):
            yield work_of(self.weights, chunks, self.asked.choice, names)

    def how(self, work: Work) -> How:
        """Return how some work is done."""
        options = self.asked.options
        in_memory = options.memory is not None and work.beside_bytes <= units.parse_size(options.memory)
        return How(self.inputs, self._place, self._form, in_memory, options.no_resume, options.overwrite)


def cut_rest(tokens: Numbers, shape: tuple[int, ...], bos: int | None) -> list[Numbers]:
    """Return rounds of at most `shape` chunks of more tokens; what is left of the last chunk is dropped."""
    count, context = shape
    if tokens.size < 2 * context:
        return []
    chunks = Cut(context).chunks(tokens, bos)
    return [chunks[start : start + count] for start in range(0, len(chunks), count)]


def work_of(
    weights: CheckpointWeights | GgufWeights,
    chunks: Numbers,
    wanted: Wanted,
    names: Sequence[str],
    split_work: str | None = None,
) -> Work:
    """Return the work on all chunks [B, context], or on part I/N of them."""
    found = entries(weights, output=wanted.output, prediction=wanted.prediction)
    start, stop = _share(split_work, len(chunks))
    digest = hashlib.sha256(np.ascontiguousarray(chunks).tobytes())
    digest.update(repr((__version__, chunks.shape, weights.model, sorted(found))).encode())
    predictors = weights.model.predictors if wanted.prediction else 0
    about = About(digest.hexdigest(), len(chunks), ((start, stop),), tuple(names), chunks.shape[1], predictors)
    return Work(weights, chunks[start:stop], found, about, split_work is not None, wanted.prediction, wanted.perplexity)


def _share(split_work: str | None, count: int) -> tuple[int, int]:
    """Return the first and the one after the last chunk of part I of N."""
    if split_work is None:
        return 0, count
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", split_work)
    part, parts = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= part <= parts or parts > count:
        expected = f"I/N with I from 1 to N, and N at most the {count} chunks"
        raise InputError("--split-work cannot be done", expected=expected, found=split_work)
    return (part - 1) * count // parts, part * count // parts
