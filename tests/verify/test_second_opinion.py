"""Decoders of checkpoints that are wrong: converter and judge share them, so only another library can tell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gguf_mla.ggtypes.shared import floats
from gguf_mla.sources.checkpoint import open_checkpoint
from gguf_mla.sources.formats.shared import coded, kernels
from tests.support import hub, safetensors_file, v4
from tests.support.command import convert
from tests.support.kinds import FP8_BLOCK
from verify.findings import Grade
from verify.job import Request, prove
from verify.levels import second_opinion
from verify.raw_rows import open_raw

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gguf_mla.sources.safetensors import StoredTensor

SMALL: dict[str, Any] = {
    "num_hidden_layers": 2,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "num_nextn_predict_layers": 0,
    "tame": True,
}
KINDS = ("v3", "v3-f16", "v3-f32", "v3fp8", "v3fp8-f32-powers", "v3fp8-e8m0", "v3fp8-uint8", "kimi-int4")
FP8_KINDS = ("v3fp8", "v3fp8-e8m0", "v3fp8-uint8")

decode_groups = kernels.decode_groups
values_of, decoded_scales, to_float32 = coded.values_of, coded.decoded_scales, floats.to_float32


def other_scales(change: Callable[[np.ndarray], np.ndarray]) -> Callable[..., np.ndarray]:
    def scales(weight: coded.CodedTensor, first: int, last: int) -> np.ndarray:
        return np.ascontiguousarray(change(weight._all_scales)[first:last])

    return scales


def bytes_as_numbers(scale: StoredTensor, first: int = 0, last: int | None = None) -> np.ndarray:
    return scale.read(first, last).astype(np.float32)


def other_order(codes: np.ndarray, *rest: Any) -> None:
    decode_groups(codes << 4 | codes >> 4, *rest)


def unsigned(codes: np.ndarray, scales: np.ndarray, group: int, out: np.ndarray) -> None:
    decode_groups(codes, scales, group, out)
    out += 8 * scales.repeat(group, axis=1)[:, : out.shape[1]]


@dataclass(frozen=True)
class Misreading:
    """A fault of a reader: what is put in a function's place, and the checkpoints in which it shows."""

    module: Any
    function: str
    wrong: Callable[..., Any]
    kinds: tuple[str, ...]


MISREADINGS = {
    "exponent bias off by one": Misreading(coded, "values_of", lambda dtype: values_of(dtype) * 2, FP8_KINDS),
    "scale of the next block": Misreading(
        coded.CodedTensor, "_scales", other_scales(lambda scales: np.roll(scales, -1, axis=1)), FP8_KINDS
    ),
    "scale of the block above": Misreading(
        coded.CodedTensor, "_scales", other_scales(lambda scales: np.roll(scales, 1, axis=0)), FP8_KINDS
    ),
    "scales by columns": Misreading(
        coded.CodedTensor,
        "_scales",
        other_scales(lambda scales: scales.ravel().reshape(scales.shape, order="F")),
        FP8_KINDS,
    ),
    "E8M0 read as a number": Misreading(coded, "decoded_scales", bytes_as_numbers, ("v3fp8-e8m0", "v3fp8-uint8")),
    "nibbles in the other order": Misreading(kernels, "decode_groups", other_order, ("kimi-int4",)),
    "no offset of 8": Misreading(kernels, "decode_groups", unsigned, ("kimi-int4",)),
}
CASES = [(name, kind) for name, fault in MISREADINGS.items() for kind in fault.kinds]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("second-opinion")
    for kind in KINDS:
        for shard in hub.write(directory / kind, kind, **SMALL).glob("*.safetensors"):
            vary_exponents(shard)
    return directory


def vary_exponents(shard: Path) -> None:
    """Raise E8M0 scales by 0 to 2: those of made-up weights are nearly all the same, and then no order can be wrong."""
    header, start = safetensors_file.read_header(shard)
    content = bytearray(shard.read_bytes())
    for name, entry in header.items():
        if name.endswith("_scale_inv") and entry["dtype"] in ("F8_E8M0", "U8"):
            begin, end = (start + offset for offset in entry["data_offsets"])
            row, col = np.indices(entry["shape"])
            raised = np.frombuffer(content[begin:end], np.uint8).reshape(entry["shape"]) + (row + 2 * col) % 3
            content[begin:end] = raised.astype(np.uint8).tobytes()
    shard.write_bytes(content)


