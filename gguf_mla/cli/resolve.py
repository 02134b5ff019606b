"""What the options of a command come to: importance, settings of types, files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gguf_mla import units
from gguf_mla.cli import handover
from gguf_mla.cli.ahead import compile_ahead
from gguf_mla.cli.progress import progress
from gguf_mla.container import splits
from gguf_mla.errors import InputError
from gguf_mla.importance.matrix import ONES, read_imatrix
from gguf_mla.importance.names import STAND_INS
from gguf_mla.plan.measure import errors
from gguf_mla.plan.outputs import parts, single
from gguf_mla.recipes import Overrides, parse_tensor_type, read_tensor_types
from gguf_mla.recipes.names import encodable
from gguf_mla.stream import needs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from gguf_mla.cli.options import RunOptions, TypeOptions
    from gguf_mla.files.readable import AnyPath
    from gguf_mla.importance.matrix import Imatrix
    from gguf_mla.plan.budgeted import Measure
    from gguf_mla.plan.jobs import Plan, Untyped
    from gguf_mla.plan.outputs import Output
    from gguf_mla.sources.tensor import SourceTensor


def overrides(types: TypeOptions) -> Overrides:
    """Return the settings that change what a recipe says; InputError for one that cannot be read."""
    in_file = read_tensor_types(types.tensor_type_file) if types.tensor_type_file else ()
    named, recipe = _types_from(types.types_from) if types.types_from else ({}, ())
    return Overrides(
        pure=types.pure,
        tensor_types=(*map(parse_tensor_type, types.tensor_types), *in_file, *recipe),
        named_types=named,
        output_tensor_type=types.output_tensor_type,
        token_embedding_type=types.token_embedding_type,
        leave_output_tensor=types.leave_output_tensor,
        compat=types.compat is not None,
        no_fallback=types.no_fallback,
    )


def _types_from(place: AnyPath) -> tuple[dict[str, str], tuple[tuple[str, str], ...]]:
    """Return the types that another GGUF file has, by tensor, or those that a .recipe file has, by expression."""
    if isinstance(place, Path) and place.suffix == ".recipe":
        return {}, read_tensor_types(place)
    tensors = splits.open_gguf_parts(place).tensors.values()
    return {tensor.name: encodable(tensor.type) for tensor in tensors}, ()


def importance(types: TypeOptions) -> Imatrix | None:
    """Return the importance files as one, None without any."""
    if not types.imatrix_files:
        return None
    if types.compat and types.unseen != ONES:
        raise InputError(
            "--compat llama.cpp takes all 1 for experts that no token reached", remedy="Leave out --unseen"
        )
    stand_ins = {} if types.compat else STAND_INS
    literal = types.compat is not None
    return read_imatrix(
        types.imatrix_files, include=types.include, exclude=types.exclude, stand_ins=stand_ins, literal=literal,
        unseen=types.unseen,
    )  # fmt: skip


def measure(sources: Mapping[str, SourceTensor], imatrix: Imatrix | None, options: RunOptions) -> Measure:
    """Return what tells a budget the errors of types, with a progress bar; it costs nothing until it is called."""

    def measured(tensors: Sequence[Untyped], types: Sequence[Sequence[str]]) -> Iterator[Mapping[str, float]]:
        compile_ahead(needs.of_measuring(tensors, types, sources, weighted=imatrix is not None), options)
        found = errors(tensors, types, sources, imatrix, options.threads)
        with progress("measuring", len(tensors), "tensors", quiet=options.quiet) as bar:
            for measured_errors in found:
                yield measured_errors
                bar.update(1)

    return handover.measured(measured)


def files(plan: Plan, path: Path, options: RunOptions, groups: Sequence[slice] | None = None) -> Output:
    """Return the files a plan becomes: one, or the parts that `groups` or the split options ask for."""
    if groups is not None:
        return parts(plan, path, groups)
    wanted = _groups(plan, options)
    if options.no_tensor_first_split:
        if wanted is None:
            remedy = "Give --split-max-size or --split-max-tensors, too"
            raise InputError("--no-tensor-first-split is about a model in several files", remedy=remedy)
        wanted = [slice(0, 0), *wanted]
    return single(plan, path) if wanted is None else parts(plan, path, wanted)


def _groups(plan: Plan, options: RunOptions) -> list[slice] | None:
    """Return which tensors go into which part, None where the options ask for one file."""
    specs = [job.spec for job in plan.tensors]
    if options.split_max_size and options.split_max_tensors:
        raise InputError("--split-max-size and --split-max-tensors exclude each other")
    if options.split_max_size:
        return splits.groups_by_size(specs, units.parse_size(options.split_max_size))
    return splits.groups_by_count(specs, options.split_max_tensors) if options.split_max_tensors else None
