"""What happened to a file explains its error, and nothing else does: noise and damage have no history."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.support import hub
from tests.support.command import convert, gguf_mla
from tests.verify.faults import Image
from verify.findings import Grade
from verify.job import Proof, Request, prove
from verify.levels.history import allowances
from verify.limits import Limits, Stage, allowed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LEGACY_TYPES = ("Q8_0", "Q4_K_M")


def run(*arguments: object) -> None:
    answer = gguf_mla(*arguments, "--quiet")
    assert answer.status == 0, answer.output


def proven(reference: Path, candidate: Path, level: str = "weights") -> Proof:
    return prove(Request(reference, candidate, level, context=64, chunks=1, threads=2))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled checkpoint in some types; legacy files and their upgrades; files made finer and coarser."""
    directory = tmp_path_factory.mktemp("made")
    convert(hub.BUNDLED, directory / "{type}.gguf", "F32", "--type", "Q8_0", "--type", "Q4_K_M")
    run("downgrade", directory / "F32.gguf", directory / "legacy-F32.gguf")
    legacy_of(directory / "legacy-F32.gguf", directory)
    for first, second in (("Q4_K_M", "Q8_0"), ("Q8_0", "Q4_K_M")):
        out = directory / f"{first}-{second}.gguf"
        run("quantize", directory / f"{first}.gguf", out, second, "--allow-requantize")
    return directory


def legacy_of(plain: Path, directory: Path) -> None:
    run("quantize", plain, directory / "legacy-{type}.gguf", *LEGACY_TYPES)
    for name in LEGACY_TYPES:
        run("upgrade", directory / f"legacy-{name}.gguf", directory / f"up-{name}.gguf")


@pytest.mark.parametrize("kind", LEGACY_TYPES)
def test_legacy_files_and_their_upgrades_are_not_called_wrong(kind: str, made: Path) -> None:
    legacy, upgraded = made / f"legacy-{kind}.gguf", made / f"up-{kind}.gguf"
    assert proven(hub.BUNDLED, legacy, "logits").grade is Grade.RIGHT
    proof = proven(hub.BUNDLED, upgraded, "logits")
    (finding,) = (finding for finding in proof.findings if finding.level == "weights")
    assert finding.subject == "blk.0.attn_k_b.weight"
    assert finding.what == "as if quantized twice: Q8_0 in an attn_kv_b, then Q8_0, like 2 more tensors"
    assert proof.grade is Grade.DIFFERS
    assert proven(legacy, upgraded).right
    assert proven(upgraded, legacy).right


@pytest.mark.parametrize("experts", [4, 16])
def test_so_are_those_of_other_numbers_of_experts(experts: int, tmp_path: Path) -> None:
    """With 8, attn_kv_b is Q8_0 in every file type; with others it has the type's own."""
    options = {"num_hidden_layers": 2, "n_routed_experts": experts, "num_experts_per_tok": 2}
    checkpoint = hub.write(tmp_path / "hub", "v3", **options)
    convert(checkpoint, tmp_path / "F32.gguf", "F32")
    run("downgrade", tmp_path / "F32.gguf", tmp_path / "legacy-F32.gguf")
    legacy_of(tmp_path / "legacy-F32.gguf", tmp_path)
    for name in LEGACY_TYPES:
        assert proven(checkpoint, tmp_path / f"legacy-{name}.gguf").grade is Grade.RIGHT
        proof = proven(checkpoint, tmp_path / f"up-{name}.gguf")
        assert proof.grade is Grade.DIFFERS
        assert all("in an attn_kv_b, then Q8_0" in finding.what for finding in proof.findings)