@pytest.mark.parametrize("kind", KINDS)
def test_the_libraries_agree_on_every_format(kind: str, checkpoints: Path) -> None:
    assert second_opinion.of_checkpoint(open_checkpoint(checkpoints / kind), threads=2) == []


def test_the_libraries_agree_on_every_tensor_of_a_v4(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(v4.write(tmp_path / "v4", "v4-flash", num_hidden_layers=4, n_routed_experts=4))
    raw = open_raw(tmp_path / "v4", (tmp_path / "v4").glob("*.safetensors"), checkpoint.config["quantization_config"])
    assert [name for name in checkpoint.tensors if not raw.judged(name)] == []
    assert second_opinion.of_checkpoint(checkpoint, threads=2) == []


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_only_the_second_opinion_finds_a_wrong_reader(
    name: str, kind: str, checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = MISREADINGS[name]
    monkeypatch.setattr(fault.module, fault.function, fault.wrong)
    convert(checkpoints / kind, tmp_path / "f32.gguf", "F32")
    (tmp_path / "ids.txt").write_text(" ".join(map(str, range(100, 124))))
    request = Request(checkpoints / kind, tmp_path / "f32.gguf", tokens=tmp_path / "ids.txt", threads=2)
    proof = prove(request)
    assert (proof.grade, proof.tensors) == (Grade.CANNOT_TELL, []), "the file may be right"
    found = proof.findings
    assert found
    for finding in found:
        assert (finding.level, finding.grade) == ("weights", Grade.CANNOT_TELL)
        assert "reader is at fault" in finding.what
        assert finding.expected != finding.found
    quantized = ".mlp.experts." if kind == "kimi-int4" else "_proj"
    assert all(quantized in finding.subject for finding in found)
    monkeypatch.setattr(second_opinion, "of_checkpoint", lambda *_: [])
    assert prove(request).right, "without it, every level passes"


def test_a_wrong_reader_of_plain_floats_is_found(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def truncated(x: np.ndarray, kind: str) -> np.ndarray:
        found: np.ndarray = to_float32(x, kind)
        return (found.view(np.uint32) & np.uint32(0xFFFE0000)).view(np.float32)

    monkeypatch.setattr(second_opinion.floats, "to_float32", truncated)
    found = second_opinion.of_checkpoint(open_checkpoint(checkpoints / "v3"), threads=1)
    assert "ml_dtypes decodes BF16 otherwise, in row 0, column " in found[0].what


def test_a_partial_block_at_the_end_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last row lies in another block row than the first, here one that is not whole."""
    config = hub.write(tmp_path / "odd", "v3fp8", intermediate_size=FP8_BLOCK + 8, **SMALL)
    name = "model.layers.0.mlp.gate_proj.weight"

    def first_row_forgotten(weight: coded.CodedTensor, first: int, last: int) -> np.ndarray:
        return weight._all_scales[: last - first]

    assert open_checkpoint(config).tensors[name].shape == (FP8_BLOCK + 8, 256)
    monkeypatch.setattr(coded.CodedTensor, "_scales", first_row_forgotten)
    found = {finding.subject: finding for finding in second_opinion.of_checkpoint(open_checkpoint(config), threads=1)}
    assert f"in row {FP8_BLOCK + 7}" in found[name].what


def test_a_gguf_reference_is_read_by_gguf_py(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(checkpoints / "v3", tmp_path / "q8.gguf", "Q8_0")
    convert(checkpoints / "v3", tmp_path / "f32.gguf", "F32")
    decode = second_opinion.codec.decode
    monkeypatch.setattr(
        second_opinion.codec, "decode", lambda rows, kind: decode(rows, kind) * (1 + (kind == "Q8_0")), raising=True
    )
    proof = prove(Request(tmp_path / "q8.gguf", tmp_path / "f32.gguf", level="weights"))
    assert proof.findings[0].subject == "token_embd.weight"
    assert "gguf-py decodes Q8_0 otherwise" in proof.findings[0].what
    assert proof.tensors == []
