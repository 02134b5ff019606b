"""`gguf-mla upgrade` and `downgrade`, against a check that knows the layouts on its own and decodes with `gguf`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
from click.testing import CliRunner

from gguf_mla.cli.main import main
from gguf_mla.container.reader import GgufFile, open_gguf
from gguf_mla.container.splits import open_gguf_parts
from gguf_mla.container.values import Value, boolean, string, u32
from gguf_mla.importance.matrix import read_imatrix
from gguf_mla.plan import halves, upgrade
from gguf_mla.stream import worker
from tests.support import hub, legacy
from tests.support.matrices import write_imatrix
from tests.support.weights import gguf_weights
from verify import rounding

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from gguf_mla.container.reader import GgufTensor
    from gguf_mla.plan.jobs import Part
    from tests.support.judges import Engine

PURE = ("Q2_K", "Q3_K_M", "Q4_0", "Q4_1", "Q4_K_M", "Q5_0", "Q5_1", "Q5_K_M", "Q6_K", "Q8_0", "IQ4_XS", "F16")
HEADS, NOPE, VALUE, RANK = 4, 128, 128, 512  # of the bundled checkpoint
NAMES = ("attn_kv_b", "attn_k_b", "attn_v_b")
# Half a step of Q8_0, and what rounding the scale to float16 adds for a value of 127 steps.
HALF_STEP = 0.5 + 127 / 2048


def run(*arguments: object, status: int = 0) -> Any:
    result = CliRunner().invoke(main, [*map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == status, result.output
    return result


@pytest.fixture(scope="session")
def floats(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The bundled checkpoint as MLA files."""
    directory = tmp_path_factory.mktemp("layouts")
    run("convert", hub.BUNDLED, directory / "{type}.gguf", "--type", "F32", "--type", "BF16", "--quiet")
    return {kind: directory / f"{kind}.gguf" for kind in ("F32", "BF16")}


@pytest.fixture(scope="session")
def old(floats: dict[str, Path]) -> Path:
    """A legacy file in BF16."""
    return legacy.write_variant(floats["BF16"], floats["BF16"].with_name("legacy.gguf"), "legacy")


@pytest.fixture(autouse=True)
def in_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def decoded(tensor: GgufTensor) -> NDArray[np.float32]:
    kind = gguf.GGMLQuantizationType[tensor.type]
    return gguf.quants.dequantize(tensor.read(), kind).reshape(tensor.shape)


def heads(tensor: GgufTensor) -> NDArray[np.uint8]:
    """The bytes of an attn_kv_b, [head, row of that head, byte]."""
    return tensor.read().reshape(HEADS, NOPE + VALUE, -1)


def is_attention(name: str) -> bool:
    return any(f".{kind}." in name for kind in NAMES)


def check_others(a: GgufFile, b: GgufFile) -> None:
    """Every tensor outside of the three has the same name, place, shape, type and bytes."""
    left, right = ([t for t in file.tensors.values() if not is_attention(t.name)] for file in (a, b))
    assert [(t.name, t.shape, t.type) for t in left] == [(t.name, t.shape, t.type) for t in right]
    assert all(x.read().tobytes() == y.read().tobytes() for x, y in zip(left, right, strict=True))


def check_upgraded(before: GgufFile, after: GgufFile) -> None:
    """Everything that an upgrade promises."""
    check_others(before, after)
    assert not any(".attn_kv_b." in name for name in after.tensors)
    for layer in range(3):
        k_b, v_b = (after.tensors[f"blk.{layer}.{kind}.weight"] for kind in ("attn_k_b", "attn_v_b"))
        assert k_b.shape == (HEADS, RANK, NOPE)
        assert v_b.shape == (HEADS, VALUE, RANK)
        kv = before.tensors[f"blk.{layer}.attn_kv_b.weight"]
        assert v_b.type == kv.type
        assert v_b.read().tobytes() == heads(kv)[:, NOPE:].tobytes()
        check_keys(decoded(kv).reshape(HEADS, NOPE + VALUE, RANK)[:, :NOPE], k_b, kv.type)
    check_metadata(after)


def check_keys(expected: NDArray[np.float32], k_b: GgufTensor, stored: str) -> None:
    found = decoded(k_b).transpose(0, 2, 1)
    if stored in ("F32", "F16", "BF16"):
        assert k_b.type == stored
        assert found.tobytes() == expected.tobytes()
        return
    assert k_b.type == "Q8_0"
    scales = k_b.read().reshape(-1, 34)[:, :2].copy().view(np.float16).astype(np.float32)
    steps = np.repeat(scales, 32, axis=1).reshape(k_b.shape).transpose(0, 2, 1)
    assert (np.abs(found - expected) <= HALF_STEP * np.abs(steps) + 1e-12).all()


