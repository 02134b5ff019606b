"""What `gguf-mla warm` does: compile kernels and keep them, for images, installers and first runs."""

from __future__ import annotations

import click

from gguf_mla import ggtypes
from gguf_mla.cli.ahead import compile_ahead
from gguf_mla.cli.options import RunOptions
from gguf_mla.codec import kernel_cache
from gguf_mla.codec.ahead import Need, to_decode, to_encode
from gguf_mla.codec.encoding import GGML, encodings
from gguf_mla.errors import MachineError
from gguf_mla.recipes import file_type, types_in
from gguf_mla.sources.formats.shared.coded import CodedTensor


def warm(names: str | None, threads: int | None, quiet: bool) -> None:
    """Have the kernels of types on disk; InputError for an unknown type, MachineError where nothing can be kept."""
    wanted = _types(names)
    if not kernel_cache.keeps():
        places = ", ".join(str(store.directory) for store in kernel_cache.stores()) or "no directory"
        remedy = "Set NUMBA_CACHE_DIR to a directory of yours, on a disk with room"
        raise MachineError(f"compiled kernels cannot be kept ({places})", remedy=remedy)
    needs = [*CodedTensor.needs, *(need for kind in wanted for need in _of(kind))]
    compile_ahead(needs, RunOptions(threads=threads, quiet=quiet))
    if not quiet:
        click.echo(f"the kernels of {len(wanted)} types are in {_place()}")


def _place() -> str:
    return str(next(store.directory for store in kernel_cache.stores() if store.accepts()))


def _types(names: str | None) -> list[str]:
    """Return all types that can be encoded, or those named: a tensor type, or what is in files of a file type."""
    if names is None:
        return [kind.name for kind in ggtypes.types().values() if encodings(kind)]
    return list(dict.fromkeys(kind for name in names.upper().split(",") for kind in _named(name.strip())))


def _named(name: str) -> list[str]:
    if name in ggtypes.types():
        return [name]
    named = file_type(name)
    return types_in(named.rules) if named.default else []


def _of(kind: str) -> list[Need]:
    """Return everything that can be done with a type in ggml's way."""
    ways = [way for way in encodings(ggtypes.by_name(kind)) if way.search == GGML]
    return [to_decode(kind), *(to_encode(kind, weighted=way.weighted) for way in ways)]
