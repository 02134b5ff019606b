"""Marks of several tools at once, at random: the right values or a sentence, never other values.

`python -m tests.inputs.combinations 20000 [SEED]` prints how many were read and how many refused, by the reason.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections import Counter
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from gguf_mla.errors import InputError
from gguf_mla.families import family_of, vocabulary
from gguf_mla.families.base import Layers, outputs
from gguf_mla.sources.checkpoint import open_partial
from gguf_mla.sources.config import Config
from tests.inputs.values import digest
from tests.inputs.workshop import INDEX, Model, base, fuse_experts, shard, stack_of
from tests.support.memory import MemoryFolder
from tests.support.safetensors_file import Stored, header_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

TINY: dict[str, Any] = {
    "hidden_size": 24, "moe_intermediate_size": 8, "intermediate_size": 16, "q_lora_rank": 12, "kv_lora_rank": 16,
    "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8, "vocab_size": 40, "num_attention_heads": 2,
    "num_key_value_heads": 2,
}  # fmt: skip
KINDS = ("v3", "v32", "glm-dsa", "glm-lite")
Digests = dict[str, bytes]


@cache
def original(kind: str) -> tuple[dict[str, Any], dict[str, Stored], dict[bool, Digests]]:
    """Configuration and tensors of a kind, and the values of its outputs with multi-token prediction and without."""
    sparse = {"index_head_dim": 8, "index_n_heads": 2} if kind in ("v32", "glm-dsa") else {}
    model = base(kind, **TINY, **sparse)
    held = {name: replace(t, make=cache(t.make)) for name, t in model.tensors.items()}
    folder = folder_of(Model(model.config, held), random.Random(0), Marks())
    return model.config, held, {kept: read(folder, keep_prediction=kept) for kept in (True, False)}


def read(folder: MemoryFolder, *, keep_prediction: bool) -> Digests:
    """What the outputs of a checkpoint are made of."""
    checkpoint = open_partial(folder)
    config = Config(checkpoint.config, folder.path / "config.json")
    family = family_of(config)
    layers = family.layers_in(config, checkpoint.names)
    vocabulary.check(config, checkpoint)
    found, _ = outputs(family, config, checkpoint, layers if keep_prediction else Layers(layers.ordinary))
    return {job.name: digest(job, checkpoint.tensors) for job in found}


class Marks:
    """What is done to the files after the tensors are changed; `hard` are marks that may well be refused."""

    def __init__(self) -> None:
        self.shards = 2
        self.named: Callable[[int, int], str] = shard
        self.folder = ""
        self.index = "right"
        self.mark = b""
        self.copies: list[tuple[str, bool]] = []
        self.single = ""
        self.lost = False
        self.hard: set[str] = set()


# --------------------------------------------------------------------------------------------- changes of the tensors


def prefix(model: Model, chance: random.Random) -> None:
    text = chance.choice(("module.", "base_model.model.", "_orig_mod.", "language_model.", "a.b.c."))
    kind = chance.randrange(3)
    if kind == 0:
        model.rename(lambda n: text + n)
    elif kind == 1:
        model.rename(lambda n: n.replace("model.", "model.language_model.", 1))
    else:
        model.rename(lambda n: n.removeprefix("model."))


def wrapper(model: Model, chance: random.Random) -> None:
    part = chance.choice(("_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod"))
    at = chance.choice(("self_attn.", "mlp.", "layers."))
    model.rename(lambda n: n.replace(at, f"{at}{part}." if at == "layers." else f"{part}.{at}", 1))


def base_layer(model: Model, chance: random.Random) -> None:
    part = chance.choice(("o_proj", "kv_b_proj", "down_proj"))
    model.rename(lambda n: n.replace(f".{part}.weight", f".{part}.base_layer.weight"))


def fuse(model: Model, chance: random.Random) -> None:
    up, down = chance.choice(
        (("gate_up_proj", "down_proj"), ("gate_up_proj.weight", "down_proj.weight"), ("w13_weight", "w2_weight"))
    )
    for layer in chance.sample((1, 2), chance.randint(1, 2)):
        fuse_experts(model, layer, up=up, down=down)


def mlx(model: Model, _chance: random.Random) -> None:
    for part in ("gate_proj", "up_proj", "down_proj"):
        held = [[model.tensors.pop(f"model.layers.1.mlp.experts.{e}.{part}.weight")] for e in range(4)]
        stack_of(model, f"model.layers.1.mlp.switch_mlp.{part}.weight", held)


def pair(model: Model, _chance: random.Random) -> None:
    gate, up = (model.tensors.pop(f"model.layers.0.mlp.{part}.weight") for part in ("gate_proj", "up_proj"))
    name, shape = "model.layers.0.mlp.gate_up_proj.weight", (2 * gate.shape[0], gate.shape[1])
    model.tensors[name] = Stored(name, gate.dtype, shape, lambda: np.concatenate([gate.make(), up.make()]))


def turned(model: Model, _chance: random.Random) -> None:
    fuse_experts(model, 1)
    for part in ("gate_up_proj", "down_proj"):
        name = f"model.layers.1.mlp.experts.{part}"
        old = model.tensors[name]
        shape = (old.shape[0], old.shape[2], old.shape[1])
        model.tensors[name] = Stored(name, old.dtype, shape, lambda old=old: old.make().swapaxes(1, 2))


def leftovers(model: Model, chance: random.Random) -> None:
    names = (
        "model.rotary_emb.inv_freq", "model.layers.0.self_attn.rotary_emb.cos_cached", "v_head.weight",
        "model.layers.0.self_attn.k_scale", "optimizer.exp_avg", "model.layers.1.mlp._extra_state",
    )  # fmt: skip
    for name in chance.sample(names, chance.randint(1, 4)):
        model.add(name, np.ones(4, np.float32))


def scales(model: Model, chance: random.Random) -> None:
    for name in chance.sample([n for n in model.tensors if n.endswith("_proj.weight")], 3):
        model.add(name + chance.choice(("_scale_inv", "_scale")), np.ones((1, 1), np.float32))


def quantization(model: Model, chance: random.Random) -> None:
    model.config["quantization_config"] = chance.choice((
        {"quant_method": "bitsandbytes"}, {"quant_method": "fp8"}, {"quant_method": "awq", "bits": 4},
        {"quant_method": "compressed-tensors", "format": "dense", "config_groups": {}},
    ))  # fmt: skip


def architecture(model: Model, chance: random.Random) -> None:
    listed = model.config["architectures"][0]
    model.config["architectures"] = chance.choice(
        (None, [], ["FSDP" + listed], [listed.replace("ForCausalLM", "Model")])
    )


def double(model: Model, _chance: random.Random) -> None:
    for name, tensor in list(model.tensors.items()):
        if name.endswith("e_score_correction_bias"):
            model.tensors[name] = Stored(name, "F64", tensor.shape, lambda t=tensor: t.make().astype(np.float64))


def units(model: Model, chance: random.Random) -> None:
    for name, tensor in list(model.tensors.items()):
        if name.endswith("norm.weight") and len(tensor.shape) == 1 and chance.random() < 0.5:
            shape = chance.choice(((1, *tensor.shape), (*tensor.shape, 1)))
            model.tensors[name] = Stored(name, tensor.dtype, shape, tensor.make)


def tied(model: Model, _chance: random.Random) -> None:
    model.config["tie_word_embeddings"] = True


def second(model: Model, _chance: random.Random) -> None:
    more = {
        f"ema.{n}": Stored(f"ema.{n}", t.dtype, t.shape, lambda t=t: t.make()[::-1]) for n, t in model.tensors.items()
    }
    model.tensors.update(more)


def adapter(model: Model, _chance: random.Random) -> None:
    model.add("model.layers.0.self_attn.o_proj.lora_A.weight", np.ones((2, 2), np.float32))


# In the order in which tools would do them: what changes shapes and contents, then what changes all names.
CHANGES = (
    fuse, mlx, pair, turned, leftovers, scales, quantization, architecture, double, units, tied, adapter,
    base_layer, wrapper, prefix, second,
)  # fmt: skip
HARD = {turned, second, adapter}
TOGETHER = ({fuse, mlx}, {fuse, turned}, {mlx, turned})  # do the same to the same tensors


# ----------------------------------------------------------------------------------------------- changes of the files


def marks(chance: random.Random) -> Marks:
    found = Marks()
    found.shards = chance.randint(1, 4)
    if chance.random() < 0.2:
        found.folder = "weights/"
    if chance.random() < 0.2:
        found.mark = b"\xef\xbb\xbf"
    if chance.random() < 0.3:
        found.index = chance.choice(("missing", "more", "gone"))
    if found.index in ("missing", "gone"):
        found.folder = ""  # nothing else leads there
    if chance.random() < 0.15:
        stem = chance.choice(("pytorch_model", "consolidated"))
        found.named = lambda number, total: f"{stem}-{number:05d}-of-{total:05d}.safetensors"
    elif chance.random() < 0.1:
        found.named = lambda number, _: f"model_{number}.safetensors"
        found.hard.add("no total")
    if chance.random() < 0.25:
        found.copies = [("", chance.random() < 0.5) for _ in range(chance.randint(1, 3))]
        found.hard.add("copies")
    if chance.random() < 0.15:
        found.single = chance.choice(("zeros", "older"))
        found.hard.add("single")
    if chance.random() < 0.15:
        found.lost = True
        found.hard.add("lost")
    return found


def folder_of(model: Model, chance: random.Random, done: Marks) -> MemoryFolder:
    """Write a checkpoint into memory."""
    names = list(model.tensors)
    total = done.shards
    cuts = sorted(chance.sample(range(1, len(names)), total - 1))
    groups = [names[a:b] for a, b in zip([0, *cuts], [*cuts, len(names)], strict=True)]
    data = {
        name: (tensor.dtype, tensor.shape, np.ascontiguousarray(tensor.make()).tobytes())
        for name, tensor in model.tensors.items()
    }
    shards = [{name: data[name] for name in group} for group in groups]
    called = [done.folder + done.named(number + 1, total) for number in range(total)]
    placed = {name: called[number] for number, group in enumerate(groups) for name in group}
    for _, other in done.copies:
        name, into = chance.choice(names), chance.randrange(total)
        if name not in shards[into]:
            dtype, shape, content = data[name]
            shards[into][name] = (dtype, shape, content[::-1] if other else content)
    files = {name: packed(held) for name, held in zip(called, shards, strict=True)}
    if done.lost and total > 1:
        del files[chance.choice(called)]
    if done.single:
        files["model.safetensors"] = packed(
            {n: (d, s, bytes(len(c)) if done.single == "zeros" else c[::-1]) for n, (d, s, c) in data.items()}
        )
    if done.index == "more":
        some = [n for n in names if n.endswith("_proj.weight")]
        placed |= {chance.choice(some) + "_scale_inv": called[0]} if some else {}
        placed |= {"model.rotary_emb.inv_freq": called[-1]} if "model.rotary_emb.inv_freq" not in data else {}
    if done.index == "gone":
        placed = {name: f"old-{number}.safetensors" for number, name in enumerate(names)}
    if done.index != "missing":
        files[INDEX] = done.mark + json.dumps({"weight_map": placed}).encode()
    files["config.json"] = done.mark + json.dumps(model.config).encode()
    return MemoryFolder("model", files)


def packed(held: dict[str, tuple[str, tuple[int, ...], bytes]]) -> bytes:
    entries, end = {}, 0
    for name, (dtype, shape, content) in held.items():
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + len(content)]}
        end += len(content)
    return header_bytes(entries) + b"".join(content for _, _, content in held.values())


# ------------------------------------------------------------------------------------------------------- what is right


def attempt(chance: random.Random) -> tuple[str, set[str]]:
    """Try one combination; return "read" or the reason of the refusal, and the marks that may be a reason."""
    kind = chance.choice(KINDS)
    config, tensors, truth = original(kind)
    model = Model(dict(config), dict(tensors))
    chosen = {change for change in CHANGES if chance.random() < 0.16}
    if any(both <= chosen for both in TOGETHER):
        chosen -= {mlx, turned}
    for change in CHANGES:
        if change in chosen:
            change(model, chance)
    done = marks(chance)
    hard = done.hard | {change.__name__ for change in chosen & HARD}
    if wrapper in chosen and prefix in chosen:
        hard.add("both names")
    keep = chance.random() < 0.7
    try:
        found = read(folder_of(model, chance, done), keep_prediction=keep)
    except InputError as error:
        text = str(error)
        assert text.endswith("."), text
        assert len(text) < 4000
        return error.what.split(" (")[0], hard
    wrong = {name for name in found.keys() | truth[keep].keys() if found.get(name) != truth[keep].get(name)}
    assert not wrong, (kind, [c.__name__ for c in chosen], vars(done), keep, sorted(wrong)[:5])
    return "read", hard


def run(count: int, seed: int) -> Counter[str]:
    """Try `count` combinations; AssertionError for other values, and for a refusal that nothing explains."""
    outcome = Counter[str]()
    for number in range(count):
        told, hard = attempt(random.Random(f"{seed} {number}"))
        assert told == "read" or hard, (seed, number, told)
        outcome[told if told == "read" else "refused"] += 1
        if told != "read":
            outcome[f"  {''.join('N' if c.isdigit() else c for c in told)[:70]}"] += 1
    return outcome


if __name__ == "__main__":
    began = time.monotonic()
    for reason, times in run(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0).most_common():
        print(f"{times:7} {reason}")
    print(f"{time.monotonic() - began:.0f} s")
