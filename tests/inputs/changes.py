"""What tools do to a checkpoint: changes of a model in memory, and of the directory that it was written into."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import numpy as np

from gguf_mla.synthetic import numbers
from tests.inputs.workshop import INDEX, Model, base, change_json, fuse_experts, shard, stack_of
from tests.support import safetensors_file
from tests.support.safetensors_file import Stored

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 4096\n"


def config(**changes: Any) -> Callable[[Model], object]:
    return lambda model: model.config.update(changes)


def both(*steps: Callable[[Any], object]) -> Callable[[Any], object]:
    def run(thing: Any) -> None:
        for step in steps:
            step(thing)

    return run


def remove(*names: str) -> Callable[[Path], object]:
    return lambda d: [(d / name).unlink() for name in names]


def prefixed(change: Callable[[str], str]) -> Callable[[Model], object]:
    return lambda model: model.rename(change)


def indexed(**entries: str) -> Callable[[Path], object]:
    names = {name.replace("__", "."): where for name, where in entries.items()}
    return lambda d: change_json(d / INDEX, lambda index: index["weight_map"].update(names))


def copy_of(name: str, where: int, value: bytes | None = None) -> Callable[[Path], None]:
    """Put a copy of a tensor into another shard, with a value of its own."""

    def change(directory: Path) -> None:
        source = directory / shard(3 - where, 2)
        header, start = safetensors_file.read_header(source)
        entry = header[name]
        first, last = entry["data_offsets"]
        data = source.read_bytes()[start + first : start + last]
        target = directory / shard(where, 2)
        entries, begin = safetensors_file.read_header(target)
        old = target.read_bytes()[begin:]
        entries[name] = {**entry, "data_offsets": [len(old), len(old) + len(data)]}
        target.write_bytes(safetensors_file.header_bytes(entries) + old + (value or data[:2]) + data[2:])

    return change


def whole_set(directory: Path, names: Callable[[int, int], str], total: int = 2) -> None:
    for number in range(1, total + 1):
        (directory / shard(number, total)).rename(directory / names(number, total))


def single(directory: Path, name: str = "model.safetensors", *, zeros: bool = False) -> None:
    """Write all tensors in one file beside the shards."""
    entries: dict[str, Any] = {}
    data = bytearray()
    for path in sorted(directory.glob("model-*.safetensors")):
        header, start = safetensors_file.read_header(path)
        content = path.read_bytes()[start:]
        for key, item in header.items():
            if key != "__metadata__":
                first, last = item["data_offsets"]
                entries[key] = {**item, "data_offsets": [len(data), len(data) + last - first]}
                data += content[first:last]
    (directory / name).write_bytes(safetensors_file.header_bytes(entries) + (bytes(len(data)) if zeros else data))


def only(directory: Path, name: str) -> None:
    single(directory, name)
    remove(shard(1, 2), shard(2, 2), INDEX)(directory)


def bom(*names: str) -> Callable[[Path], object]:
    return lambda d: [(d / n).write_bytes(b"\xef\xbb\xbf" + (d / n).read_bytes()) for n in names]


def lfs(name: str) -> Callable[[Path], object]:
    return lambda d: (d / name).write_bytes(LFS)


def pre_tokenizer(section: Any) -> Callable[[Path], object]:
    return lambda d: change_json(d / "tokenizer.json", lambda t: t.update(pre_tokenizer=section))


def buffers(model: Model) -> None:
    model.add("model.rotary_emb.inv_freq", np.ones(32, np.float32))
    model.add("model.layers.0.self_attn.rotary_emb.cos_cached", np.ones((16, 64), np.float32))
    model.add("model.layers.1.self_attn.rotary_emb.inv_freq", np.ones(32, np.float32))


def others(*names: str) -> Callable[[Model], object]:
    return lambda model: [model.add(name, np.ones(4, np.float32)) for name in names]


def biases(dtype: str, convert: Callable[[np.ndarray], np.ndarray]) -> Callable[[Model], None]:
    def change(model: Model) -> None:
        for name, tensor in list(model.tensors.items()):
            if name.endswith("e_score_correction_bias"):
                values = np.array([6.82, 6.85, 6.90, 7.05], np.float32) if dtype == "BF16" else tensor.make()
                model.tensors[name] = Stored(name, dtype, tensor.shape, lambda values=values: convert(values))

    return change


def padded(rows: int, *names: str) -> Callable[[Model], None]:
    def change(model: Model) -> None:
        for name in names:
            old = model.tensors[name]
            more = np.zeros((rows - old.shape[0], old.shape[1]), np.uint16)
            model.tensors[name] = Stored(
                name, old.dtype, (rows, old.shape[1]), lambda old=old, more=more: np.concatenate([old.make(), more])
            )

    return change


def stack(model: Model) -> None:
    """MLX's form: every projection of a layer's experts in one tensor."""
    before = "model.layers.1.mlp."
    for part in ("gate_proj", "up_proj", "down_proj"):
        held = [[model.tensors.pop(f"{before}experts.{e}.{part}.weight")] for e in range(4)]
        stack_of(model, f"{before}switch_mlp.{part}.weight", held)


def transposed(model: Model) -> None:
    fuse_experts(model, 1)
    for name in ("gate_up_proj", "down_proj"):
        full = f"model.layers.1.mlp.experts.{name}"
        old = model.tensors[full]
        shape = (old.shape[0], old.shape[2], old.shape[1])
        model.tensors[full] = Stored(full, old.dtype, shape, lambda old=old: old.make().swapaxes(1, 2))


def pair(model: Model) -> None:
    """gate and up of a dense layer and of shared experts in one matrix, as engines dump them."""
    for before in ("model.layers.0.mlp.", "model.layers.1.mlp.shared_experts."):
        gate, up = (model.tensors.pop(f"{before}{part}.weight") for part in ("gate_proj", "up_proj"))
        name = f"{before}gate_up_proj.weight"
        model.tensors[name] = Stored(
            name, gate.dtype, (2 * gate.shape[0], gate.shape[1]),
            lambda gate=gate, up=up: np.concatenate([gate.make(), up.make()]),
        )  # fmt: skip


def fused_fp8(model: Model) -> None:
    """A layer's FP8 experts with their scales."""
    before = "model.layers.1.mlp.experts."
    for suffix in ("", "_scale_inv"):
        held = [
            [model.tensors.pop(f"{before}{e}.{part}.weight{suffix}") for part in ("gate_proj", "up_proj")]
            for e in range(4)
        ]
        stack_of(model, f"{before}gate_up_proj{suffix}", held)
        downs = [[model.tensors.pop(f"{before}{e}.down_proj.weight{suffix}")] for e in range(4)]
        stack_of(model, f"{before}down_proj{suffix}", downs)


