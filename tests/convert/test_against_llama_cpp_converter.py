"""Every byte as llama.cpp's own converter writes it, by the digests in tests/golden_convert (see its README)."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import golden, hub
from tests.support.command import convert
from tests.support.gguf_file import GgufFile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# key → the pairs (the peer's value, ours) that are right; None: the key is absent there
DELIBERATE: dict[str, list[tuple[Any, Any]]] = {
    # the same regular expressions under the name of the family they were written for
    "tokenizer.ggml.pre": [(["str", "joyai-llm"], ["str", "deepseek-v3"])],
    # tokenizer_config.json says true; the peer believes the ByteLevel post-processor
    "tokenizer.ggml.add_bos_token": [(["bool", False], ["bool", True])],
    # a reader refuses a model without low-rank q that has another depth than V2-Lite, unless the rank is stated
    "deepseek2.attention.q_lora_rank": [(None, ["u32", 0])],
    # llama.cpp does without; another engine of V4's files asks for it
    "deepseek4.vocab_size": [(None, ["u32", 2048])],
    # the model's queries grow with their position, which readers do only where they are told; so its files are wrong
    # beyond the context before YaRN
    "mistral4.attention.temperature_scale": [(None, ["f32", 0.10000000149011612])],
    "mistral4.attention.temperature_length": [(None, ["u32", 32])],
    # readers take softmax where it is missing, which is what Mistral's is
    "mistral4.expert_gating_func": [(None, ["u32", 1])],
    # GLM-4.7-Flash's configuration does not name it, and a reader must guess from the number of layers
    "deepseek2.expert_gating_func": [(None, ["u32", 2])],
}


@pytest.fixture(scope="module", params=golden.CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A golden case's name and its checkpoint, which goes when the next one comes."""
    parent = tmp_path_factory.mktemp(request.param)
    yield request.param, golden.CASES[request.param].write(parent)
    shutil.rmtree(parent)


@pytest.mark.parametrize("kind", golden.TYPES)
def test_tensors_and_metadata_are_the_peers(case: tuple[str, Path], kind: str, tmp_path: Path) -> None:
    name, checkpoint = case
    convert(checkpoint, tmp_path / "ours.gguf", kind, *golden.CASES[name].arguments)
    with GgufFile(tmp_path / "ours.gguf") as file:
        ours = golden.record_of(file)
    (tmp_path / "ours.gguf").unlink()
    peer = golden.load(name)[kind]
    assert differences(peer["tensors"], ours["tensors"]) == {}
    assert undeliberate(differences(peer["metadata"], ours["metadata"])) == {}


def differences(peer: dict[str, Any], ours: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Name → (peer's, ours) where they differ; None where one lacks it."""
    return {n: (peer.get(n), ours.get(n)) for n in sorted(peer | ours) if peer.get(n) != ours.get(n)}


def undeliberate(found: dict[str, tuple[Any, Any]]) -> dict[str, tuple[Any, Any]]:
    return {key: pair for key, pair in found.items() if pair not in DELIBERATE.get(key, [])}


@pytest.mark.parametrize("kind", ["v3fp8-e8m0", "v3fp8-uint8"])
def test_power_of_two_scales_mean_the_same_in_every_storage(kind: str, tmp_path: Path) -> None:
    written = {}
    for name in (kind, "v3fp8-f32-powers"):
        checkpoint = hub.write(tmp_path / name / "model", name, num_hidden_layers=2, n_routed_experts=4)
        convert(checkpoint, tmp_path / name / "out.gguf", "F32")
        written[name] = (tmp_path / name / "out.gguf").read_bytes()
    assert written[kind] == written["v3fp8-f32-powers"]


@pytest.mark.parametrize(("kind", "type_"), [("v3fp8", "BF16"), ("v3", "BF16"), ("v3-f16", "F16"), ("v3-f32", "F32")])
def test_auto_is_the_sources_own_type(kind: str, type_: str, tmp_path: Path) -> None:
    checkpoint = hub.write(tmp_path / "model", kind, num_hidden_layers=2, n_routed_experts=4)
    for option in ("auto", type_):
        convert(checkpoint, tmp_path / f"{option}.gguf", option)
    assert (tmp_path / "auto.gguf").read_bytes() == (tmp_path / f"{type_}.gguf").read_bytes()


@pytest.mark.parametrize("threads", [1, 3, 8])
def test_the_number_of_threads_changes_nothing(threads: int, pristine: Path, tmp_path: Path) -> None:
    convert(pristine, tmp_path / "default.gguf", "Q8_0")
    convert(pristine, tmp_path / "threads.gguf", "Q8_0", "--threads", threads)
    assert (tmp_path / "threads.gguf").read_bytes() == (tmp_path / "default.gguf").read_bytes()
