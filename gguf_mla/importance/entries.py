"""What an importance file holds: where the sums of each tensor lie, and over how many tokens they were taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gguf_mla.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from gguf_mla.files.readable import Readable

    Entry = tuple[NDArray[np.float32], ...]

DEFAULT_CHUNK_SIZE = 512  # tokens; llama-imatrix's own where no file says
MAX_NAME_BYTES = 1024
SUMS, COUNTS, PLAIN = ".in_sum2", ".counts", ".in_sum"  # in the order in which llama-imatrix stores them


@dataclass(frozen=True, slots=True)
class StoredSums:
    """Where the sums of one tensor lie in one file, and over how many tokens (or calls) each row was taken.

    `counts` is float64 [n] of whole numbers, `unit` what both sums and counts are multiplied by before merging. `plain`
    is where the sums of the values themselves lie, not of their squares; None where the file has none.
    """

    file: Readable
    name: str
    offset: int
    length: int
    counts: NDArray[np.float64]
    unit: int = 1
    plain: int | None = None

    def read(self) -> NDArray[np.float32]:
        """Return the sums as float32 [length]; InputError for one that is not a finite number of at least 0."""
        values = self.file.read(self.offset, 4 * self.length).view(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # found by the check
            values *= np.float32(self.unit)
        check_values(values, self.file.name, self.name, "importance value")
        return values

    def read_plain(self) -> NDArray[np.float32] | None:
        """Return the sums of the values themselves, float32 [length]; InputError for one that is not finite."""
        if self.plain is None:
            return None
        values = self.file.read(self.plain, 4 * self.length).view(np.float32)
        check_values(np.abs(values), self.file.name, self.name, "sum of values")
        return values


@dataclass(frozen=True)
class Made:
    """An entry that is made when it is asked for: a matrix of a large model is larger than what fits in memory.

    shape   of the sums
    counts  the tokens added, one for each row or one for all
    arrays  how many there are: 2, or 3 with sums of the values themselves
    make    gives them: sums of squares, counts, sums of values
    """

    shape: tuple[int, ...]
    counts: NDArray[Any]
    arrays: int
    make: Callable[[], Entry]

    @classmethod
    def of(cls, make: Callable[[], Entry]) -> Made:
        """Return an entry of which nothing is known before it is made."""
        sums, counts, *plain = make()
        return cls(sums.shape, counts, 2 + len(plain), make)


@dataclass(frozen=True)
class Contents:
    """What one file holds; `chunk_size` is None for a `.dat` file, which counts calls instead of tokens.

    `predictors` is how many of the model's last layers are of multi-token prediction, where the file says so.
    """

    path: Path
    datasets: tuple[str, ...]
    chunk_count: int
    chunk_size: int | None
    entries: Mapping[str, StoredSums]
    predictors: int = 0


def check_values(values: NDArray[np.float32], path: Path | str, name: str, what: str) -> None:
    """Raise InputError unless all of a tensor's values are finite and not negative; `what` says what they are."""
    sound = (values >= 0) & (values < np.inf)
    if not sound.all():
        position = int(np.argmin(sound))
        raise InputError(
            f"holds an invalid {what}",
            file=path,
            tensor=name,
            expected="finite numbers of at least 0",
            found=f"{values[position]} at position {position}",
            remedy="Make the matrix anew, or exclude this tensor from it",
        )
