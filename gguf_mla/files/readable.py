"""What is read, wherever it lies: a file by ranges, a folder by the names in it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

from gguf_mla.errors import InputError
from gguf_mla.files import impostors, json_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import PurePath

    import numpy as np
    from numpy.typing import NDArray


UTF8_MARK, UTF16_MARKS = b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")  # byte-order marks, as editors write them


class Readable(Protocol):
    """A file that any number of threads read by ranges."""

    @property
    def name(self) -> str:
        """Where it lies, for people: the full path."""

    @property
    def path(self) -> PurePath:
        """The same as a path."""

    @property
    def size(self) -> int:
        """How many bytes there are."""

    @property
    def identity(self) -> str:
        """A text that is another one once the content is another."""

    def read(self, offset: int, count: int) -> NDArray[np.uint8]:
        """Return the `count` bytes at `offset`; InputError when there are fewer, MachineError when reading fails."""

    def will_read(self, offset: int, count: int) -> None:
        """Say that a range is wanted soon."""

    def was_read(self, offset: int, count: int) -> None:
        """Say that a range will not be wanted again."""


class Tape(Protocol):
    """How files far away are read: in the order that they lie in, and each range once, asked for long before."""

    def place(self, say: Callable[[], object]) -> tuple[int, int]:
        """Return the number of the file and the offset of the first range that `say` says is wanted soon."""

    def measure(self, says: Iterable[Callable[[], object]]) -> tuple[int, int]:
        """Return how many bytes and requests it takes to read what all of these say is wanted soon."""

    def begin(self) -> None:
        """Forget what is expected."""

    def hear(self, say: Callable[[], object]) -> None:
        """Expect that the ranges which `say` says are wanted soon will each be read once, in this order."""

    def heard_all(self) -> None:
        """Expect no more."""


class Elsewhere(PurePosixPath, ABC):
    """A path that leads away from this machine; it names a file or a folder, and opens it."""

    __slots__ = ()

    @property
    @abstractmethod
    def tape(self) -> Tape:
        """How the files are read that all such paths lead to."""

    @property
    @abstractmethod
    def repository(self) -> tuple[str, str]:
        """Owner and name of the repository that it belongs to."""

    @abstractmethod
    def is_dir(self) -> bool:
        """Whether there is a folder."""

    @abstractmethod
    def exists(self) -> bool:
        """Whether there is anything."""

    @abstractmethod
    def opened(self) -> Readable:
        """Open the file; InputError when there is none, MachineError when it cannot be reached."""

    @abstractmethod
    def folder(self) -> Folder:
        """Open the folder, with the same errors."""

    @abstractmethod
    def vouch(self) -> None:
        """Have `check` read the whole file, if that is what it takes to compare it."""

    @abstractmethod
    def check(self) -> None:
        """Raise an error unless what was read of the file is what it should be, as far as that can be told."""


AnyPath = Path | Elsewhere  # where an input lies


def any_path(path: PurePath | str) -> AnyPath:
    """Return a path as one that can be opened: what leads elsewhere as it is, anything else on this machine."""
    return path if isinstance(path, Elsewhere) else Path(path)


def here(paths: Iterable[PurePath | None]) -> list[Path]:
    """Return those paths that lead to files of this machine."""
    return [path for path in paths if isinstance(path, Path)]


class Folder(ABC):
    """Files by name; `path` is where they lie, as errors name it, and its last part is the folder's own name."""

    path: PurePath

    @abstractmethod
    def names(self, under: str = "") -> list[str]:
        """Return the names of the files in the folder, or "under/NAME" for those in a folder of it, sorted."""

    @abstractmethod
    def open(self, name: str) -> Readable:
        """Return a file to read; InputError when it is missing or cannot be read."""

    def data(self, name: str, at_most: int = json_text.MAX_BYTES) -> bytes:
        """Return what a small file holds; InputError for one of more than `at_most` bytes."""
        file = self.open(name)
        if file.size > at_most:
            expected, found = f"at most {at_most} bytes", f"{file.size} bytes"
            raise InputError("is larger than that of any model", file=self.path / name, expected=expected, found=found)
        return file.read(0, file.size).tobytes()

    def text(self, name: str, at_most: int = json_text.MAX_BYTES) -> str:
        """Return what a small file of UTF-8 text holds; all line ends come as in memory, one character."""
        try:
            text = self.data(name, at_most).removeprefix(UTF8_MARK).decode("utf-8")
        except UnicodeDecodeError as error:
            what = f"is not UTF-8 text ({error})"
            raise InputError(what, file=self.path / name, remedy="Save it as UTF-8, or download it again") from None
        return text.replace("\r\n", "\n").replace("\r", "\n")

    def json(self, name: str, at_most: int = json_text.MAX_BYTES) -> dict[str, Any]:
        """Return the JSON object that a file holds; InputError when it is missing, damaged, too long or no object."""
        try:
            content = json_text.parse(self._json_text(name, at_most))
        except ValueError as error:
            what = f"is not valid JSON ({error})"
            raise InputError(what, file=self.path / name, remedy="Correct it, or download it again") from None
        if not isinstance(content, dict):
            found = type(content).__name__
            raise InputError("is not a JSON object", file=self.path / name, expected="an object", found=found)
        return content

    def _json_text(self, name: str, at_most: int) -> bytes:
        """Return a JSON file's text without a byte-order mark; InputError where something else came in its place."""
        data = self.data(name, at_most).removeprefix(UTF8_MARK)
        impostors.refuse(data[: impostors.LOOKED_AT], self.path / name)
        if data.startswith(UTF16_MARKS):
            what = "is not valid JSON: it is UTF-16 text, as some editors and shells write it"
            raise InputError(what, file=self.path / name, remedy="Save it as UTF-8")
        return data
