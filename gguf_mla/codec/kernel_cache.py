"""Compiled kernels on disk: numba's cache, told that a kernel depends on every formula, not only on its own file."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numba.core import caching

from gguf_mla import lanes
from gguf_mla.lanes.binding import FORMULA_PACKAGES
from gguf_mla.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(__file__).parent.parent


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


class _Stamped:
    """Mixed into numba's locators, which would look at one file only."""

    def get_source_stamp(self) -> str:
        return source_stamp()


class _UserProvided(_Stamped, caching.UserProvidedCacheLocator):  # type: ignore[misc]
    """NUMBA_CACHE_DIR, if set."""


class _InTree(_Stamped, caching.InTreeCacheLocator):  # type: ignore[misc]
    """__pycache__ beside the formulas, if writable."""


class _UserWide(_Stamped, caching.UserWideCacheLocator):  # type: ignore[misc]
    """The user's cache directory."""


LOCATORS = (_UserProvided, _InTree, _UserWide)


class _KernelCacheImpl(caching.CompileResultCacheImpl):  # type: ignore[misc]
    _locator_classes = LOCATORS


class _KernelCache(caching.FunctionCache):  # type: ignore[misc]
    _impl_class = _KernelCacheImpl


def keep_on_disk(dispatcher: Any, cache: Any = _KernelCache) -> Any:
    """Make a numba dispatcher load and save its machine code; the file is named after the function's `__qualname__`."""
    dispatcher._cache = cache(dispatcher.py_func)  # noqa: SLF001  # numba offers `cache=True` or nothing
    return dispatcher
