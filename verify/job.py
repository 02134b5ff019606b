"""A proof: what the file says, then all levels side by side, up to the first that finds something wrong."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from gguf_mla.container.splits import open_gguf_parts
from gguf_mla.errors import GgufMlaError, InputError
from gguf_mla.forward.on_device import form_on, place_on
from gguf_mla.importance.matrix import LAYER_MEAN, ONES, UNSEEN_KEY, read_imatrix
from gguf_mla.sources.checkpoint import Choices
from gguf_mla.text import encoders
from gguf_mla.text.tokens import read_tokens
from verify.course import Course
from verify.findings import LEVELS, Finding, Grade
from verify.journal import Journal, NoJournal, identity
from verify.levels import attention, engine, exact, logits, structure
from verify.limits import Limits
from verify.opening import open_candidate, open_reference
from verify.sections import sections
from verify.stages import STAGES

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from gguf_mla.files.readable import AnyPath
    from gguf_mla.forward.attention import Form
    from gguf_mla.forward.place import Place
    from gguf_mla.importance.matrix import Imatrix
    from gguf_mla.text.encoders import Encode
    from verify.course import Bar
    from verify.levels.attention import LayerAgreement
    from verify.levels.engine import EngineAgreement
    from verify.levels.exact import Sameness
    from verify.levels.logits import Scores
    from verify.levels.weights import TensorError
    from verify.opening import Candidate, Reference


LOST_CUTS = (
    "The reference's tokenizer.json has lost how it cuts texts, so the text is read with the file's own tokens and "
    "tokenizer.ggml.pre."
)


@dataclass(frozen=True)
class Request:
    """What to prove and how far; without text or tokens a built-in sample is read.

    choices         how a checkpoint as reference is read where there are two readings
    pad_vocabulary  whether rows of its embeddings beyond the vocabulary are tokens that are never used
    resume          a directory for what has been found, from which the same proof goes on
    """

    reference: AnyPath
    candidate: AnyPath
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
    resume: Path | None = None


@dataclass
class Proof:
    """What was found: nothing wrong, if the candidate computes what the reference does.

    imatrix  the importance that the exact level encodes with
    tokens   the chunks [B, context] that were run over, where a level needs them
    failure  what kept a level from running; what the ones before it found is here all the same
    """

    request: Request
    place: Place
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


def prove(request: Request, bar: Bar = lambda _total, _done: nullcontext(lambda _step: None)) -> Proof:
    """Run the levels up to the one asked for; what comes after the first that finds something wrong counts for nothing.

    Raises InputError for a reference or a text that cannot be used, for a candidate that is no GGUF file, and for the
    journal of another proof; MachineError for a device that cannot be used; ProofInterrupted. All that a level needs is
    asked for before any weight is read; a level that fails all the same leaves its error as `Proof.failure`, beside
    what has been found.
    """
    _check(request)
    reference = open_reference(request.reference, request.choices)
    if request.pad_vocabulary:
        reference = reference.padded()
    place = place_on(request.device, request.threads)
    proof = Proof(request, place, form_on(request.device, request.form), reference.warnings)
    ends = {exact.LEVEL: request.exact, engine.LEVEL: request.engine}
    levels = [*LEVELS[1 : LEVELS.index(request.level) + 1], *(level for level, wanted in ends.items() if wanted)]
    ids = _prepare(levels, proof, reference)
    _structure(proof, reference)
    if proof.candidate is None or not proof.right or not levels:
        return proof
    if request.engine and proof.candidate.weights.model.alone:
        raise InputError("--engine cannot run a file of multi-token prediction alone", file=request.candidate)
    proof.imatrix = _importance(request, proof.candidate)
    proof.tokens = None if ids is None else _chunks(ids, proof, proof.candidate)
    with _journal(proof) as journal:
        stages = [stage(proof, journal) for stage in STAGES if stage.level in levels]
        Course(proof, stages, journal).go(sections(proof.candidate.reference.weights.model), bar)
        if proof.failure is None:
            journal.remove()
    return proof


def _check(request: Request) -> None:
    if request.text and request.tokens:
        raise InputError("--text and --tokens are both given", remedy="Give one of them")
    if request.imatrix and not request.exact:
        raise InputError("--imatrix is for --exact, which is not given", remedy="Give both")


def _importance(request: Request, candidate: Candidate) -> Imatrix | None:
    """Return the importance that the file may have been made with, unseen experts filled in as it says they were."""
    if request.imatrix is None:
        return None
    unseen = candidate.weights.file.metadata.get(UNSEEN_KEY)
    return read_imatrix([request.imatrix], unseen=LAYER_MEAN if unseen == LAYER_MEAN else ONES)


def _journal(proof: Proof) -> Journal | NoJournal:
    candidate, directory = proof.candidate, proof.request.resume
    if directory is None or candidate is None:
        return NoJournal()
    return Journal(directory, *identity(proof.request, candidate))


def _prepare(levels: list[str], proof: Proof, reference: Reference) -> NDArray[np.int64] | None:
    """Return the tokens that these levels run over, int64 [N], None where none does; InputError for what they lack."""
    request = proof.request
    if engine.LEVEL in levels:
        engine.require(request.candidate)
    if {attention.LEVEL, logits.LEVEL, engine.LEVEL}.isdisjoint(levels):
        return None
    encode: Encode = reference.encode
    if request.tokens is None and reference.lost_cuts():
        proof.warnings += (LOST_CUTS,)
        encode = _encoder_of(request.candidate, encode)
    return read_tokens(request.text, request.tokens, encode, reference.weights.model.vocab)


def _encoder_of(candidate: AnyPath, otherwise: Encode) -> Encode:
    """Return what reads texts with a file's own tokens; `otherwise` where it cannot be opened, as will be said."""
    try:
        return encoders.of_gguf(open_gguf_parts(candidate).metadata, candidate)
    except InputError:
        return otherwise


def _structure(proof: Proof, reference: Reference) -> None:
    """Open the candidate, and find what its metadata and its tensor table have wrong."""
    begin = time.monotonic()
    opened = open_candidate(proof.request.candidate, reference)
    if isinstance(opened, Finding):
        proof.findings.append(opened)
    else:
        proof.candidate = opened
        proof.warnings += opened.warnings
        proof.findings += opened.findings
    proof.seconds[structure.LEVEL] = round(time.monotonic() - begin, 3)


def _chunks(ids: NDArray[np.int64], proof: Proof, candidate: Candidate) -> NDArray[np.int64]:
    """Return the chunks [B, context] that the proof runs over; a text begins with bos where the file adds it."""
    request, metadata = proof.request, candidate.weights.file.metadata
    adds_bos = metadata.get("tokenizer.ggml.add_bos_token", False)
    bos = metadata.get("tokenizer.ggml.bos_token_id") if adds_bos else None
    if bos is not None and request.tokens is None:
        ids = np.append(np.int64(bos), ids)
    return logits.chunks(ids, request.context, request.chunks, bos)