def units(model: Model) -> None:
    for name, tensor in list(model.tensors.items()):
        if name.endswith("layernorm.weight"):
            model.tensors[name] = Stored(name, tensor.dtype, (1, *tensor.shape), tensor.make)
        elif name.endswith("o_proj.weight"):
            model.tensors[name] = Stored(name, tensor.dtype, (*tensor.shape, 1, 1), tensor.make)


def unscaled(model: Model) -> None:
    """Weights cast from FP8 without their scales, which lie beside them."""
    codes = np.tile(np.array([448.0, 1.5, -0.25, 208.0], np.float32), 64)
    name = "model.layers.0.self_attn.o_proj.weight"
    shape = model.tensors[name].shape
    model.tensors[name] = Stored(name, "BF16", shape, lambda: numbers.to_bf16(np.tile(codes, (shape[0], 1))))
    model.add(f"{name}_scale_inv", np.ones((2, 2), np.float32))


def tied(values: str) -> Callable[[Model], None]:
    def change(model: Model) -> None:
        model.config["tie_word_embeddings"] = True
        if values == "equal":
            old = model.tensors["model.embed_tokens.weight"]
            model.tensors["lm_head.weight"] = Stored("lm_head.weight", old.dtype, old.shape, old.make)

    return change


def without_shared(count: int | None) -> Callable[[Model], None]:
    def change(model: Model) -> None:
        model.config["n_shared_experts"] = count
        model.tensors = {n: t for n, t in model.tensors.items() if ".shared_experts." not in n}

    return change


def dense(model: Model) -> None:
    fresh = base("v3", first_k_dense_replace=2, num_nextn_predict_layers=0)
    model.tensors = fresh.tensors
    model.config = fresh.config | {
        "n_routed_experts": None, "n_shared_experts": None, "num_experts_per_tok": None, "moe_intermediate_size": None,
        "topk_method": None, "n_group": None, "topk_group": None, "scoring_func": None, "first_k_dense_replace": None,
    }  # fmt: skip


def pruned(model: Model) -> None:
    model.config.update(n_group=2, topk_group=1, n_routed_experts=3)
    for layer in (1, 2):
        before = f"model.layers.{layer}.mlp."
        model.take(f"{before}experts.3.")
        for name in (f"{before}gate.weight", f"{before}gate.e_score_correction_bias"):
            if name in model.tensors:
                old = model.tensors[name]
                model.tensors[name] = Stored(name, old.dtype, (3, *old.shape[1:]), lambda old=old: old.make()[:3])


def scaling(**values: Any) -> Callable[[Model], None]:
    return lambda model: model.config.update(rope_scaling=values)


def take(*endings: str) -> Callable[[Model], None]:
    return lambda model: [model.take(ending) for ending in endings]


def contradicted(directory: Path) -> None:
    entry = {"content": "<other>", "special": True, "normalized": False}
    change_json(directory / "tokenizer_config.json", lambda c: c.update(added_tokens_decoder={"5": entry}))


def sub_folder(directory: Path) -> None:
    (directory / "weights").mkdir()
    for number in (1, 2):
        (directory / shard(number, 2)).rename(directory / "weights" / shard(number, 2))
    change_json(
        directory / INDEX,
        lambda index: index.update(weight_map={n: f"weights/{s}" for n, s in index["weight_map"].items()}),
    )


def adapter(directory: Path) -> None:
    shutil.rmtree(directory)
    directory.mkdir()
    (directory / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    safetensors_file.write(directory / "adapter_model.safetensors", [])


def lora_left(model: Model) -> None:
    model.rename(lambda n: "base_model.model." + n.replace("o_proj.weight", "o_proj.base_layer.weight"))
    model.add("base_model.model.model.layers.0.self_attn.o_proj.lora_A.default.weight", np.ones((8, 4), np.float32))


def pickled(directory: Path) -> None:
    for path in directory.glob("*.safetensors"):
        path.rename(directory / f"pytorch_{path.stem}.bin")
    (directory / INDEX).unlink()


def deepspeed(directory: Path) -> None:
    pickled(directory)
    (directory / "zero_to_fp32.py").write_text("")


def absent_mtp(directory: Path) -> None:
    (directory / shard(2, 2)).unlink()
