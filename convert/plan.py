"""The plan of a conversion: a checkpoint's tensors under its family's rules, with everything an engine must be told."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from convert.general import count_parameters, general_metadata
from convert.tokenizer.metadata import tokenizer_metadata
from gguf_mla.container.values import QUANTIZATION_VERSION, Value, boolean, u32
from gguf_mla.families import family_of, prediction
from gguf_mla.families.base import outputs
from gguf_mla.plan.assign import assign
from gguf_mla.plan.jobs import Plan
from gguf_mla.recipes import FILE_TYPES, Choice, FileType, Overrides, target
from gguf_mla.recipes.file_types import PLAIN
from gguf_mla.sources.config import Config

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gguf_mla.families.base import Family
    from gguf_mla.importance.matrix import Imatrix
    from gguf_mla.plan.budgeted import Measure
    from gguf_mla.plan.jobs import Untyped
    from gguf_mla.recipes import Budget
    from gguf_mla.sources.checkpoint import Checkpoint

# Written straight from the checkpoint, as llama.cpp's converter does. Everything else is made from a BF16 file there,
# whose rounding is part of the result, so we round the same way on the fly.
DIRECT = ("F32", "F16", "BF16", "Q8_0")


def plan_conversion(
    checkpoint: Checkpoint,
    type_names: Sequence[str] = ("auto",),
    pre: str | None = None,
    overrides: Overrides | None = None,
    imatrix: Imatrix | None = None,
    measure: Measure | None = None,
    *,
    light: bool = False,
    keep_prediction: bool = True,
) -> list[tuple[Plan, FileType]]:
    """Return the whole plan of each file type; `pre` overrides the recognised pre-tokenizer.

    `measure` is what a type name that is a size ("3.5bpw", "200G") needs. `light` writes the family's light form;
    `keep_prediction` keeps multi-token prediction layers in files that can hold them.

    Raises InputError for a checkpoint that does not match its configuration, or that GGUF cannot express.
    """
    overrides = overrides or Overrides()
    config = Config(checkpoint.config, checkpoint.directory / "config.json")
    family = _light(family_of(config), config) if light else family_of(config)
    layers = prediction.layers_in(config, checkpoint.tensors) if keep_prediction else []
    config = config.changed(num_nextn_predict_layers=len(layers))
    targets = [own_type(checkpoint) if name == "auto" else target(name) for name in type_names]
    architecture = family.metadata(config)
    wanted, dropped = outputs(family, config, checkpoint)
    tokens, token_warnings = tokenizer_metadata(checkpoint.directory, config.positive("vocab_size"), pre)
    parameters = count_parameters((output.name, output.shape) for output in wanted)
    general, general_warnings = general_metadata(checkpoint.directory, family.architecture, parameters)
    metadata: dict[str, Value] = {
        **general,
        **architecture,
        "general.file_type": u32(0),  # keeps its place; each plan has its own
        "general.quantization_version": u32(QUANTIZATION_VERSION),
        **tokens,
        **_family_tokens(family, tokens),
    }
    warnings = (*family.warnings(config), *general_warnings, *token_warnings)
    base = Plan(metadata, (), dropped, warnings)
    plans = []
    for wish in targets:
        via = None if isinstance(wish, FileType) and wish.default in DIRECT else "BF16"
        kept = _kept(wanted, wish, overrides)
        got, jobs, found = assign(wanted, wish, metadata, overrides, imatrix, via, measure, kept)
        importance = imatrix.metadata() if imatrix and not got.plain else {}
        stated = metadata | {"general.file_type": u32(got.id)} | importance
        plans.append((replace(base, metadata=stated, tensors=jobs, warnings=(*warnings, *found)), got))
    return plans


def _light(family: Family, config: Config) -> Family:
    if family.light is None:
        raise config.refuse("--light", "a model with sparse attention", family.architecture, "has nothing to leave out")
    return family.light


def _family_tokens(family: Family, tokens: Mapping[str, Value]) -> dict[str, Value]:
    """Return what the family knows better than the tokenizer's files."""
    texts = tokens["tokenizer.ggml.tokens"].data
    ids = {role: texts.index(text) for role, text in family.specials.items() if text in texts}
    found = {f"tokenizer.ggml.{role}_token_id": u32(number) for role, number in ids.items()}
    return found | ({"tokenizer.ggml.add_bos_token": boolean(True)} if family.bos_first else {})


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
        if tensor.raw_type:
            blocks[tensor.raw_type] += math.prod(tensor.shape)
        else:
            stored[tensor.stored if tensor.stored in PLAIN else "BF16"] += math.prod(tensor.shape)
    plain = FILE_TYPES[stored.most_common(1)[0][0] if stored else "BF16"]
    if not blocks:
        return plain
    kept = FILE_TYPES[blocks.most_common(1)[0][0]]
    return FileType(f"{kept.name}-{plain.name}", kept.id, plain.default, kept.name)
