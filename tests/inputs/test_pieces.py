"""What the recognisers refuse, bound and call things, one by one."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from gguf_mla.container.reader import open_gguf
from gguf_mla.errors import InputError
from gguf_mla.files.bounds import EXPERTS
from gguf_mla.files.input import InputFile
from gguf_mla.sources.checkpoint import Choices, open_checkpoint, open_partial
from gguf_mla.sources.config import Config
from gguf_mla.sources.folder import open_folder
from gguf_mla.sources.hub_cache import model_name
from gguf_mla.sources.recognise import architecture, compare, leftovers, published, settings
from gguf_mla.sources.recognise.reading import Reading
from gguf_mla.sources.safetensors import read_shard
from tests.inputs.changes import LFS, single
from tests.inputs.workshop import Model, base, change_json, fuse_experts, planned, shard
from tests.support.command import gguf_mla
from tests.support.memory import MemoryFile, MemoryFolder
from tests.support.safetensors_file import header_bytes

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (f"models--deepseek-ai--DeepSeek-V3/snapshots/{COMMIT}", "DeepSeek-V3"),
        ("models--deepseek-ai--DeepSeek-V3/snapshots/main", "DeepSeek-V3"),
        ("modelscope/models/deepseek-ai/DeepSeek-V2___5", "DeepSeek-V2.5"),
        ("kagglehub/deepseek-r1/1", "deepseek-r1"),
        (f"DeepSeek-R1/{COMMIT}", "DeepSeek-R1"),
        ("DeepSeek-V3-0324", "DeepSeek-V3-0324"),
        ("2024-model", "2024-model"),
    ],
)
def test_a_model_is_called_by_its_repository(path: str, name: str, tmp_path: Path) -> None:
    (tmp_path / path).mkdir(parents=True)
    assert model_name(tmp_path / path) == name


def test_a_snapshot_gives_the_file_its_repositorys_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "models--o--Some-V3" / "snapshots" / COMMIT
    base().write(snapshot)
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    answer = gguf_mla("convert", snapshot, "--quiet", "--type", "BF16")
    assert answer.status == 0, answer.output
    assert [path.name for path in Path().glob("*.gguf")] == ["Some-V3-BF16.gguf"]


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("deepseek_v2", "DeepseekV2ForCausalLM"),
        ("deepseek_v32", "DeepseekV32ForCausalLM"),
        ("glm4_moe_lite", "Glm4MoeLiteForCausalLM"),
        ("glm_moe_dsa", "GlmMoeDsaForCausalLM"),
        ("kimi_k2", "DeepseekV3ForCausalLM"),
        ("kimi_vl", "KimiVLForConditionalGeneration"),
    ],
)
def test_a_model_type_has_a_class(kind: str, name: str) -> None:
    assert architecture.class_of(kind) == name


def test_settings_are_json_or_words() -> None:
    found = settings.parse(["n_group=1", "rope_scaling.mscale=0.5", "a=null", "topk_method=greedy"])
    assert found == {"n_group": 1, "rope_scaling.mscale": 0.5, "a": None, "topk_method": "greedy"}
    old = {"n_group": 4, "rope_scaling": {"factor": 40}, "other": 1}
    new = settings.changed(old, found)
    assert new == {
        "n_group": 1,
        "rope_scaling": {"factor": 40, "mscale": 0.5},
        "other": 1,
        "a": None,
        "topk_method": "greedy",
    }
    assert old == {"n_group": 4, "rope_scaling": {"factor": 40}, "other": 1}
    for wrong in ("n_group", "=1", "a..b=1"):
        with pytest.raises(InputError, match="KEY=VALUE"):
            settings.parse([wrong])


def test_a_gguf_that_is_a_pointer_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(LFS)
    with pytest.raises(InputError, match=r"Git LFS pointer.*git lfs pull"):
        open_gguf(tmp_path / "m.gguf")


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.o_proj.weight", "model.norm.weight", "lm_head.weight"])
def test_weights_are_never_leftovers(name: str) -> None:
    assert leftovers.reason_of(name) is None


def test_no_tensor_of_a_published_model_is_a_leftover() -> None:
    names = [name for kind in ("v2", "v3", "v32", "glm-dsa", "kimi") for name in base(kind).tensors]
    assert [name for name in names if leftovers.reason_of(name)] == []


def test_names_are_looked_at_by_kind(tmp_path: Path) -> None:
    """However many layers and experts there are, a recogniser that finds nothing looks at each kind of name once."""
    model = base(n_routed_experts=8)
    stored = read_shard(InputFile(model.write(tmp_path / "m") / shard(1, 2)))
    reading = Reading(open_folder(tmp_path / "m"), {}, stored)
    kinds = {re.sub(r"\.\d+\.", ".0.", re.sub(r"\.\d+\.", ".0.", name)) for name in stored}
    assert reading.kinds == kinds
    assert len(kinds) < len(stored) / 2
    wanted = [name for name in stored if ".experts." in name and "up_proj" in name]
    assert reading.named(re.compile(r"\.experts\.\d+\.up_proj")) == wanted
    assert reading.named(re.compile("lora_A")) == []
    assert published.recognise(reading) is reading
    asked: list[str] = []
    renamed = reading.renamed(lambda name: asked.append(name) or f"x.{name}")  # type: ignore[func-returns-value]
    assert asked == list(stored)
    assert [tensor.name for tensor in renamed.stored.values()] == [f"x.{name}" for name in stored]


# ------------------------------------------------------------------------------------------------------ fused experts


def test_parts_of_a_fused_tensor_are_read_where_they_lie(tmp_path: Path) -> None:
    model = base(num_nextn_predict_layers=0)
    fuse_experts(model, 1)
    expected = {name: tensor.make() for name, tensor in base(num_nextn_predict_layers=0).tensors.items()}
    found = open_checkpoint(model.write(tmp_path / "m")).tensors
    for name in (f"model.layers.1.mlp.experts.{e}.{p}_proj.weight" for e in range(4) for p in ("gate", "up", "down")):
        assert np.array_equal(found[name].read(), expected[name])
        assert np.array_equal(found[name].read(3, 5), expected[name][3:5])


class Counted(MemoryFile):
    """A file that knows the most bytes that were asked for at once."""

    largest = 0

    def read(self, offset: int, count: int) -> Any:
        type(self).largest = max(type(self).largest, count)
        return super().read(offset, count)


def opened(files: dict[str, bytes]) -> Any:
    folder = MemoryFolder("m", files)
    folder.open = lambda name: Counted(str(folder.path / name), files[name])  # type: ignore[method-assign]
    return open_partial(folder)


def one_file(entries: dict[str, Any], size: int) -> dict[str, bytes]:
    return {"model.safetensors": header_bytes(entries) + bytes(size), "config.json": b"{}"}


def test_opening_reads_no_whole_tensor(tmp_path: Path) -> None:
    model = base(n_shared_experts=1, tie_word_embeddings=True)
    fuse_experts(model, 1)
    model.config["tie_word_embeddings"] = True
    directory = model.write(tmp_path / "m")
    single(directory)
    for name in (shard(1, 2), shard(2, 2), "model.safetensors.index.json"):
        (directory / name).unlink()
    Counted.largest = 0
    opened({path.name: path.read_bytes() for path in directory.iterdir()})
    assert 0 < Counted.largest <= compare.PIECE


@pytest.mark.parametrize(("experts", "rows"), [(1 << 30, 0), (EXPERTS + 1, 2), (0, 2)])
def test_a_fused_tensor_of_too_many_experts_is_refused(experts: int, rows: int) -> None:
    entry = {"dtype": "BF16", "shape": [experts, rows, 1], "data_offsets": [0, 2 * experts * rows]}
    with pytest.raises(InputError, match="number of experts"):
        opened(one_file({"model.layers.0.mlp.experts.gate_up_proj": entry}, 2 * experts * rows))


def test_a_fused_tensor_of_an_odd_number_of_rows_is_refused() -> None:
    entry = {"dtype": "BF16", "shape": [2, 3, 1], "data_offsets": [0, 12]}
    with pytest.raises(InputError, match="odd number of rows"):
        opened(one_file({"model.layers.0.mlp.experts.gate_up_proj": entry}, 12))


def test_scales_whose_blocks_straddle_are_refused() -> None:
    entries = {
        "model.layers.0.mlp.experts.gate_up_proj": {"dtype": "F8_E4M3", "shape": [1, 200, 1], "data_offsets": [0, 200]},
        "model.layers.0.mlp.experts.gate_up_proj_scale_inv": {
            "dtype": "F32", "shape": [1, 2, 1], "data_offsets": [200, 208],
        },
    }  # fmt: skip
    with pytest.raises(InputError, match="do not part between gate and up"):
        opened(one_file(entries, 208))


@pytest.mark.parametrize("name", ["gate_up_proj", "w13_weight"])
@pytest.mark.parametrize("shape", [(3, 4, 1), (3,), (3, 1), (3, 1, 1), (3, 2)], ids=str)
def test_scales_of_fused_experts_go_with_their_rows(tmp_path: Path, shape: tuple[int, ...], name: str) -> None:
    """For each row, each expert, or each half: the factor of a value is that of its place in the whole tensor."""
    random, before = np.random.default_rng(0), "model.layers.0.mlp.experts."
    codes = random.integers(0, 0x7E, (3, 4, 6)).astype(np.uint8)
    scales = random.random(shape).astype(np.float32)
    model = Model({"num_hidden_layers": 1}, {}, shards=1)
    model.add(before + name, codes, "F8_E4M3")
    model.add(f"{before}{name}_scale", scales)
    found = open_partial(model.write(tmp_path / "m")).tensors
    wide = scales.reshape(3, -1, 1)
    whole = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32) * np.repeat(wide, 4 // wide.shape[1], axis=1)
    for expert in range(3):
        for part, rows in (("gate_proj", slice(0, 2)), ("up_proj", slice(2, 4))):
            tensor = found[f"{before}{expert}.{part}.weight"]
            assert tensor.read().tobytes() == whole[expert, rows].tobytes()
            assert tensor.read(1, 2).tobytes() == whole[expert, rows][1:2].tobytes()


def test_an_expert_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    model = base()
    kept = model.tensors["model.layers.1.mlp.experts.2.up_proj.weight"]
    fuse_experts(model, 1)
    model.tensors[kept.name] = kept
    with pytest.raises(InputError, match="twice, alone and in a fused tensor"):
        open_checkpoint(model.write(tmp_path / "m"))


# ------------------------------------------------------------------------------------------------------------- others


def test_shards_in_more_folders_than_any_model_has_are_refused(tmp_path: Path) -> None:
    directory = base().write(tmp_path / "m")
    places = {f"t{n}": f"{n}/a.safetensors" for n in range(300)}
    change_json(directory / "model.safetensors.index.json", lambda index: index["weight_map"].update(places))
    with pytest.raises(InputError, match="more directories"):
        open_checkpoint(directory)


def test_numbers_beyond_float32_are_named(tmp_path: Path) -> None:
    model = base()
    model.add("model.norm.weight", np.full(256, 1e300), "F64")
    answer = gguf_mla("convert", model.write(tmp_path / "m"), tmp_path / "o.gguf", "--quiet")
    assert answer.status == 2
    assert "model.norm.weight: has a weight that is not a finite number" in answer.output


def test_a_public_opening_wants_every_shard(tmp_path: Path) -> None:
    directory = base("v32").write(tmp_path / "m")
    (directory / shard(2, 2)).unlink()
    with pytest.raises(InputError, match=r"m: shards are missing: model-"):
        open_checkpoint(directory)
    assert open_partial(directory).absent


def test_a_chosen_prefix_has_its_model(tmp_path: Path) -> None:
    model, other = base(), {f"ema.{n}": t for n, t in base("v3", hidden_size=128).tensors.items()}
    for name, tensor in other.items():
        model.add(name, tensor.make(), tensor.dtype)
    directory = model.write(tmp_path / "m")
    change_json(directory / "config.json", lambda config: config.update(hidden_size=128))
    plan, checkpoint = planned(directory, Choices(prefix="ema.model."))
    assert Config(checkpoint.config, directory).integer("hidden_size") == 128
    assert next(job.shape for job in plan.tensors if job.name == "output.weight") == (2048, 128)


def test_an_utf16_header_is_not_json(tmp_path: Path) -> None:
    text = '{"t": 1}'.encode("utf-16")
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="not valid JSON"):
        open_checkpoint(tmp_path)