def check_metadata(file: GgufFile) -> None:
    found = {key: file.metadata[f"deepseek2.attention.{key}"] for key in
             ("head_count_kv", "key_length", "value_length", "key_length_mla", "value_length_mla")}  # fmt: skip
    assert found == {
        "head_count_kv": 1, "key_length": 576, "value_length": 512, "key_length_mla": 192, "value_length_mla": 128,
    }  # fmt: skip
    assert not any("mla_optimized" in key for key in file.metadata)


@pytest.mark.parametrize("kind", PURE)
def test_there_and_back_from_every_type(old: Path, kind: str) -> None:
    run("quantize", old, "old.gguf", kind, "--pure", "--quiet")
    run("upgrade", "old.gguf", "new.gguf")
    before, after = open_gguf("old.gguf"), open_gguf("new.gguf")
    check_upgraded(before, after)
    run("downgrade", "new.gguf", "back.gguf")
    back = open_gguf("back.gguf")
    assert list(back.values.items()) == list(before.values.items())
    check_others(before, back)
    for layer in range(3):
        a, b = (file.tensors[f"blk.{layer}.attn_kv_b.weight"] for file in (before, back))
        assert (a.shape, a.type) == (b.shape, b.type)
        assert heads(a)[:, NOPE:].tobytes() == heads(b)[:, NOPE:].tobytes()


@pytest.mark.parametrize("variant", legacy.VARIANTS)
@pytest.mark.parametrize("kind", ["F32", "BF16"])
def test_floats_come_back_byte_for_byte_from_every_variant(floats: dict[str, Path], kind: str, variant: str) -> None:
    old = legacy.write_variant(floats[kind], Path("old.gguf"), variant)
    run("upgrade", old, "new.gguf")
    native, new = open_gguf(floats[kind]), open_gguf("new.gguf")
    assert list(new.tensors) == list(native.tensors)
    assert all(t.read().tobytes() == native.tensors[t.name].read().tobytes() for t in new.tensors.values())
    assert all(t.shape == native.tensors[t.name].shape for t in new.tensors.values())
    assert dict(new.values) == dict(native.values)
    run("downgrade", "new.gguf", "back.gguf")
    plain = legacy.write_variant(floats[kind], Path("plain.gguf"), "legacy")
    assert Path("back.gguf").read_bytes() == plain.read_bytes()


@pytest.mark.parametrize("variant", ["beside", "tagged", "stacked"])
def test_halves_that_are_there_are_kept_as_they_are(floats: dict[str, Path], variant: str) -> None:
    old = legacy.write_variant(floats["BF16"], Path("float.gguf"), variant)
    run("quantize", old, "old.gguf", "Q4_K_M", "--quiet")
    run("upgrade", "old.gguf", "new.gguf")
    before, after = open_gguf("old.gguf"), open_gguf("new.gguf")
    check_others(before, after)
    check_metadata(after)
    for name in (f"blk.{layer}.attn_{half}_b.weight" for layer in range(3) for half in "kv"):
        assert after.tensors[name].type == before.tensors[name].type
        assert after.tensors[name].read().tobytes() == before.tensors[name].read().tobytes()
        assert len(after.tensors[name].shape) == 3


def rows_of_values(source: str, heads: int, nope: int, value: int, rank: int) -> tuple[Part, ...]:
    return tuple(replace(part, columns=rank) for part in halves.value_parts(source, heads, nope, value))


def rows_of_keys(source: str, heads: int, nope: int, value: int) -> tuple[Part, ...]:
    return tuple(replace(part, columns=None) for part in halves.key_parts(source, heads, nope, value, 0))


def reversed_keys(source: str, heads: int, nope: int, value: int, rank: int) -> tuple[Part, ...]:
    return halves.key_parts(source, heads, nope, value, rank)[::-1]


def reversed_values(source: str, heads: int, nope: int, value: int) -> tuple[Part, ...]:
    return halves.value_parts(source, heads, nope, value)[::-1]


def not_transposed(rows: Any) -> NDArray[Any]:
    """The rows as they are, in the shape that the transposed ones have."""
    values = rows.source.read(rows.task.start, rows.task.stop)
    return values.reshape(values.shape[::-1])


