"""What a user asks for is read once and within bounds: numbers, expressions, metadata, names."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from gguf_mla import units
from gguf_mla.cli.main import main
from gguf_mla.container.reader import open_gguf
from gguf_mla.container.values import Kind, Value, array, boolean, f32, string, u32
from gguf_mla.container.writer import TensorSpec, lay_out
from gguf_mla.errors import InputError
from gguf_mla.layout.names import split_name
from gguf_mla.plan.override_kv import override
from gguf_mla.recipes import parse_tensor_type
from gguf_mla.recipes.expressions import compiled, matches
from tests.support import hub

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("status") / "tiny.gguf"
    done = CliRunner().invoke(main, ["convert", str(hub.BUNDLED), str(path), "--quiet"])
    assert done.exit_code == 0, done.output
    return path


def write_gguf(path: Path, metadata: dict[str, Value], names: tuple[str, ...] = ("t",)) -> Path:
    specs = [TensorSpec(name, (32,), "F32") for name in names]
    laid = lay_out(metadata, specs)
    path.write_bytes(laid.head.ljust(laid.size, b"\0"))
    return path


# ---------------------------------------------------------------------------------------------------------- numbers

LONG = "1" + "0" * 120


@pytest.mark.parametrize(
    "options",
    [
        ("--target-bpw", LONG),
        ("--target-bpw", "nan"),
        ("--target-bpw", "-1"),
        ("--target-bpw", "1e-9"),
        ("--target-size", LONG),
        ("--target-size", LONG + "G"),
        ("--target-size", "5bpw"),
        ("--target-size", "4096"),
        ("--target-bpw", "0.5", "--dry-run"),
        ("--target-size", "1K", "--dry-run"),
        (LONG + "bpw",),
        ("0bpw",),
        ("٣G",),
        ("Q4_0", "--threads", "100000"),
        ("Q4_0", "--threads", LONG),
        ("Q4_0", "--split-max-size", LONG),
        ("Q4_0", "--split-max-tensors", LONG),
        ("Q4_0", "--split-max-size", "nan"),
    ],
    ids=lambda options: " ".join(options)[:30],
)
def test_a_number_that_cannot_be_meant_is_refused_at_once(
    options: tuple[str, ...], model: Path, tmp_path: Path
) -> None:
    begin = time.process_time()
    result = CliRunner().invoke(main, ["quantize", str(model), str(tmp_path / "out.gguf"), *options])
    assert result.exit_code == 2, result.output
    assert len(result.stderr) < 1000
    assert time.process_time() - begin < 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "line",
    [
        "inspect MODEL --context 1e400",
        f"inspect MODEL --context {LONG}",
        f"inspect MODEL --context 9 --sequences {LONG}",
        "inspect MODEL --fit 1e9G",
        f"inspect MODEL --fit {LONG}G",
        "bench quantize --seconds nan",
        "bench quantize --seconds inf",
        "bench dequantize --rows 0",
        f"bench quantize --rows {LONG}",
        "bench convert --fraction 1e999999999",
        "bench convert --fraction 1/0",
        "bench convert --fraction nan",
        "verify MODEL MODEL --context 1000000000000",
        f"verify MODEL MODEL --chunks {LONG}",
        "bench attention --heads -1",
        f"bench attention --cached {LONG}",
    ],
)
def test_no_command_takes_a_number_beyond_reason(line: str, model: Path) -> None:
    result = CliRunner().invoke(main, [word.replace("MODEL", str(model)) for word in line.split()])
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("gguf-mla: error: ")


@pytest.mark.parametrize(("text", "value"), [("1/64", 1 / 64), ("0.25", 0.25), ("1", 1.0)])
def test_fractions_are_read(text: str, value: float) -> None:
    assert units.parse_fraction(text) == value


# ------------------------------------------------------------------------------------------------------ expressions


@pytest.mark.parametrize(
    "pattern",
    [
        "([a-z_.0-9]+)+!",
        "(a*)*",
        "((ab?){2,})+",
        "(a|ab)*c",
        "(?:x+x+)+y",
        "(a{1,2}){1,50}",
        ".*.*.*.*!",
        "(.*)(.*)(.*)(.*)!",
        "(?=(a+)+)b",
        "a?" * 30 + "a" * 30,
        "a*b*c*d*!",
        "x" * 1001,
        "a{99999999999}",
        "(" * 900,
        "(a+)(?:b|c+)*",
    ],
    ids=lambda pattern: pattern[:20],
)
def test_an_expression_that_could_take_forever_is_refused(pattern: str) -> None:
    with pytest.raises(InputError):
        parse_tensor_type(f"{pattern}=Q6_K")


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        (r"blk\.(1[0-9]|2[0-9])\.ffn_.*_exps", "blk.12.ffn_up_exps.weight"),
        (r".*attn.*b\.weight", "blk.0.attn_k_b.weight"),
        (r"blk\.[0-9]+.*exps", "blk.7.ffn_down_exps.weight"),
        ("(ffn_)?(up|down)", "ffn_up"),
        (r"^OUTPUT\.", "output.weight"),
        (r"blk\.([0-9]{1,2})\.ffn_(gate|up|down)_exps\.weight", "blk.60.ffn_gate_exps.weight"),
    ],
)
def test_the_expressions_that_people_write_are_taken(pattern: str, name: str) -> None:
    assert matches(compiled(pattern), name)
    assert not matches(compiled(pattern), name + "x" * 100)


def test_the_slowest_expression_that_is_taken_is_quick() -> None:
    slowest, begin = compiled(".*.*.*!"), time.process_time()
    assert not any(matches(slowest, "a" * 63) for _ in range(10))
    assert time.process_time() - begin < 5


# ------------------------------------------------------------------------------------------------------ override-kv

PRESENT = {
    "deepseek2.block_count": u32(3),
    "a.float": f32(1.0),
    "a.bool": boolean(True),
    "a.f64": Value(Kind.F64, 1.0),
    "a.list": array(Kind.I32, [1, 2]),
    "tokenizer.ggml.tokens": array(Kind.STRING, ["a"]),
    "a.i8": Value(Kind.I8, 1),
    "tokenizer.ggml.token_type": array(Kind.I32, [1]),
    "deepseek2.expert_used_count": u32(8),
}


@pytest.mark.parametrize(
    "setting",
    [
        "general.alignment=int:0",
        "general.alignment=str:abc",
        "general.alignment=float:nan",
        "general.alignment=int:7",
        "general.alignment=int:-32",
        "general.alignment=int:48",
        "general.alignment=int:2147483648",
        "k=int:99999999999999999999999",
        "k=int:1_000",
        "k=int: 5",
        "k=int:٣",
        "k=int:" + "9" * 5000,
        "k=float:inf",
        "k=float:1e39",
        "k=float:1e400",
        "k=float:" + "1" * 500,
        "k=bool:yes",
        "k=str:\ud800",
        "=int:1",
        "k k=int:1",
        "k\x1b=int:1",
        "k" * 70_000 + "=int:1",
        "split.no=int:70000",
        "split.count=int:5",
        "split.x=str:a",
        "general.architecture=int:5",
        "general.architecture=str:",
        "deepseek2.block_count=int:-1",
        "deepseek2.block_count=int:4294967296",
        "deepseek2.block_count=int:0",
        "deepseek2.block_count=float:3",
        "deepseek2.expert_used_count=str:two",
        "deepseek2.expert_shared_count=str:two",  # not in the file, but known
        "deepseek2.attention.q_lora_rank=float:3",
        "deepseek2.rope.freq_base=int:10000",
        "deepseek2.expert_weights_norm=int:1",
        "a.float=int:1",
        "a.bool=int:1",
        "a.i8=int:128",
        "tokenizer.ggml.tokens=str:b",
        "tokenizer.ggml.token_type=int:1",
        "tokenizer.ggml.bos_token_id=int:-1",
        "tokenizer.ggml.add_bos_token=str:true",
        "general.name=int:1",
        "noequals",
        "k=real:1",
    ],
    ids=lambda setting: ascii(setting)[:40],
)
def test_a_value_that_no_reader_would_take_is_refused(setting: str) -> None:
    with pytest.raises(InputError) as refused:
        override(PRESENT, [setting])
    assert "--override-kv" in str(refused.value)
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("general.alignment=int:64", u32(64)),
        ("k=int:-1", Value(Kind.I64, -1)),
        ("k=int:4294967296", Value(Kind.I64, 1 << 32)),
        ("k=float:0.5", f32(0.5)),
        ("k=float:-1e-3", f32(-0.001)),
        ("k=str:a=b:c", string("a=b:c")),
        ("k=str:", string("")),
        ("a.i8=int:-128", Value(Kind.I8, -128)),
        ("a.f64=float:0.1", Value(Kind.F64, 0.1)),
        ("a.list=int:3", Value(Kind.I32, 3)),
        ("general.architecture=str:glm-dsa", string("glm-dsa")),
        ("a.bool=bool:false", boolean(False)),
    ],
)
def test_a_value_that_fits_is_set_in_its_type(setting: str, value: Value) -> None:
    assert override(PRESENT, [setting])[setting.partition("=")[0]] == value


def test_an_alignment_that_is_taken_can_be_read_again(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    line = ["quantize", str(model), str(out), "COPY", "--quiet", "--override-kv", "general.alignment=int:4096"]
    assert CliRunner().invoke(main, line).exit_code == 0
    assert open_gguf(out).alignment == 4096


# ------------------------------------------------------------------------------------------------------------ names


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("blk.12.attn_k_b.weight", (12, "attn_k_b.weight")),
        ("output.weight", (None, "output.weight")),
        ("blk.3", (3, "")),
        ("blk.x.y", (None, "blk.x.y")),
        ("blk.-1.y", (None, "blk.-1.y")),
        ("blk.٣.y", (None, "blk.٣.y")),
        ("blk.", (None, "blk.")),
        (f"blk.{'9' * 5000}.x", (None, f"blk.{'9' * 5000}.x")),
        ("blk.1.a\nb", (1, "a\nb")),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_layer_is_read_from_a_name(name: str, parts: tuple[int | None, str]) -> None:
    assert split_name(name) == parts


@pytest.mark.parametrize(
    "name", [f"blk.{'9' * 5000}.x", "blk.x.attn_k_b.weight", "blk.99999999999.ffn_down_exps.weight"]
)
def test_a_layer_that_cannot_be_is_no_crash(name: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf", {"general.architecture": string("deepseek2")}, (name,))
    for line in (["inspect", str(path)], ["quantize", str(path), str(tmp_path / "o.gguf"), "Q4_K_M", "--dry-run"]):
        result = CliRunner().invoke(main, line)
        assert result.exit_code in (0, 2), result.output


@pytest.mark.parametrize("layers", [0, 1])
@pytest.mark.parametrize("option", [("--context", "9"), ("--fit", "80G")], ids=str)
def test_a_model_without_layers_has_no_cache(layers: int, option: tuple[str, str], model: Path, tmp_path: Path) -> None:
    found = open_gguf(model)
    architecture = found.metadata["general.architecture"]
    kept = {key: value for key, value in found.values.items() if not key.startswith("tokenizer.")}
    kept[f"{architecture}.block_count"] = u32(layers)
    kept.pop(f"{architecture}.nextn_predict_layers", None)
    path = write_gguf(tmp_path / "a.gguf", kept)
    assert CliRunner().invoke(main, ["inspect", str(path), *option]).exit_code == (0 if layers else 2)
