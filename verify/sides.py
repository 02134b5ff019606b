"""Opening the two sides of a proof."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gguf_mla.checkpoint import open_checkpoint
from gguf_mla.container.splits import open_gguf_parts
from gguf_mla.errors import InputError
from gguf_mla.families import family_of
from gguf_mla.families.config import Config
from verify import tokenizer
from verify.findings import Finding
from verify.levels import structure
from verify.model import model_of_config, model_of_gguf
from verify.tensors import CheckpointWeights, GgufWeights

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from gguf_mla.container.splits import GgufParts
    from verify.limits import Limits
    from verify.tensors import Weights

ARCHITECTURE = "deepseek2"
CLASSES = ("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM")


@dataclass(frozen=True)
class Reference:
    """What is taken for right: its weights, its architecture in GGUF's terms, its directory or its file.

    `warnings` are sentences on what llama.cpp computes otherwise from a file that is right.
    """

    weights: Weights
    architecture: str
    directory: Path | None
    file: GgufParts | None
    warnings: tuple[str, ...] = ()

    def tokenizer_findings(self, candidate: GgufParts) -> list[Finding]:
        """Return what is wrong with the candidate's tokenizer."""
        if self.directory is not None:
            return list(tokenizer.against_files(self.directory, candidate.metadata, self.weights.model.vocab))
        assert self.file is not None  # noqa: S101 - one of the two is there
        return list(tokenizer.against_file(self.file.metadata, candidate.metadata))


def open_reference(path: Path) -> Reference:
    """Open a checkpoint directory or a GGUF file; InputError for what is neither or no MLA model."""
    if path.is_dir():
        checkpoint = open_checkpoint(path)
        config = Config(checkpoint.config, path / "config.json")
        family = family_of(config)
        _check("class", CLASSES, config.content["architectures"][0], path)
        weights = CheckpointWeights(checkpoint, model_of_config(config))
        return Reference(weights, family.architecture, path, None, tuple(family.warnings(config)))
    file = open_gguf_parts(path)
    _check("architecture", (ARCHITECTURE,), str(file.metadata.get("general.architecture")), path)
    _check("number of prediction layers", (0,), file.metadata.get(f"{ARCHITECTURE}.nextn_predict_layers", 0), path)
    return Reference(GgufWeights(file, model_of_gguf(file)), ARCHITECTURE, None, file)


def _check(what: str, known: tuple[object, ...], found: object, path: Path) -> None:
    if found not in known:
        expected = " or ".join(map(str, known))
        raise InputError(f"a model of this {what} cannot be verified", file=path, expected=expected, found=found)


@dataclass(frozen=True)
class Candidate:
    """The file to be proven, opened; `findings` are what its structure has wrong."""

    weights: GgufWeights
    findings: tuple[Finding, ...]

    def coarsest(self, names: Iterable[str], limits: Limits) -> str:
        """Return the type that may err most among some tensors."""
        held = {t.type for t in self.weights.file.tensors.values() if t.name in set(names) and len(t.shape) > 1}
        return max(held, key=lambda name: limits.of(name).rms)

    def shares(self) -> dict[str, float]:
        """Return which part of the values has which type, the largest part first."""
        values: Counter[str] = Counter()
        for tensor in self.weights.file.tensors.values():
            values[tensor.type] += tensor.rows * tensor.shape[-1]
        return {name: count / values.total() for name, count in values.most_common()}


def open_candidate(path: Path, reference: Reference) -> Candidate | Finding:
    """Open the file to be proven and look at its structure; a Finding when that cannot even be read."""
    try:
        file = open_gguf_parts(path)
    except InputError as error:
        if error.tensor is None:
            raise
        return Finding(structure.LEVEL, error.tensor, error.what, error.expected, error.found)
    architecture = file.metadata.get("general.architecture")
    if architecture != reference.architecture:
        return Finding(structure.LEVEL, "general.architecture", "is another", reference.architecture, architecture)
    try:
        model = model_of_gguf(file)
    except InputError as error:
        return Finding(structure.LEVEL, "metadata", error.what, error.expected, error.found)
    findings = (
        *structure.compare_models(reference.weights.model, model, reference.architecture),
        *structure.check_layout(file, reference.weights.model, reference.architecture),
        *structure.check_tensors(file, reference.weights.model),
        *reference.tokenizer_findings(file),
    )
    return Candidate(GgufWeights(file, model), findings)
