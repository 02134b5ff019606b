"""Opening the two sides of a proof."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from gguf_mla.container.reader import CutOffError
from gguf_mla.container.splits import open_gguf_parts
from gguf_mla.errors import InputError
from gguf_mla.forward.architecture import read_gguf
from gguf_mla.forward.of_gguf import KeyRefusedError
from gguf_mla.forward.opening import checkpoint_weights, gguf_weights
from gguf_mla.forward.sound import check_tensors
from gguf_mla.forward.tensors import CheckpointWeights, GgufWeights
from gguf_mla.sources.checkpoint import Choices, open_partial
from gguf_mla.sources.config import Config
from gguf_mla.sources.tokenizer_files import read_tokenizer
from gguf_mla.text import encoders
from verify.findings import Finding, by_grade
from verify.keys import pieces
from verify.keys.compare import compare_keys
from verify.keys.model import of_model
from verify.keys.statements import OfCheckpoint, OfFile, Statement
from verify.levels import structure
from verify.published import ARCHITECTURES, CLASSES, LIGHT, SPARSE, engine_differences

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from gguf_mla.container.reader import GgufTensor
    from gguf_mla.container.splits import GgufParts
    from gguf_mla.files.readable import AnyPath
    from gguf_mla.forward.model import Model
    from gguf_mla.sources.folder import Folder
    from verify.limits import Limits

ALONE = "The file holds multi-token prediction alone; the model's own layers are taken from the reference, unjudged."
EMBEDDINGS = "model.embed_tokens.weight"


@dataclass(frozen=True)
class Reference:
    """What is taken for right: its weights, its architecture in GGUF's terms, its folder or its file.

    `warnings` are sentences on what llama.cpp computes otherwise from a file that is right.
    """

    weights: CheckpointWeights | GgufWeights
    architecture: str
    folder: Folder | None
    file: GgufParts | None
    warnings: tuple[str, ...] = ()

    def with_model(self, **changes: Any) -> Reference:
        """Return the reference taken for another model."""
        weights = self.weights
        return replace(self, weights=replace(weights, model=replace(weights.model, **changes)))

    def padded(self) -> Reference:
        """Return the reference with a token for every row of its embeddings, and not only for those that have one."""
        if not isinstance(self.weights, CheckpointWeights):
            raise InputError("--pad-vocab is for a checkpoint as reference", file=self.weights.file.path)
        table = self.weights.checkpoint.tensors.get(EMBEDDINGS)
        rows = self.weights.model.vocab if table is None else table.shape[0]
        return self.with_model(vocab=max(rows, self.weights.model.vocab))

    def lost_cuts(self) -> bool:
        """Whether the checkpoint's tokenizer.json has lost how it cuts texts, so that no text can be read with it."""
        return self.folder is not None and pieces.has_lost_it(read_tokenizer(self.folder).tokenizer)

    def encode(self, text: str) -> Sequence[int]:
        """Return the ids of a text: by the checkpoint's tokenizer files, or by the tokens that the file holds."""
        if self.folder is not None:
            return encoders.of_folder(self.folder)(text)
        assert self.file is not None  # noqa: S101 - one of the two is there
        return encoders.of_gguf(self.file.metadata, self.file.path)(text)

    def statement(self) -> Statement:
        """Return what it states of the keys that do not describe the model; InputError for damaged tokenizer files."""
        if isinstance(self.weights, CheckpointWeights):
            checkpoint = self.weights.checkpoint
            config = Config(checkpoint.config, checkpoint.folder.path / "config.json")
            files = read_tokenizer(checkpoint.folder)
            return OfCheckpoint(config, files, CLASSES[_class_of(config)], self.weights.model.vocab)
        metadata = self.weights.file.metadata
        return OfFile(metadata, str(metadata.get("general.architecture")))


def open_reference(path: AnyPath, choices: Choices | None = None) -> Reference:
    """Open a checkpoint directory or a GGUF file; InputError for what is neither, and for a model without MLA.

    `choices` decide where there are two readings of a checkpoint. Tensors that it lacks are missed when it is compared.
    """
    choices = choices or Choices()
    if path.is_dir():
        checkpoint = open_partial(path, choices)
        config = Config(checkpoint.config, path / "config.json")
        name = _class_of(config)
        _check("class", tuple(CLASSES), name, path)
        weights, published = checkpoint_weights(checkpoint, config), CLASSES[name]
        warnings = (*checkpoint.notes, *engine_differences(weights.model))
        return Reference(weights, published.architecture, checkpoint.folder, None, warnings)
    if choices != Choices():
        raise InputError("--weights, --prefix and --set are for a checkpoint as reference", file=path)
    file = open_gguf_parts(path)
    architecture = str(file.metadata.get("general.architecture"))
    _check("architecture", ARCHITECTURES, architecture, path)
    return Reference(gguf_weights(file), architecture, None, file)


