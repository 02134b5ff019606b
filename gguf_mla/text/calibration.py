"""Texts that a model is run over to see what its weights are multiplied with, cut as llama-imatrix cuts them.

A text loses one newline at its end and is read in one go, with the beginning-of-sequence token in front where the
model's tokenizer puts one there. Whole chunks of `context` tokens are taken, two at least; in each that token replaces
the first. Source: llama.cpp b11434, tools/imatrix.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gguf_mla.errors import InputError
from gguf_mla.files.input import unreadable
from gguf_mla.text.tokens import read_ids, read_text, within

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from gguf_mla.text.encoders import Encode

    Numbers = NDArray[np.int64]

STDIN = Path("-")


@dataclass(frozen=True)
class Reader:
    """How a model's tokenizer reads texts: `bos` goes before each, None where nothing does; ids are below `vocab`."""

    encode: Encode
    bos: int | None
    vocab: int

    def texts(self, paths: Sequence[Path]) -> Numbers:
        """Return the tokens of texts, one after the other; "-" is standard input, a directory all files in it."""
        parts = [self._ids(path) for path in expanded(paths)]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def ids(self, path: Path) -> Numbers:
        """Return the ids in a file, as they stand."""
        return within(read_ids(path), self.vocab, path)

    def _ids(self, path: Path) -> Numbers:
        ids = list(self.encode(_content(path).removesuffix("\n")))
        return within(np.array(ids if self.bos is None else [self.bos, *ids], np.int64), self.vocab, path)


def dataset(path: Path) -> str:
    """Return what a text is called in a matrix: no output holds a path."""
    return "stdin" if path == STDIN else path.resolve().name


def expanded(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield files; of a directory all that lie in it or below, in the order of their names, but hidden ones."""
    for path in paths:
        if path == STDIN or not path.is_dir():
            yield path
            continue
        found = sorted(file for file in path.rglob("*") if file.is_file() and not _hidden(file, path))
        if not found:
            raise InputError("there is no text in the directory", file=path)
        yield from found


def _hidden(file: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(root).parts)


def _content(path: Path) -> str:
    if path != STDIN:
        return read_text(path)
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError:
        raise InputError("standard input is not UTF-8 text") from None
    except OSError as error:
        raise unreadable(path, error) from None


@dataclass(frozen=True)
class Cut:
    """Which chunks of some tokens are taken: after the first `skipped`, at most `most` (None: all), `context` each."""

    context: int
    most: int | None = None
    skipped: int = 0

    def chunks(self, tokens: Numbers, bos: int | None) -> Numbers:
        """Return chunks [B, context]; InputError where there are less than two."""
        left = tokens[self.skipped * self.context :]
        if left.size < 2 * self.context:
            raise InputError(
                "there is too little text",
                expected=f"{2 * self.context} tokens or more, two chunks of {self.context}",
                found=f"{left.size} tokens" + (f" after {self.skipped} chunks" if self.skipped else ""),
                remedy="Give more --text, or a shorter --context",
            )
        count = min(left.size // self.context, self.most or left.size)
        cut = left[: count * self.context].reshape(count, self.context).copy()
        if bos is not None:
            cut[:, 0] = bos
        return cut