@pytest.mark.parametrize("kind", ["F32", "Q4_0"])
@pytest.mark.parametrize(
    ("place", "what", "fault"),
    [
        (worker.Rows, "_decoded", not_transposed),
        (upgrade, "key_parts", rows_of_values),
        (upgrade, "value_parts", rows_of_keys),
        (upgrade, "key_parts", reversed_keys),
        (upgrade, "value_parts", reversed_values),
    ],
    ids=["transpose", "key split", "value split", "key head order", "value head order"],
)
def test_the_check_sees_every_fault(
    old: Path, kind: str, place: Any, what: str, fault: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run("quantize", old, "old.gguf", kind, "--pure", "--quiet")
    with monkeypatch.context() as patch:
        patch.setattr(place, what, fault)
        run("upgrade", "old.gguf", "new.gguf")
    with pytest.raises(AssertionError):
        check_upgraded(open_gguf("old.gguf"), open_gguf("new.gguf"))
    run("upgrade", "old.gguf", "right.gguf")
    check_upgraded(open_gguf("old.gguf"), open_gguf("right.gguf"))


EARLY = {
    "expert_gating_func": 2,
    "expert_group_count": 8,
    "expert_group_used_count": 4,
    "rope.scaling.yarn_log_multiplier": pytest.approx(0.1),
}


def test_what_early_v3_files_lack_is_filled_in_and_said(old: Path) -> None:
    file = open_gguf(old)
    metadata = {key: value for key, value in file.values.items() if key.removeprefix("deepseek2.") not in EARLY}
    metadata["deepseek2.expert_count"] = u32(256)
    legacy.write(Path("old.gguf"), metadata, {t.name: (t.shape, t.type, t.read()) for t in file.tensors.values()})
    warned = run("upgrade", "old.gguf", "new.gguf").stderr
    found = open_gguf("new.gguf").metadata
    for key, value in EARLY.items():
        assert found[f"deepseek2.{key}"] == value
        assert f"The file has no {key}" in warned


def test_what_a_file_says_itself_stays(old: Path) -> None:
    run("upgrade", old, "new.gguf")
    before, after = open_gguf(old).metadata, open_gguf("new.gguf").metadata
    assert all(after[f"deepseek2.{key}"] == before[f"deepseek2.{key}"] for key in EARLY)


def test_an_unknown_attention_scale_is_said_and_not_guessed() -> None:
    run("convert", hub.write(Path("v2"), "v2", num_hidden_layers=2), "mla.gguf", "--type", "BF16", "--quiet")
    left_out = ("deepseek2.rope.scaling.yarn_log_multiplier", "deepseek2.expert_gating_func")
    legacy.write_variant(Path("mla.gguf"), Path("old.gguf"), "legacy", left_out)
    assert "does not tell which it is" in run("upgrade", "old.gguf", "new.gguf").stderr
    found = open_gguf("new.gguf").metadata
    assert found["deepseek2.expert_gating_func"] == 1
    assert left_out[0] not in found


def test_upgrading_and_quantizing_in_one_pass_is_the_same_as_one_after_the_other(old: Path) -> None:
    run("quantize", old, "one.gguf", "Q4_K_M", "--upgrade", "--quiet")
    run("upgrade", old, "float.gguf", "--quiet")
    run("quantize", "float.gguf", "two.gguf", "Q4_K_M", "--quiet")
    assert Path("one.gguf").read_bytes() == Path("two.gguf").read_bytes()


def test_a_split_model_stays_split_on_request(old: Path) -> None:
    run("split", old, "part", "--split-max-tensors", 20, "--quiet")
    first = min(Path().glob("part-*"))
    run("upgrade", first, "kept", "--keep-split")
    run("upgrade", first, "one.gguf")
    kept, one = open_gguf_parts(min(Path().glob("kept-*"))), open_gguf("one.gguf")
    assert len(kept.files) == 3
    assert {n: t.read().tobytes() for n, t in kept.tensors.items()} == {
        n: t.read().tobytes() for n, t in one.tensors.items()
    }


def test_the_importance_of_a_legacy_file_is_mapped(old: Path) -> None:
    random, names = (
        np.random.default_rng(5),
        ("blk.1.attn_kv_b.weight", "blk.2.attn_kv_b.weight", "blk.1.attn_q_b.weight"),
    )
    shapes = {name: open_gguf(old).tensors[name].shape for name in names}
    entries = {n: (random.random((1, s[-1]), np.float32), np.full(1, 7, np.float32)) for n, s in shapes.items()}
    write_imatrix(Path("old.imatrix"), entries, datasets=["words.txt"], chunk_count=3, chunk_size=256)
    planned = run("upgrade", old, "new.gguf", "--imatrix", "old.imatrix", "--dry-run").stdout
    assert planned.endswith("output: new.imatrix.gguf, the importance of 3 tensors\n")
    assert not any(Path(name).exists() for name in ("new.gguf", "new.imatrix.gguf"))
    run("upgrade", old, "new.gguf", "--imatrix", "old.imatrix")
    mapped = read_imatrix([Path("new.imatrix.gguf")], stand_ins={})
    assert (mapped.datasets, mapped.chunk_count, mapped.chunk_size) == (("words.txt",), 3, 256)
    assert not any("attn_kv_b" in name for name in mapped.names)
    name = "blk.1.attn_v_b.weight"
    rows = mapped.rows(name, open_gguf("new.gguf").tensors[name].shape)
    assert rows is not None
    assert (rows == entries["blk.1.attn_kv_b.weight"][0] / np.float32(7)).all()
    assert rows.shape == (HEADS, RANK)
    name = "blk.1.attn_q_b.weight"
    assert mapped.sums(name)[0].tobytes() == entries[name][0].tobytes()


def changed(path: Path, out: str, **values: Value) -> str:
    """A copy of a file with other metadata."""
    file = open_gguf(path)
    tensors = {t.name: (t.shape, t.type, t.read()) for t in file.tensors.values()}
    legacy.write(Path(out), {**file.values, **{key.replace("__", "."): v for key, v in values.items()}}, tensors)
    return out


def test_what_cannot_be_upgraded_is_a_sentence(old: Path, floats: dict[str, Path]) -> None:
    foreign = changed(old, "foreign.gguf", general__architecture=string("llama"))
    deeper = changed(old, "deeper.gguf", deepseek2__block_count=u32(4))
    heads = changed(old, "heads.gguf", deepseek2__attention__head_count=u32(8))
    rope = changed(old, "rope.gguf", deepseek2__rope__dimension_count=u32(192))
    size = changed(old, "size.gguf", deepseek2__attention__kv_lora_rank=boolean(True))
    Path("cut.gguf").write_bytes(old.read_bytes()[:-5000])
    for path, words in {
        floats["BF16"]: "is in the MLA layout already",
        foreign: "expected the architecture deepseek2, found llama",
        deeper: "layer 3 of 4 has neither attn_kv_b nor both",
        heads: "blk.0.attn_kv_b.weight: does not have the shape",
        rope: "not longer than their rotated part",
        size: "attention.kv_lora_rank is not a size",
        "cut.gguf": "ends too early",
        "missing.gguf": "cannot be read",
    }.items():
        assert words in run("upgrade", path, "out.gguf", status=2).stderr
    assert not Path("out.gguf").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("upgrade", "OLD", "out.gguf", "--k-b-type", "Q4_K"), "cannot be encoded as Q4_K"),
        (("upgrade", "OLD", "out.gguf", "--k-b-type", "Q9"), "cannot be encoded as Q9"),
        (("upgrade", "OLD", "out.gguf", "--k-b-type", "IQ2_XS"), "needs no importance"),
        (("upgrade", "OLD", "out.gguf", "--imatrix", "missing.dat"), "missing.dat"),
        (("upgrade", "OLD", "OLD", "--overwrite"), "one of the inputs"),
        (("downgrade", "OLD", "out.gguf"), "is in the legacy layout already"),
        (("quantize", "OLD", "out.gguf", "COPY", "--upgrade"), "gguf-mla upgrade for a legacy file"),
    ],
)
def test_wrong_requests_are_sentences(old: Path, arguments: tuple[str, ...], words: str) -> None:
    assert words in run(*(old if word == "OLD" else word for word in arguments), status=2).stderr
    assert list(Path().iterdir()) == []


@pytest.mark.engine
def test_llama_cpp_computes_the_same(floats: dict[str, Path], engine: Callable[[Path], Engine]) -> None:
    from tests.support.judges import largest_difference, prompts

    old = legacy.write_variant(floats["F32"], Path("old.gguf"), "legacy")
    run("upgrade", old, "new.gguf")
    before, after = engine(old), engine(Path("new.gguf"))
    model, lengths = gguf_weights(Path("new.gguf")).model, (1, 5, 21, 64, 89, 160)
    for prompt in prompts(2048, lengths):
        tokens, expected = before.next_logprobs(prompt, 2048)
        all_expected = np.empty(2048)
        all_expected[tokens] = expected
        limit = rounding.largest(model, len(prompt), float(expected.std()), 2048 * len(lengths))
        assert largest_difference(*after.next_logprobs(prompt, 2048), all_expected) <= limit