def _class_of(config: Config) -> str:
    listed = config.content.get("architectures")
    return str(listed[0]) if isinstance(listed, list) and listed else "none"


def _check(what: str, known: tuple[object, ...], found: object, path: AnyPath) -> None:
    if found not in known:
        expected = " or ".join(map(str, known))
        raise InputError(f"a model of this {what} cannot be verified", file=path, expected=expected, found=found)


@dataclass(frozen=True)
class Candidate:
    """The file to be proven, opened.

    `reference` is what to hold against it, without what it leaves out on purpose, which `warnings` name; `findings`
    are what its structure has wrong. `carried` are the types whose errors a tensor has, where they are not its own's.
    """

    weights: GgufWeights
    findings: tuple[Finding, ...]
    reference: Reference
    warnings: tuple[str, ...] = ()
    carried: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def gone_through(self, types: Callable[[str, str], tuple[str, ...]]) -> Candidate:
        """Return this with the types whose errors each tensor carries, told by its name and its own type."""
        return replace(self, carried={t.name: types(t.name, t.type) for t in self.weights.held})

    def coarsest(self, names: Iterable[str], limits: Limits) -> str:
        """Return the type that may err most among those whose errors some tensors carry; F32 where none is its own."""
        wanted = set(names)
        matrices = (t for t in self.weights.held if t.name in wanted and len(t.shape) > 1)
        carried = (name for t in matrices for name in self._carried(t))
        return max(carried, key=lambda name: limits.of(name).rms, default="F32")

    def divergence(self, limits: Limits) -> float:
        """Return the limit of the mean divergence: a tensor that carries the errors of several types adds all."""
        values: Counter[str] = Counter()
        held = self.weights.held
        for tensor in held:
            for name in self._carried(tensor):
                values[name] += tensor.rows * tensor.shape[-1]
        total = sum(tensor.rows * tensor.shape[-1] for tensor in held)
        return limits.divergence({name: count / total for name, count in values.items()})

    def _carried(self, tensor: GgufTensor) -> tuple[str, ...]:
        return self.carried.get(tensor.name, (tensor.type,))

    def shares(self) -> dict[str, float]:
        """Return which part of the values has which type, the largest part first."""
        values: Counter[str] = Counter()
        for tensor in self.weights.held:
            values[tensor.type] += tensor.rows * tensor.shape[-1]
        return {name: count / values.total() for name, count in values.most_common()}


def open_candidate(path: AnyPath, reference: Reference) -> Candidate | Finding:
    """Open the file to be proven and look at its structure; a Finding when that cannot even be read."""
    try:
        file = open_gguf_parts(path)
    except InputError as error:
        if error.tensor is None and not isinstance(error, CutOffError):
            raise
        return Finding(structure.LEVEL, error.tensor or path.name, error.what, error.expected, error.found)
    architecture = file.metadata.get("general.architecture")
    reference, warnings = _light(reference) if architecture == LIGHT else (reference, ())
    if architecture != reference.architecture:
        return Finding(structure.LEVEL, "general.architecture", "is another", reference.architecture, architecture)
    try:
        model = read_gguf(file)
    except KeyRefusedError as error:
        return Finding(structure.LEVEL, error.key, "cannot be used", error.expected, error.found)
    reference, left_out = _without_predictors(reference.with_model(alone=model.alone), model)
    check_tensors(reference.weights)
    ratios = file.metadata.get(f"{architecture}.attention.compress_ratios")
    keys = of_model(reference.weights.model, model, reference.architecture, file.tensors, ratios)
    findings = [*compare_keys(reference.statement(), keys, file, reference.architecture)]
    findings += structure.check_tensors(file, reference.weights)
    weights = GgufWeights(file, model, reference.weights if model.alone else None)
    return Candidate(weights, tuple(by_grade(findings)), reference, (*warnings, *left_out))


def _light(reference: Reference) -> tuple[Reference, tuple[str, ...]]:
    """Return a reference with sparse attention as the dense model that it can also be written as, and a warning."""
    indexer = reference.weights.model.indexer
    if reference.architecture != SPARSE or indexer is None:
        return reference, ()
    warning = (
        "The file leaves out the indexer, so all tokens are attended to; it is compared with the reference without "
        f"one, which computes the same up to {indexer.top_k} tokens."
    )
    return replace(reference.with_model(indexer=None), architecture=LIGHT), (warning,)


def _without_predictors(reference: Reference, candidate: Model) -> tuple[Reference, tuple[str, ...]]:
    """Return the reference without the prediction layers that a candidate leaves out, and a warning if it does."""
    left_out = reference.weights.model.predictors
    if candidate.alone:
        return reference, (ALONE,)
    if candidate.predictors or not left_out:
        return reference, ()
    warning = f"The file leaves out the reference's multi-token prediction (layers: {left_out})."
    return reference.with_model(predictors=0), (warning,)
