"""Choose the type of every tensor of a file."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from gguf_mla import ggtypes
from gguf_mla.errors import InputError
from gguf_mla.files.bounds import named
from gguf_mla.layout.names import split_name
from gguf_mla.recipes import rules
from gguf_mla.recipes.expressions import matches
from gguf_mla.recipes.file_types import COPY, FileType
from gguf_mla.recipes.overrides import Overrides
from gguf_mla.recipes.protection import COMPRESSOR, protected_type
from gguf_mla.recipes.roles import EMBEDDINGS, OUTPUT, TensorRole, kept, role_of, stacked

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from gguf_mla.recipes.model import RecipeModel

ANY_ROW = "F16"  # any row length fits


class Tensor(NamedTuple):
    """A tensor to decide on.

    `shape` has the slowest dimension first, as numpy has it. `stored` is its type in the source file; None for a tensor
    of a checkpoint, which counts as F32 where it is never quantized and as BF16 otherwise.
    """

    name: str
    shape: tuple[int, ...]
    stored: str | None = None


class Choice(NamedTuple):
    """A type, the reason in a few words, and the type that it stands in for where rows do not fit that."""

    type: str
    reason: str
    instead_of: str = ""


def choose(
    tensors: Sequence[Tensor],
    target: FileType,
    model: RecipeModel,
    overrides: Overrides | None = None,
    *,
    has_importance: bool,
    bought: Mapping[str, Choice] | None = None,
) -> tuple[list[Choice], list[str]]:
    """Return a choice for each of the tensors, which are all of the file, and warnings.

    `bought` has choices that stand in place of the file type's rules.

    The order of `tensors` does not matter: rules that count see them by layer and name, as llama-quantize sorts them.
    `has_importance`: an importance file was given, even if it has nothing for some tensors. Raises InputError for a
    type that was asked for by name and does not fit, and for a copy of what has no ggml type.
    """
    chooser = _Chooser(tensors, target, model, overrides or Overrides(), has_importance, bought or {})
    choices = chooser.choices()
    if overrides is not None and overrides.no_fallback:
        _check_fallback(tensors, choices)
    return choices, [*model.warnings, *chooser.warnings()]


def undecided(tensors: Sequence[Tensor], target: FileType, model: RecipeModel, overrides: Overrides) -> list[bool]:
    """Tell of each tensor whether the file type's rules decide on it, and no option, name or shape."""
    chooser = _Chooser(tensors, target, model, overrides, False, {})
    return chooser.undecided()


def needs_importance(name: str, kind: str, target: FileType) -> bool:
    """Tell whether a tensor is useless, or impossible to encode, as that type without importance.

    llama-quantize lets token embeddings and output pass; ggml itself encodes no row to some types without importance.
    """
    if ggtypes.by_name(kind).needs_importance:
        return True
    if name == OUTPUT or name in EMBEDDINGS:
        return False
    return kind in rules.NEEDS_IMPORTANCE or (kind == "Q2_K" and target.rules == "Q2_K_S")


def needing_importance(tensors: Iterable[Tensor], choices: Iterable[Choice], target: FileType) -> list[tuple[str, str]]:
    """Return the (name, type) of every tensor that is to be encoded and needs importance for it."""
    return [
        (name, choice.type)
        for (name, _, stored), choice in zip(tensors, choices, strict=True)
        if choice.type != stored and needs_importance(name, choice.type, target)
    ]


