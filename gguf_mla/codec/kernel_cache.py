"""Compiled kernels, kept on disk between runs: the cache saves a compilation and never costs a run.

The one door to numba's compiler for the CPU. What numba's own cache does is done here, because that trusts a file's
content, fails where it can neither read nor write, and takes a kernel to depend on its own file only.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import pickle
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import llvmlite
import numba
from numba.core import caching, config
from numba.core.codegen import get_host_cpu_features
from numba.core.runtime.nrt import rtsys
from numba.core.serialize import dumps
from numba.misc.appdirs import AppDirs

from gguf_mla import lanes
from gguf_mla.codec import compiling
from gguf_mla.codec.kernel_store import Store
from gguf_mla.errors import MachineError
from gguf_mla.lanes.binding import FORMULA_PACKAGES
from gguf_mla.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PACKAGE = Path(__file__).parent.parent
_complaints: list[str] = []
if config.CPU_FEATURES is None:
    # AMD's SSE4a has no form for AVX's registers: EXTRQ, which LLVM puts among AVX instructions, takes 100 ns there.
    config.CPU_FEATURES = get_host_cpu_features().replace("+sse4a", "-sse4a")
COMPILERS = f"{numba.__version__} {llvmlite.__version__} {sys.implementation.cache_tag}"


def compiler(**options: Any) -> Callable[[Any], Any]:
    """Return `numba.njit` with options; MachineError where numba is told not to compile."""
    if config.DISABLE_JIT:
        raise MachineError(
            "the kernels must be compiled, and NUMBA_DISABLE_JIT forbids it", remedy="Unset NUMBA_DISABLE_JIT"
        )
    made: Callable[[Any], Any] = numba.njit(**options)
    return made


def kernel(**options: Any) -> Callable[[Any], Any]:
    """Return a decorator that compiles a function, as `numba.njit` does, and keeps it on disk."""
    return lambda function: keep_on_disk(compiler(**options)(function))


def keep_on_disk(dispatcher: Any, cache: Any = None) -> Any:
    """Make a numba dispatcher load and save its machine code; the file is named after the function's `__qualname__`."""
    dispatcher._cache = (cache or KernelCache)(dispatcher.py_func)  # noqa: SLF001  # numba offers `cache=True` or nothing
    return dispatcher


class _CompileResults(caching.CompileResultCacheImpl):  # type: ignore[misc]
    """How a kernel of the CPU becomes an object that can be pickled, and comes back."""

    def __init__(self) -> None:
        """Do without what numba would set up here: a place on disk."""


class KernelCache(caching.NullCache):  # type: ignore[misc]
    """What a dispatcher asks for machine code before it compiles, and gives it to afterwards.

    purpose  what to `compiling.tell` when there is none; None: nothing
    """

    results: Any = _CompileResults()

    def __init__(self, function: Any, purpose: str | None = None) -> None:
        self._purpose = purpose
        self._label = re.sub(r"[^\w.-]", "_", f"{function.__module__}.{function.__qualname__}")
        self._code = hashlib.sha256(function.__code__.co_code).hexdigest()
        self._source = Path(inspect.getfile(function))

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return a kernel that was kept; None if it is to be compiled."""
        rtsys.initialize(target_context)  # all that kernels call; what only compiling needs takes 0.3 s to import
        name, key = self._names(sig, target_context.codegen())
        for store in stores():
            payload = store.read(name, key)
            if payload is not None:
                return self._rebuilt(payload, target_context)
        if self._purpose:
            compiling.tell(self._purpose)
        return None

    def _rebuilt(self, payload: bytes, target_context: Any) -> Any:
        try:
            found = self.results.rebuild(target_context, pickle.loads(payload))  # noqa: S301 - checked by the store
        except Exception:  # whatever it is, compiling does without
            return None
        _log("data loaded", self._label)
        return found

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a compiled kernel where possible; where it is not, say so once."""
        name, key = self._names(sig, data.codegen)
        failures = {}
        for store in stores():
            try:
                store.write(name, key, dumps(self.results.reduce(data)))
            except OSError as error:
                failures[store.directory] = error
            else:
                _log("data saved", self._label)
                return
        _complain("; ".join(f"{place}: {error.strerror or error}" for place, error in failures.items()))

    def _names(self, sig: Any, codegen: Any) -> tuple[str, bytes]:
        """Return the file's name, and all that its content depends on: a changed source takes the place of the old."""
        place = f"{sig} {codegen.magic_tuple()} {COMPILERS}"
        name = f"{self._label}-{hashlib.sha256(place.encode()).hexdigest()[:16]}"
        return name, f"{place} {self._label} {self._code} {source_stamp()} {_content(self._source)}".encode()


def _log(verb: str, label: str) -> None:
    if config.DEBUG_CACHE:
        sys.stdout.write(f"[cache] {verb}: {label}\n")


def _complain(why: str) -> None:
    """Say once in a process that kernels are not kept, and what helps."""
    if sys.stderr and not _complaints:
        sys.stderr.write(
            f"warning: compiled kernels cannot be kept, every run compiles them again ({why or 'no directory'}). "
            "Set NUMBA_CACHE_DIR to a directory of yours, on a disk with room\n"
        )
    _complaints.append(why)


@functools.cache
def stores() -> tuple[Store, ...]:
    """Return where kernels may lie, the best place first: NUMBA_CACHE_DIR alone, if set."""
    if config.CACHE_DIR:
        bases = [Path(config.CACHE_DIR).absolute()]
    else:
        bases = [PACKAGE / "__pycache__", Path(AppDirs(appname="numba", appauthor=False).user_cache_dir)]
    # Another installation has other kernels of the same names. A home that nobody knows is "~": not a place.
    installation = hashlib.sha256(str(PACKAGE).encode()).hexdigest()[:16]
    return tuple(Store(base / f"gguf_mla-{installation}") for base in bases if base.is_absolute())


def keeps() -> bool:
    """Tell whether what is compiled here can be kept."""
    return any(store.accepts() for store in stores())


def sources(package: Path = PACKAGE) -> Iterator[Path]:
    """Return every file that kernels are compiled from: formulas, their lanes, and this room, which binds them.

    Whole rooms, with all folders in them, so that a new folder is never forgotten.
    """
    rooms = {name.split(".")[1] for name in (*FORMULA_PACKAGES, lanes.__name__, __name__)}
    for room in sorted(rooms):
        yield from sorted((package / room).rglob("*.py"))


def stamp(package: Path) -> str:
    """Return a stamp that changes when the content of any file changes that kernels are compiled from."""
    digest = hashlib.sha256(__version__.encode())
    for path in sources(package):
        content = path.read_bytes()
        digest.update(f"\n{path.relative_to(package)} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


@functools.cache
def source_stamp() -> str:
    """Return the `stamp` of the files that this process runs, taken once."""
    return stamp(PACKAGE)


@functools.cache
def _content(path: Path) -> str:
    """Return the digest of a kernel's own file, which may lie in another room."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
