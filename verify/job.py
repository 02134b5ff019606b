"""A proof: level after level, cheap first, until one finds something wrong or the last that is asked for."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from gguf_mla.errors import GgufMlaError, InputError
from gguf_mla.forward.architecture import architecture_of
from gguf_mla.forward.on_device import form_on
from gguf_mla.forward.tensors import LEGACY
from gguf_mla.importance.matrix import read_imatrix
from gguf_mla.sources.checkpoint import Choices
from gguf_mla.text.tokens import read_tokens
from verify.findings import LEVELS, Finding, Grade
from verify.levels import attention, engine, exact, logits, second_opinion, weights
from verify.levels.judging import Judge
from verify.levels.structure import LEVEL as STRUCTURE
from verify.limits import Limits
from verify.opening import Candidate, Reference, open_candidate, open_reference

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from gguf_mla.files.readable import Place
    from gguf_mla.forward.attention import Form
    from gguf_mla.importance.matrix import Imatrix
    from verify.levels.attention import LayerAgreement
    from verify.levels.engine import EngineAgreement
    from verify.levels.exact import Sameness
    from verify.levels.logits import Scores
    from verify.levels.weights import TensorError

# Starts a progress display with a level's name and total; returns what is called with every step.
Bar = Callable[[str, int], Callable[[int], object]]


@dataclass(frozen=True)
class Request:
    """What to prove and how far; without text or tokens a built-in sample is read.

    choices         how a checkpoint as reference is read where there are two readings
    pad_vocabulary  whether rows of its embeddings beyond the vocabulary are tokens that are never used
    """

    reference: Place
    candidate: Place
    level: str = LEVELS[-1]
    text: Path | None = None
    tokens: Path | None = None
    context: int = 512
    chunks: int = 4
    form: str = "absorbed"
    device: str = "cpu"
    limits: Limits = field(default_factory=Limits)
    threads: int = 1
    engine: bool = False
    exact: bool = False
    imatrix: Path | None = None
    choices: Choices = field(default_factory=Choices)
    pad_vocabulary: bool = False


@dataclass
class Proof:
    """What was found: nothing wrong, if the candidate computes what the reference does.

    imatrix  the importance that the exact level encodes with
    tokens   the chunks [B, context] that were run over, where a level needs them
    failure  what kept a level from running; what the ones before it found is here all the same
    """

    request: Request
    form: Form
    warnings: tuple[str, ...] = ()
    findings: list[Finding] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    candidate: Candidate | None = None
    tensors: list[TensorError] = field(default_factory=list)
    attention: list[LayerAgreement] = field(default_factory=list)
    layers: list[LayerAgreement] = field(default_factory=list)
    scores: Scores | None = None
    predicted: list[Scores] = field(default_factory=list)
    engine: list[EngineAgreement] = field(default_factory=list)
    exact: list[Sameness] = field(default_factory=list)
    imatrix: Imatrix | None = None
    tokens: NDArray[np.int64] | None = None
    failure: GgufMlaError | MemoryError | None = None

    @property
    def grade(self) -> Grade:
        """What is to be said of the candidate: as much as its gravest finding says, or nothing after a failure.

        What could not be judged is among the findings, and the verdict is that of everything that could.
        """
        found = {finding.grade for finding in self.findings}
        if Grade.WRONG in found:
            return Grade.WRONG
        if self.failure is not None:
            return Grade.CANNOT_TELL
        return Grade.DIFFERS if Grade.DIFFERS in found else Grade.RIGHT

    @property
    def right(self) -> bool:
        """Whether every level ran, and an engine computes and reads what it does from the reference."""
        return self.grade in (Grade.RIGHT, Grade.DIFFERS)


def prove(request: Request, bar: Bar = lambda _name, _total: lambda _step: None) -> Proof:
    """Run the levels up to the one asked for, and stop at the first that finds something wrong.

    Raises InputError for a reference or a text that cannot be used, and for a candidate that is no GGUF file;
    MachineError for a device that cannot be used. All that a level needs is asked for before any weight is read; a
    level that fails all the same leaves its error as `Proof.failure`, beside what has been found.
    """
    if request.text and request.tokens:
        raise InputError("--text and --tokens are both given", remedy="Give one of them")
    if request.imatrix and not request.exact:
        raise InputError("--imatrix is for --exact, which is not given", remedy="Give both")
    reference = open_reference(request.reference, request.choices)
    if request.pad_vocabulary:
        reference = reference.padded()
    proof = Proof(request, form_on(request.device, request.form), reference.warnings)
    ends = {exact.LEVEL: request.exact, engine.LEVEL: request.engine}
    levels = [*LEVELS[1 : LEVELS.index(request.level) + 1], *(level for level, wanted in ends.items() if wanted)]
    proof.imatrix = read_imatrix([request.imatrix]) if request.imatrix else None
    ids = _prepare(levels, request, reference)
    _run(STRUCTURE, proof, reference, bar)
    if proof.candidate is None or not proof.right:
        return proof
    reference = proof.candidate.reference
    proof.tokens = None if ids is None else _chunks(ids, proof)
    try:
        for level in levels:
            if proof.right:
                _run(level, proof, reference, bar)
    except (GgufMlaError, MemoryError) as error:
        proof.failure = error
    return proof


def _run(level: str, proof: Proof, reference: Reference, bar: Bar) -> None:
    begin = time.monotonic()
    for finding in _RUN[level](proof, reference, bar):
        if finding is not None:
            proof.findings.append(finding)
    proof.seconds[level] = round(time.monotonic() - begin, 3)


def _prepare(levels: list[str], request: Request, reference: Reference) -> NDArray[np.int64] | None:
    """Return the tokens that these levels run over, int64 [N], None where none does; InputError for what they lack."""
    if engine.LEVEL in levels:
        engine.require(request.candidate)
    if {attention.LEVEL, logits.LEVEL, engine.LEVEL}.isdisjoint(levels):
        return None
    return read_tokens(request.text, request.tokens, reference.encode, reference.weights.model.vocab)


def _structure(proof: Proof, reference: Reference, _bar: Bar) -> Iterator[Finding]:
    opened = open_candidate(proof.request.candidate, reference)
    if isinstance(opened, Finding):
        yield opened
        return
    proof.candidate = opened
    proof.warnings += opened.warnings
    yield from opened.findings


def _weights(proof: Proof, reference: Reference, bar: Bar) -> Iterator[Finding | None]:
    if misread := second_opinion.of_reference(reference.weights, proof.request.threads):
        yield from (replace(finding, grade=Grade.CANNOT_TELL) for finding in misread)
        raise InputError(
            f"two libraries read {len(misread)} of the reference's tensors otherwise, so nothing can be said of a file",
            file=proof.request.reference,
            remedy="Report it: one of the two is wrong",
        )
    candidate = _opened(proof)
    tensors = candidate.weights.held()
    step = bar("weights", sum(tensor.nbytes for tensor in tensors))
    compared = weights.compare_weights(reference.weights, candidate.weights, step, proof.request.threads)
    judge = Judge(reference.weights, candidate.weights, proof.request.limits)
    for error in compared:
        proof.tensors.append(error)
        yield judge.tensor(error)
    yield from judge.rest()
    proof.warnings += judge.warnings()
    proof.candidate = candidate.gone_through(judge.types)
    yield from map(second_opinion.of_gguf, tensors)


def _attention(proof: Proof, reference: Reference, bar: Bar) -> Iterator[Finding | None]:
    tokens = _taken(proof)[:1, : attention.TOKENS]
    candidate, limits = _opened(proof), proof.request.limits
    step = bar("attention", reference.weights.model.blocks)
    attends = architecture_of(candidate.weights.model).attends

    def types(layer: int) -> str:
        names = [f"blk.{layer}.{name}.weight" for name in attends] + [f"blk.{layer}.{LEGACY}"]
        return candidate.coarsest(names, limits)

    for result in attention.compare_attention(reference.weights, candidate.weights, tokens, proof.form, types):
        proof.attention.append(result)
        step(1)
        yield attention.judge(result, limits)


def _logits(proof: Proof, reference: Reference, bar: Bar) -> Iterator[Finding | None]:
    candidate, limits = _opened(proof), proof.request.limits
    tokens = _taken(proof)
    step = bar("logits", reference.weights.model.blocks)

    def types(layer: int) -> str:
        return candidate.coarsest(
            [name for name in candidate.weights.file.tensors if name.startswith(f"blk.{layer}.")], limits
        )

    proof.layers, scores = logits.compare_logits(reference.weights, candidate.weights, tokens, proof.form, types, step)
    proof.scores, *proof.predicted = scores  # a prediction only proposes, so it is judged by its layer alone
    for result in proof.layers:
        yield attention.judge(result, limits, logits.LEVEL, "layer")
    yield logits.judge(proof.scores, candidate.divergence(limits))


def _exact(proof: Proof, reference: Reference, bar: Bar) -> Iterator[Finding]:
    candidate = _opened(proof).weights
    step = bar(exact.LEVEL, sum(tensor.nbytes for tensor in candidate.held()))
    proof.exact += exact.compare_bytes(reference.weights, candidate, proof.imatrix, step, proof.request.threads)
    yield from exact.judge(proof.exact)


def _engine(proof: Proof, _reference: Reference, _bar: Bar) -> Iterator[Finding | None]:
    candidate, request = _opened(proof), proof.request
    tokens = _taken(proof)[0]
    proof.engine, exact = engine.compare_engine(request.candidate, candidate.weights, tokens, request.threads)
    yield engine.judge(proof.engine, exact if set(candidate.shares()) == {"F32"} else None)


_RUN: dict[str, Callable[[Proof, Reference, Bar], Iterator[Finding | None]]] = {
    STRUCTURE: _structure,
    weights.LEVEL: _weights,
    attention.LEVEL: _attention,
    logits.LEVEL: _logits,
    exact.LEVEL: _exact,
    engine.LEVEL: _engine,
}


def _opened(proof: Proof) -> Candidate:
    assert proof.candidate is not None  # noqa: S101 - a candidate that cannot be opened ends the proof before
    return proof.candidate


def _taken(proof: Proof) -> NDArray[np.int64]:
    assert proof.tokens is not None  # noqa: S101 - `_prepare` has taken them for every level that asks
    return proof.tokens


def _chunks(ids: NDArray[np.int64], proof: Proof) -> NDArray[np.int64]:
    """Return the chunks [B, context] that the proof runs over; a text begins with bos where the file adds it."""
    request, metadata = proof.request, _opened(proof).weights.file.metadata
    adds_bos = metadata.get("tokenizer.ggml.add_bos_token", False)
    bos = metadata.get("tokenizer.ggml.bos_token_id") if adds_bos else None
    if bos is not None and request.tokens is None:
        ids = np.append(np.int64(bos), ids)
    return logits.chunks(ids, request.context, request.chunks, bos)