def test_a_file_made_finer_has_the_coarser_error(made: Path) -> None:
    proof = proven(hub.BUNDLED, made / "Q4_K_M-Q8_0.gguf", "logits")
    said = {finding.what.split(", like")[0] for finding in proof.findings if finding.level == "weights"}
    twice = "as if quantized twice: {}, then Q8_0"
    assert said == {twice.format(name) for name in ("Q4_K", "Q5_0", "Q5_K", "Q6_K")}
    assert proof.grade is Grade.DIFFERS
    assert proof.candidate is not None
    assert proof.candidate.divergence(Limits()) > Limits().of("Q4_K").kld / 2  # that of Q4_K_M, not of Q8_0
    assert proven(hub.BUNDLED, made / "Q8_0-Q4_K_M.gguf").grade is Grade.RIGHT


@pytest.mark.parametrize(("reference", "candidate"), [("Q8_0", "F32"), ("Q4_K_M", "Q8_0"), ("legacy-Q8_0", "Q8_0")])
def test_a_reference_coarser_than_the_file_cannot_tell_more_than_it_holds(
    reference: str, candidate: str, made: Path
) -> None:
    proof = proven(made / f"{reference}.gguf", made / f"{candidate}.gguf")
    assert proof.grade is Grade.RIGHT
    assert any("The reference is quantized itself" in warning for warning in proof.warnings)


def noisy(x: np.ndarray) -> np.ndarray:
    """Noise of the size of Q4_K's error, everywhere."""
    noise = np.random.default_rng(5).standard_normal(x.shape).astype(np.float32)
    return x + 0.07 * np.sqrt(np.mean(x * x)).astype(np.float32) * noise


def one_block(x: np.ndarray) -> np.ndarray:
    broken = x.copy()
    broken[1, 100, :32] *= 1.1
    return broken


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("blk.1.attn_q_b.weight", noisy),
        ("blk.1.attn_k_b.weight", noisy),
        ("blk.1.attn_k_b.weight", one_block),
        ("blk.1.ffn_up_exps.weight", lambda x: x * np.float32(1.05)),
        ("blk.1.attn_k_b.weight", lambda x: x * 0),
    ],
)
def test_noise_and_damage_are_not_a_history(
    name: str, how: Callable[[np.ndarray], np.ndarray], made: Path, tmp_path: Path
) -> None:
    image = Image.of(made / "Q8_0.gguf")
    image.change(name, how)
    proof = proven(hub.BUNDLED, image.write(tmp_path / "wrong.gguf"))
    assert [finding.subject for finding in proof.findings if finding.grade is Grade.WRONG] == [name]


def test_errors_of_several_stages_by_hand() -> None:
    limits = Limits()
    q8, q4 = limits.of("Q8_0"), limits.of("Q4_K")
    both = allowed([Stage("Q4_K"), Stage("Q8_0")], limits)
    assert both.rms == pytest.approx((q8.rms**2 + q4.rms**2) ** 0.5)
    assert both.kld == pytest.approx(q8.kld + q4.kld)
    assert both.peak == pytest.approx(q4.peak + q8.peak * (1 + q4.peak))
    assert allowed([Stage("TQ1_0"), Stage("IQ1_S")], limits).row < 1  # a row of zeros has 1


def test_a_turned_block_is_bounded_by_its_column() -> None:
    """A small value beside a large one of its column may be off by as much as that one."""
    reference = np.ones((64, 32), np.float32)
    reference[3, 5] = 100
    limits = Limits()
    bound, energy = allowances(reference, [Stage("Q8_0", turned=True)], limits, 0.0)
    peak, row = limits.of("Q8_0").peak, limits.of("Q8_0").row
    assert bound[20, 5] == pytest.approx(100 * peak)  # the same block of 32 rows
    assert bound[40, 5] == pytest.approx(peak)  # the next
    assert bound[20, 6] == pytest.approx(peak)
    assert energy[20, 5] == pytest.approx(row**2 * (100**2 + 31) / 32)
    straight, _ = allowances(reference, [Stage("Q8_0")], limits, 0.0)
    assert straight[3, 6] == pytest.approx(100 * peak)
    assert straight[20, 5] == pytest.approx(peak)
