"""Byte for byte: made from the reference with these settings or not, and a single bit that has changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.support import hub
from tests.support.command import convert, gguf_mla
from tests.support.matrices import write_imatrix
from tests.verify.faults import Image
from verify.findings import Grade
from verify.job import Proof, Request, prove

if TYPE_CHECKING:
    from pathlib import Path


def exact(reference: Path, candidate: Path, imatrix: Path | None = None) -> Proof:
    return prove(Request(reference, candidate, "weights", threads=2, exact=True, imatrix=imatrix))


def same(proof: Proof) -> int:
    return sum(not each.changed for each in proof.exact)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of the bundled checkpoint, with and without importance, and a legacy one with its upgrade."""
    directory = tmp_path_factory.mktemp("exact")
    convert(hub.BUNDLED, directory / "{type}.gguf", "F32", "--type", "Q8_0", "--type", "Q4_K_M")
    rng, entries = np.random.default_rng(1), {}
    for name, (shape, _, _) in Image.of(directory / "F32.gguf").tensors.items():
        rows = int(np.prod(shape[:-2]))
        if shape[1:] and ".attn_output" not in name:  # one tensor goes without
            sums, counts = rng.lognormal(0, 1, (rows, shape[-1])).astype(np.float32), np.ones(rows, np.float32)
            if "_exps" in name:
                sums[1], counts[1] = 0, 0  # an expert that saw no token
            entries[name] = (sums, counts)
    write_imatrix(directory / "imatrix.gguf", entries, datasets=[], chunk_count=1, chunk_size=512)
    weighted = ("Q4_K_M", "--imatrix", directory / "imatrix.gguf")
    convert(hub.BUNDLED, directory / "weighted.gguf", *weighted)
    convert(hub.BUNDLED, directory / "filled-in.gguf", *weighted, "--unseen", "layer-mean")
    for job, *arguments in (
        ("downgrade", directory / "F32.gguf", directory / "legacy-F32.gguf"),
        ("quantize", directory / "legacy-F32.gguf", directory / "legacy.gguf", "Q4_K_M"),
        ("upgrade", directory / "legacy.gguf", directory / "upgraded.gguf"),
    ):
        assert gguf_mla(job, *arguments, "--quiet").status == 0
    return directory


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_K_M", "legacy", "upgraded"])
def test_a_file_made_from_the_reference_is_the_same_in_every_block(kind: str, made: Path) -> None:
    proof = exact(hub.BUNDLED, made / f"{kind}.gguf")
    assert len(proof.exact) > 50
    assert same(proof) == len(proof.exact)
    assert not [finding for finding in proof.findings if finding.level == "exact"]


def test_a_file_made_from_a_file_is_the_same_as_that(made: Path) -> None:
    for reference, candidate in (("legacy", "upgraded"), ("legacy-F32", "legacy"), ("F32", "Q4_K_M")):
        proof = exact(made / f"{reference}.gguf", made / f"{candidate}.gguf")
        assert same(proof) == len(proof.exact)


def test_importance_is_part_of_the_settings(made: Path) -> None:
    proof = exact(hub.BUNDLED, made / "weighted.gguf", made / "imatrix.gguf")
    assert same(proof) == len(proof.exact)
    assert {(each.type, each.way.weighted) for each in proof.exact if "attn_output" in each.name} == {("Q5_K", False)}
    without = exact(hub.BUNDLED, made / "weighted.gguf")
    assert without.grade is Grade.DIFFERS
    assert "was not made from this reference with these settings" in without.findings[0].what


def test_experts_that_saw_no_token_are_encoded_as_the_file_says(made: Path) -> None:
    proof = exact(hub.BUNDLED, made / "filled-in.gguf", made / "imatrix.gguf")
    assert same(proof) == len(proof.exact)


def low_bit_flipped(image: Image, name: str, position: int) -> None:
    shape, kind, data = image.tensors[name]
    broken = bytearray(data)
    broken[position] ^= 1
    image.tensors[name] = (shape, kind, bytes(broken))


@pytest.mark.parametrize(
    ("kind", "name", "position", "place"),
    [
        ("Q4_K_M", "blk.1.ffn_up_exps.weight", (3 * 256 + 7) * 144 + 100, "1 of 2048 blocks, the first in expert 3,"),
        ("Q8_0", "blk.2.attn_v_b.weight", ((1 * 128 + 5) * 16 + 2) * 34 + 9, "the first in head 1, row 5, column 64"),
        ("legacy", "blk.0.attn_kv_b.weight", (256 * 16 + 3) * 34 + 9, "the first in head 1, row 0, column 96"),
        ("F32", "token_embd.weight", 4 * (256 * 11 + 3), "1 of 524288 values, the first in row 11, column 3"),
    ],
)  # fmt: skip
def test_a_flipped_low_bit_is_found(
    kind: str, name: str, position: int, place: str, made: Path, tmp_path: Path
) -> None:
    image = Image.of(made / f"{kind}.gguf")
    low_bit_flipped(image, name, position)
    proof = exact(hub.BUNDLED, image.write(tmp_path / "flipped.gguf"))
    found = [finding for finding in proof.findings if finding.level == "exact"]
    assert [(finding.subject, finding.grade) for finding in found] == [(name, Grade.WRONG)]
    assert place in found[0].sentence


def test_damage_and_other_settings_are_told_apart(made: Path, tmp_path: Path) -> None:
    image = Image.of(made / "Q4_K_M.gguf")
    weighted = Image.of(made / "weighted.gguf")
    name = "blk.1.ffn_up_exps.weight"
    image.tensors[name] = weighted.tensors[name]
    proof = exact(hub.BUNDLED, image.write(tmp_path / "mixed.gguf"))
    assert [(finding.subject, finding.grade) for finding in proof.findings] == [(name, Grade.DIFFERS)]


def test_the_command_has_it_as_an_option(made: Path) -> None:
    options: tuple[Any, ...] = ("verify", hub.BUNDLED, made / "Q8_0.gguf", "--level", "weights", "--exact")
    answer = gguf_mla(*options)
    assert answer.status == 0
    assert "bytes of" in answer.output
    assert "exact (" in answer.output
    assert gguf_mla(*options[:-1], "--imatrix", made / "imatrix.gguf").status == 2
