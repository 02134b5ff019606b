"""The plan of a conversion: a checkpoint's tensors under its family's rules, with everything an engine must be told."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from convert.general import count_parameters, general_metadata
from convert.stated import Stated
from convert.tokenizer.metadata import tokenizer_metadata
from gguf_mla import ggtypes
from gguf_mla.container.values import QUANTIZATION_VERSION, Value, u32
from gguf_mla.families import family_of, prediction, vocabulary
from gguf_mla.families.base import outputs
from gguf_mla.plan.assign import assign
from gguf_mla.plan.jobs import Plan
from gguf_mla.plan.override_kv import override
from gguf_mla.plan.scales import leaves_out, with_scales
from gguf_mla.recipes import FILE_TYPES, Choice, FileType, Overrides, target
from gguf_mla.recipes.file_types import PLAIN
from gguf_mla.sources.config import Config
from gguf_mla.sources.tokenizer_files import read_tokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gguf_mla.families.base import Family, Layers
    from gguf_mla.importance.matrix import Imatrix
    from gguf_mla.plan.budgeted import Measure
    from gguf_mla.plan.jobs import TensorJob, Untyped
    from gguf_mla.recipes import Budget
    from gguf_mla.sources.checkpoint import Checkpoint

SCALED = "NVFP4"  # the type whose blocks leave a scale out
# Written straight from the checkpoint, as llama.cpp's converter does. Everything else is made from a BF16 file there,
# whose rounding is part of the result, so we round the same way on the fly.
DIRECT = ("F32", "F16", "BF16", "Q8_0")
MIXED = FILE_TYPES["MXFP4_MOE"]  # what llama.cpp's converter calls a file whose experts stay as they are


@dataclass(frozen=True)
class Described:
    """A model as a GGUF file without types: its metadata, its tensors, what is dropped and why, and warnings."""

    metadata: Mapping[str, Value]
    tensors: tuple[Untyped, ...]
    dropped: Mapping[str, str]
    warnings: tuple[str, ...]


def plan_conversion(
    checkpoint: Checkpoint,
    type_names: Sequence[str] = ("auto",),
    pre: str | None = None,
    overrides: Overrides | None = None,
    imatrix: Imatrix | None = None,
    measure: Measure | None = None,
    *,
    stated: Stated | None = None,
    light: bool = False,
    mtp: str | None = None,
    pad_vocabulary: bool = False,
    vocabulary_only: bool = False,
) -> list[tuple[Plan, FileType]]:
    """Return the whole plan of each file type; `pre` overrides the recognised pre-tokenizer.

    `measure` is what a type name that is a size ("3.5bpw", "200G") needs. `light` writes the family's light form; `mtp`
    says what becomes of multi-token prediction: "keep", "drop" or "only", None what is usual for the family;
    `pad_vocabulary` takes rows of the embeddings beyond the vocabulary for tokens that are never used. `stated` is what
    the user says of the model; `vocabulary_only` leaves out all tensors.

    Raises InputError for a checkpoint that does not match its configuration, or that GGUF cannot express.
    """
    config, family, layers = layers_of(checkpoint, light=light, mtp=mtp)
    if pad_vocabulary:
        config = vocabulary.padded(config, checkpoint, layers)
    vocabulary.check(config, checkpoint)
    wishes = [_wish(name, checkpoint) for name in type_names]
    stated, overrides = stated or Stated(), overrides or Overrides()
    described = describe(checkpoint, family, config, layers, pre, stated.general)
    if vocabulary_only:
        described = replace(described, tensors=(), dropped={})
    plans = [plan_for(described, wish, overrides, imatrix, measure) for wish in wishes]
    fixed = family.fixed if overrides.compat else {}
    return [(_settled(_scaled(_fixed(plan, got, fixed), checkpoint), stated), got) for plan, got in plans]


def layers_of(checkpoint: Checkpoint, *, light: bool, mtp: str | None) -> tuple[Config, Family, Layers]:
    """Return what a checkpoint is, and the layers of its files; `light` and `mtp` as in `plan_conversion`."""
    config = Config(checkpoint.config, checkpoint.folder.path / "config.json")
    family = _light(family_of(config), config) if light else family_of(config)
    config = config.with_defaults(family.unsaid)
    return config, family, prediction.chosen(family, config, checkpoint.names, mtp)


def _fixed(plan: Plan, got: FileType, fixed: Mapping[str, str]) -> Plan:
    """Return the plan with the types that llama.cpp's converter gives to some matrices, whatever is asked."""
    if not fixed or got.default not in DIRECT:
        return plan
    tensors = tuple(_fixed_job(job, fixed) for job in plan.tensors)
    kept = any(job.type == MIXED.default for job in tensors)
    number = MIXED.id if kept else got.id
    return replace(plan, tensors=tensors, metadata={**plan.metadata, "general.file_type": u32(number)})


def _fixed_job(job: TensorJob, fixed: Mapping[str, str]) -> TensorJob:
    if len(job.shape) < 2:
        return job
    stored = job.stored.partition(" ")[0]
    kind = next((kind for what, kind in fixed.items() if what == stored or job.name.endswith(what)), None)
    return job if kind is None else replace(job, type=kind, reason="as llama.cpp's converter has it")


def _settled(plan: Plan, stated: Stated) -> Plan:
    return replace(plan, metadata=override(plan.metadata, stated.settings))


