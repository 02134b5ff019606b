"""Every fault of files and readers with sparse attention and multi-token prediction is found and blamed."""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Any

import pytest

from gguf_mla.forward import attention, indexer, prediction
from tests.verify.conftest import SPARSE_TYPES
from tests.verify.faults import Image, blamed
from tests.verify.sparse_faults import FAULTS, READER_FAULTS, SHARED_FAULTS, SparseFault, shift, shifted
from verify import job
from verify.job import Proof, Request, prove

if TYPE_CHECKING:
    from pathlib import Path

    from tests.verify.faults import Fault
    from verify.opening import Candidate, Reference


def request(files: Path, kind: str, candidate: Path, level: str) -> Request:
    return Request(files / kind, candidate, level, context=64, chunks=1, threads=2)


def image_of(files: Path, kind: str, stored: str) -> Image:
    return copy.deepcopy(Image.of(files / f"{kind}-{stored}.gguf"))


@pytest.mark.parametrize("fault", [*FAULTS, *SHARED_FAULTS], ids=lambda fault: fault.name)
def test_a_fault_of_a_file_is_found_and_blamed(fault: Fault, sparse_files: Path, tmp_path: Path) -> None:
    kind = "glm-dsa" if fault in SHARED_FAULTS else "v32"
    for stored in SPARSE_TYPES[:1] if fault.level == "structure" else SPARSE_TYPES[1:]:
        image = image_of(sparse_files, kind, stored)
        fault.damage(image)
        proof = prove(request(sparse_files, kind, image.write(tmp_path / "faulty.gguf"), "weights"))
        blamed(proof, fault.level, fault.blame)


def read_wrongly(fault: SparseFault, patch: pytest.MonkeyPatch) -> None:
    """Let the candidate, and only it, be read so; its model is told by identity."""
    opened, candidates = job.open_candidate, []
    right = {"prepare": indexer.prepare, "enter": prediction.enter}

    def misread(path: Path, reference: Reference) -> Candidate:
        candidate = opened(path, reference)
        model = dataclasses.replace(fault.model(candidate.weights.model), tied=candidate.weights.model.tied)
        candidates.append(model)
        return dataclasses.replace(candidate, weights=dataclasses.replace(candidate.weights, model=model))

    def prepare(*arguments: Any) -> Any:
        return (fault.prepare if arguments[-1] is candidates[0] else right["prepare"])(*arguments)

    def enter(pass_: Any, *arguments: Any) -> Any:
        return (fault.enter if pass_.model is candidates[0] else right["enter"])(pass_, *arguments)

    patch.setattr(job, "open_candidate", misread)
    patch.setitem(attention.FORMS, "absorbed", fault.form)
    patch.setattr("gguf_mla.forward.mla.indexer", Patched(indexer, prepare=prepare))
    patch.setattr("verify.levels.logits.prediction", Patched(prediction, enter=enter))


class Patched:
    """A module with other functions for those who got it so; the faults go on using the right ones."""

    def __init__(self, module: Any, **functions: Any) -> None:
        self._module, self._functions = module, functions

    def __getattr__(self, name: str) -> Any:
        return self._functions[name] if name in self._functions else getattr(self._module, name)


def misread_proof(fault: SparseFault, stored: str, files: Path, patch: pytest.MonkeyPatch) -> Proof:
    read_wrongly(fault, patch)
    return prove(request(files, "v32", files / f"v32-{stored}.gguf", fault.level))


@pytest.mark.parametrize(
    ("fault", "stored"),
    [
        pytest.param(fault, stored, id=f"{fault.name}-{stored}")
        for fault in READER_FAULTS
        for stored in ("F32", "Q4_K_M")
        if stored not in fault.hidden_by
    ],
)
def test_a_wrong_reader_is_found_and_blamed(
    fault: SparseFault, stored: str, sparse_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proof = misread_proof(fault, stored, sparse_files, monkeypatch)
    blamed(proof, fault.level, fault.blame)
    choice = proof.attention[0].choice
    if fault.chosen and stored == "F32":
        # One factor for all of a query's tokens leaves their order: the scores show it, the choices cannot.
        assert choice.same == choice.sets
    elif "indexer" in fault.blame and stored == "F32":
        assert choice.same < choice.sets


def test_a_right_context_shift_is_right(sparse_files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fault = SparseFault("a right shift", "attention", "", prepare=shifted(shift))
    proof = misread_proof(fault, "F32", sparse_files, monkeypatch)
    assert proof.right, proof.findings[0].sentence
