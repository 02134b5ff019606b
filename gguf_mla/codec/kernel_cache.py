"""Compiled kernels on disk: numba's cache, told that a kernel depends on every text, not only on its own file."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

from numba.core import caching

PACKAGE = Path(__file__).parent.parent


@functools.cache
def source_stamp() -> str:
    """Return changes when any file a kernel may have been compiled from changes."""
    digest = hashlib.sha256()
    for folder in ("codec", "lanes", "ggtypes", "ggtypes/shared"):
        for path in sorted((PACKAGE / folder).glob("*.py")):
            state = path.stat()
            digest.update(f"{path.name} {state.st_size} {state.st_mtime_ns}\n".encode())
    return digest.hexdigest()


class _Stamped:
    """Mixed into numba's locators, which would look at one file only."""

    def get_source_stamp(self) -> str:
        return source_stamp()


class _UserProvided(_Stamped, caching.UserProvidedCacheLocator):  # type: ignore[misc]
    """NUMBA_CACHE_DIR, if set."""


class _InTree(_Stamped, caching.InTreeCacheLocator):  # type: ignore[misc]
    """__pycache__ beside the texts, if writable."""


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