class _Chooser:
    """The state of one run: which tensors there are, and how many of each role were decided by a rule."""

    def __init__(
        self,
        tensors: Sequence[Tensor],
        target: FileType,
        model: RecipeModel,
        overrides: Overrides,
        has_importance: bool,
        bought: Mapping[str, Choice],
    ) -> None:
        self._tensors, self._target, self._model, self._overrides = tensors, target, model, overrides
        self._has_importance, self._bought = has_importance, bought
        self._tied = not any(tensor.name == OUTPUT for tensor in tensors)
        self._total = Counter(role_of(tensor.name) for tensor in tensors)
        self._decided: Counter[TensorRole] = Counter()
        self._expressions = overrides.expressions()
        self._named = 0  # tensors whose type another file decided
        self._used: set[int] = set()  # indices of expressions that decided a type

    def choices(self) -> list[Choice]:
        order = sorted(range(len(self._tensors)), key=lambda index: _place_in_order(self._tensors[index].name))
        chosen = {index: self._choice(self._tensors[index]) for index in order}
        return [chosen[index] for index in range(len(self._tensors))]

    def undecided(self) -> list[bool]:
        return [self._asked(tensor) is None for tensor in self._tensors]

    def _choice(self, tensor: Tensor) -> Choice:
        return self._asked(tensor) or self._bought.get(tensor.name) or self._by_recipe(tensor)

    def _asked(self, tensor: Tensor) -> Choice | None:
        return self._unchanged(tensor) or self._by_name(tensor)

    def _unchanged(self, tensor: Tensor) -> Choice | None:
        """Tensors that keep the type they have."""
        if self._target is COPY:
            if tensor.stored is None:
                raise InputError(
                    "COPY needs a GGUF file as source, in which the tensor has a type",
                    tensor=tensor.name,
                    remedy="Use --type auto for a checkpoint, gguf-mla upgrade for a legacy file",
                )
            return Choice(tensor.stored, "copied")
        if reason := kept(tensor.name, tensor.shape, compat=self._overrides.compat):
            return Choice(tensor.stored or "F32", reason)
        if self._overrides.leave_output_tensor and tensor.name == OUTPUT:
            return Choice(tensor.stored or "BF16", "--leave-output-tensor")
        return None

    def _by_name(self, tensor: Tensor) -> Choice | None:
        """Types that were asked for."""
        role, wanted = role_of(tensor.name), self._overrides
        if role is TensorRole.TOKEN_EMBD and wanted.token_embedding_type:
            return _exactly(tensor, wanted.token_embedding_type, "--token-embedding-type")
        if role is TensorRole.OUTPUT and wanted.output_tensor_type:
            return _exactly(tensor, wanted.output_tensor_type, "--output-tensor-type")
        index = self._matching(tensor.name)
        if index is None and tensor.name in wanted.named_types:
            self._named += 1
            return _fit(wanted.named_types[tensor.name], tensor.shape[-1], "--types-from", tensor.name)
        if index is None or (self._target.plain and wanted.compat):
            return None
        self._used.add(index)
        pattern, kind = wanted.tensor_types[index]
        return _fit(kind, tensor.shape[-1], f"--tensor-type {pattern}", tensor.name)

    def _matching(self, name: str) -> int | None:
        return next((index for index, pattern in enumerate(self._expressions) if matches(pattern, name)), None)

    def _by_recipe(self, tensor: Tensor) -> Choice:
        default = Choice(self._target.default, f"default of {self._target.name}")
        if self._target.plain:
            return default
        kind, reason, _ = default if self._overrides.pure else self._ruled(tensor) or default
        return _fit(kind, tensor.shape[-1], reason, tensor.name)

    def _ruled(self, tensor: Tensor) -> Choice | None:
        role = role_of(tensor.name)
        if self._tied and role is TensorRole.TOKEN_EMBD:
            role = TensorRole.OUTPUT
            if self._overrides.output_tensor_type:
                return Choice(self._overrides.output_tensor_type, "--output-tensor-type, embeddings serve as output")
        facts = self._facts(tensor, role)
        self._decided[role] += 1
        if not self._overrides.compat and COMPRESSOR in tensor.name:
            return Choice("BF16", "compresses the cache")
        if kind := protected_type(tensor.name, self._target):
            return Choice(kind, "no routed expert")
        found = ((rule.type, rule.reason(facts, role)) for rule in rules.rules_for(role, self._target.rules))
        return next((Choice(kind, reason) for kind, reason in found if reason), None)

    def _facts(self, tensor: Tensor, role: TensorRole) -> rules.Facts:
        return rules.Facts(
            name=tensor.name,
            model=self._model,
            count=self._decided[role],
            of=self._model.layers if role in rules.FFN else self._total[role],
            fits=ggtypes.by_name(self._target.default).fits(tensor.shape[-1]),
            stacked=stacked(tensor.shape),
            has_importance=self._has_importance,
            compat=self._overrides.compat,
        )

    def warnings(self) -> list[str]:
        """Sentences about expressions that decided nothing."""
        named = self._overrides.named_types
        unused = ["--types-from names no tensor of this model."] if named and not self._named else []
        return unused + [
            f"--tensor-type {pattern}={kind} {self._why_unused(index)}."
            for index, (pattern, kind) in enumerate(self._overrides.tensor_types)
            if index not in self._used
        ]

    def _why_unused(self, index: int) -> str:
        matched = [tensor for tensor in self._tensors if matches(self._expressions[index], tensor.name)]
        if not matched:
            return "matches no tensor"
        if self._target is COPY or self._target.plain:
            return f"is ignored in a {self._target.name} file"
        if all(kept(tensor.name, tensor.shape, compat=self._overrides.compat) for tensor in matched):
            return "matches only tensors that are never quantized (vectors, norms, the router)"
        return "has no effect: other options come first for every tensor it matches"


def _check_fallback(tensors: Sequence[Tensor], choices: Sequence[Choice]) -> None:
    changed = [(tensor, choice) for tensor, choice in zip(tensors, choices, strict=True) if choice.instead_of]
    if changed:
        tensor, choice = changed[0]
        raise InputError(
            f"{len(changed)} tensors would get another type, because their rows do not fit the recipe's: "
            f"{named((tensor.name for tensor, _ in changed), 4)}",
            expected=f"{choice.instead_of} for {tensor.name}, as --no-fallback insists",
            found=f"{choice.type}, because {choice.reason}",
            remedy="Name a type that fits with --tensor-type, or leave --no-fallback out",
        )


def _place_in_order(name: str) -> tuple[int, str]:
    """Tensors without a layer first, then by layer, then by name: the order in which llama-quantize counts."""
    layer, _ = split_name(name)
    return -1 if layer is None else layer, name


def _exactly(tensor: Tensor, kind: str, option: str) -> Choice:
    """Return the type that an option names outright, which has no substitute; InputError if it does not fit."""
    columns, block = tensor.shape[-1], ggtypes.by_name(kind).block
    if columns % block:
        raise InputError(
            f"{option} {kind} does not fit",
            tensor=tensor.name,
            expected=f"rows of a multiple of {block} values",
            found=columns,
            remedy="Choose a type with smaller blocks",
        )
    return Choice(kind, option)


def _fit(kind: str, columns: int, reason: str, name: str) -> Choice:
    """Return the type, or what stands in for it in rows that are no whole number of its blocks."""
    if ggtypes.by_name(kind).fits(columns):
        return Choice(kind, reason)
    if kind in rules.NO_SUBSTITUTE:
        raise InputError(
            f"rows of {columns} values do not fit {kind}, and nothing stands in for it",
            tensor=name,
            expected=f"a multiple of {ggtypes.by_name(kind).block}",
            remedy="Name a type for this tensor with --tensor-type",
        )
    smaller = rules.SMALLER.get(kind, ANY_ROW)
    if ggtypes.by_name(smaller).fits(columns):
        return Choice(smaller, f"rows of {columns} do not fit {kind}", kind)
    return Choice(ANY_ROW, f"rows of {columns} fit neither {kind} nor {smaller}", kind)
