"""Every fault of the catalogue is found at its level and blamed on what was damaged; the clean file passes."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np
import pytest

from gguf_mla.forward import attention, layers
from tests.support import hub
from tests.support.command import convert
from tests.support.matrices import write_imatrix
from tests.verify.faults import FAULTS, READER_FAULTS, Fault, Image, ReaderFault, blamed
from verify import job
from verify.job import Request, prove

if TYPE_CHECKING:
    from pathlib import Path

    from verify.opening import Candidate, Reference

CLEAN = (
    "F32", "F16", "BF16", "Q8_0", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M", "Q2_K", "IQ2_XXS", "IQ1_S", "MXFP4_MOE",
)  # fmt: skip
FAULTY = ("Q8_0", "Q4_K_M", "IQ1_S")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled checkpoint in every type, converted in one go with an importance matrix that says nothing."""
    directory = tmp_path_factory.mktemp("clean")
    convert(hub.BUNDLED, directory / "F32.gguf", "F32")
    shapes = [(name, shape) for name, (shape, _, _) in Image.of(directory / "F32.gguf").tensors.items() if shape[1:]]
    counts = {name: math.prod(shape[:-2]) for name, shape in shapes}
    entries = {
        name: (np.ones((counts[name], shape[-1]), np.float32), np.ones(counts[name], np.float32))
        for name, shape in shapes
    }
    imatrix = directory / "imatrix.gguf"
    write_imatrix(imatrix, entries, datasets=[], chunk_count=1, chunk_size=512)
    more = [option for name in CLEAN[2:] for option in ("--type", name)]
    convert(hub.BUNDLED, directory / "{type}.gguf", "F16", *more, "--imatrix", imatrix)
    return directory


def request(candidate: Path, level: str = "logits") -> Request:
    return Request(hub.BUNDLED, candidate, level, context=256, chunks=1, threads=2)


@pytest.mark.parametrize("kind", CLEAN)
def test_the_clean_file_is_right(kind: str, files: Path) -> None:
    proof = prove(request(files / f"{kind}.gguf"))
    assert proof.right, proof.findings[0].sentence
    assert list(proof.seconds) == ["structure", "weights", "attention", "logits"]


@pytest.fixture(scope="module")
def images(files: Path) -> dict[str, Image]:
    return {kind: Image.of(files / f"{kind}.gguf") for kind in FAULTY}


def seen(fault: Fault) -> list[str]:
    """Structure is the same for every type."""
    return ["Q8_0"] if fault.level == "structure" else [kind for kind in FAULTY if kind not in fault.hidden_by]


@pytest.mark.parametrize(
    ("fault", "kind"),
    [pytest.param(fault, kind, id=f"{fault.name}-{kind}") for fault in FAULTS for kind in seen(fault)],
)
def test_a_fault_is_found_and_blamed(fault: Fault, kind: str, images: dict[str, Image], tmp_path: Path) -> None:
    image = copy.deepcopy(images[kind])
    fault.damage(image)
    proof = prove(request(image.write(tmp_path / "faulty.gguf"), "weights"))
    blamed(proof, fault.level, fault.blame)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        pytest.param(fault, kind, id=f"{fault.name}-{kind}")
        for fault in READER_FAULTS
        for kind in ("F32", "Q8_0")
        if kind not in fault.hidden_by
    ],
)
def test_a_wrong_reader_is_found_and_blamed(
    fault: ReaderFault, kind: str, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = job.open_candidate

    def misread(path: Path, reference: Reference) -> Candidate:
        candidate = opened(path, reference)
        model = dataclasses.replace(fault.model(candidate.weights.model), theta=candidate.weights.model.theta)
        return dataclasses.replace(candidate, weights=dataclasses.replace(candidate.weights, model=model))

    right = layers.route
    monkeypatch.setattr(job, "open_candidate", misread)
    monkeypatch.setitem(attention.FORMS, "absorbed", fault.form)
    calls = []

    def route(*arguments: object) -> object:
        calls.append(arguments)  # both sides route in turn, the reference first
        return (right if len(calls) % 2 else fault.route)(*arguments)

    monkeypatch.setattr(layers, "route", route)
    blamed(prove(request(files / f"{kind}.gguf")), fault.level, fault.blame)