def describe(
    checkpoint: Checkpoint,
    family: Family,
    config: Config,
    layers: Layers,
    pre: str | None,
    stated: Mapping[str, Any] | None = None,
) -> Described:
    """Return what every file of a checkpoint with these layers holds; InputError as `plan_conversion`.

    `stated` are `general.*` values that count instead of those found.
    """
    architecture = family.metadata(config, layers)
    tensors, dropped = outputs(family, config, checkpoint, layers)
    files = read_tokenizer(checkpoint.folder)
    tokens, token_warnings = tokenizer_metadata(files, config.positive("vocab_size"), pre, family)
    parameters = count_parameters((tensor.name, tensor.shape) for tensor in tensors)
    general, general_warnings = general_metadata(checkpoint.folder, family.architecture, parameters, stated)
    metadata: dict[str, Value] = {
        **general,
        **architecture,
        "general.file_type": u32(0),  # keeps its place; each plan has its own
        "general.quantization_version": u32(QUANTIZATION_VERSION),
        **tokens,
    }
    known = (*family.warnings(config), *prediction.warnings(config, layers))
    warnings = (*checkpoint.notes, *known, *general_warnings, *token_warnings)
    return Described(metadata, tuple(tensors), {**checkpoint.dropped, **dropped}, warnings)


def plan_for(
    described: Described,
    wish: FileType | Budget,
    overrides: Overrides,
    imatrix: Imatrix | None = None,
    measure: Measure | None = None,
) -> tuple[Plan, FileType]:
    """Return the plan of one file, and the file type it goes by."""
    via = None if isinstance(wish, FileType) and wish.default in DIRECT else "BF16"
    kept = _kept(described.tensors, wish, overrides)
    got, jobs, found, substituted = assign(
        described.tensors, wish, described.metadata, overrides, imatrix=imatrix, via=via, measure=measure, chosen=kept
    )
    importance = imatrix.metadata() if imatrix and not got.plain else {}
    metadata = {**described.metadata, "general.file_type": u32(got.id), **importance}
    return Plan(metadata, jobs, described.dropped, (*described.warnings, *found), substituted), got


def _wish(name: str, checkpoint: Checkpoint) -> FileType | Budget:
    if name == "auto":
        return own_type(checkpoint)
    if name.upper() == SCALED and any(source.raw_type == SCALED for source in checkpoint.tensors.values()):
        return _keeping(SCALED, FILE_TYPES["BF16"])
    return target(name)


def _scaled(plan: Plan, checkpoint: Checkpoint) -> Plan:
    """Return the plan with the scales that its blocks leave out, and a warning on who reads them."""
    if not any(hasattr(source, "factor") for source in checkpoint.tensors.values()):
        return plan
    tensors = tuple(with_scales(plan.tensors, checkpoint.tensors))
    if len(tensors) == len(plan.tensors):
        lost = sum(source.stored == SCALED and leaves_out(source) for source in checkpoint.tensors.values())
        said = f"{lost} weights in {SCALED} are decoded: ggml's blocks have no place for their tensor's scale."
        return replace(plan, warnings=(*plan.warnings, said)) if lost else plan
    said = (
        f"{len(tensors) - len(plan.tensors)} tensors NAME.scale hold what blocks of {SCALED} leave out. Engines whose "
        "graph does not multiply with them compute nonsense, llama.cpp's deepseek2 among them; --type BF16 suits all."
    )
    return replace(plan, tensors=tensors, warnings=(*plan.warnings, said))


def _light(family: Family, config: Config) -> Family:
    if family.light is None:
        raise config.refuse("--light", "a model with sparse attention", family.architecture, "has nothing to leave out")
    return family.light


def _kept(wanted: Sequence[Untyped], wish: FileType | Budget, overrides: Overrides) -> dict[str, Choice]:
    """Return the choices for tensors that are in a type which the file wants already; anything else would lose."""
    if not isinstance(wish, FileType):
        return {}
    kinds = {wish.kept} if overrides.compat else {wish.kept, wish.default}
    return {t.name: Choice(t.ggml_type, "as stored") for t in wanted if t.ggml_type and t.ggml_type in kinds}


def own_type(checkpoint: Checkpoint) -> FileType:
    """Return the file type that keeps the checkpoint's values.

    The plain type of most of its weights, BF16 for FP8; where some can be copied as blocks, those are, "Q4_0-BF16".
    """
    stored: Counter[str] = Counter()
    blocks: Counter[str] = Counter()
    for tensor in checkpoint.tensors.values():
        if tensor.raw_type and ggtypes.by_name(tensor.raw_type).block == 1:
            continue  # a table, which is no weight
        if tensor.raw_type and not leaves_out(tensor):
            blocks[tensor.raw_type] += math.prod(tensor.shape)
        else:
            stored[tensor.stored if tensor.stored in PLAIN else "BF16"] += math.prod(tensor.shape)
    plain = FILE_TYPES[stored.most_common(1)[0][0] if stored else "BF16"]
    return _keeping(blocks.most_common(1)[0][0], plain) if blocks else plain


def _keeping(block_type: str, plain: FileType) -> FileType:
    """Return a file type like `plain` that keeps blocks of a type.

    Its number is that of the first file type whose tensors mostly have that type. Not every block type has such a file
    type, NVFP4 has none; then readers are told the plain one.
    """
    like = next((entry for entry in FILE_TYPES.values() if entry.default == block_type), plain)
    return FileType(f"{block_type}-{plain.name}", like.id, plain.default, block_type)
