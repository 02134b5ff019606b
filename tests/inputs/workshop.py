"""Small checkpoints that can be changed like those that tools save: as tensors in memory, written once changed."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from convert.plan import plan_conversion
from gguf_mla.sources.checkpoint import Choices, open_partial
from tests.support import hub, safetensors_file
from tests.support.safetensors_file import Stored

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

INDEX = "model.safetensors.index.json"
SMALL: dict[str, Any] = {
    "num_hidden_layers": 2, "n_routed_experts": 4, "num_experts_per_tok": 2, "hidden_size": 256,
    "moe_intermediate_size": 128, "intermediate_size": 256, "q_lora_rank": 64, "kv_lora_rank": 64,
    "num_attention_heads": 2, "num_key_value_heads": 2,
}  # fmt: skip
SPARSE = {"index_n_heads": 2}


@dataclass
class Model:
    """A checkpoint in memory: configuration, tensors in order by name, and into which shard each goes."""

    config: dict[str, Any]
    tensors: dict[str, Stored]
    shards: int = 2
    extra: dict[str, bytes] = field(default_factory=dict)

    def rename(self, change: Callable[[str], str]) -> None:
        self.tensors = {change(name): replace(t, name=change(name)) for name, t in self.tensors.items()}

    def add(self, name: str, values: np.ndarray, dtype: str = "F32") -> None:
        self.tensors[name] = Stored(name, dtype, values.shape, lambda: values)

    def take(self, ending: str) -> None:
        """Take out every tensor whose name ends so, or holds it where it ends with a dot."""
        self.tensors = {
            n: t for n, t in self.tensors.items() if not (n.endswith(ending) or (ending[-1] == "." and ending in n))
        }

    def placed(self) -> dict[str, str]:
        """Which shard each tensor lies in: the last layers in the last."""
        names, last = list(self.tensors), f"model.layers.{self.config['num_hidden_layers']}."
        cut = [name for name in names if last not in name]
        size = -(-len(cut) // max(self.shards - 1, 1))
        number = {name: 1 + cut.index(name) // size if name in cut else self.shards for name in names}
        return {name: shard(number[name], self.shards) for name in names}

    def write(self, directory: Path) -> Path:
        directory.mkdir(parents=True)
        placed = self.placed()
        for name in sorted(set(placed.values())):
            safetensors_file.write(directory / name, [t for n, t in self.tensors.items() if placed[n] == name])
        hub.write_json(directory / INDEX, {"metadata": {}, "weight_map": placed})
        hub.write_json(directory / "config.json", self.config)
        for name in hub.TOKENIZER_FILES:
            (directory / name).write_bytes((hub.BUNDLED / name).read_bytes())
        for name, content in self.extra.items():
            (directory / name).write_bytes(content)
        return directory


def shard(number: int, total: int) -> str:
    return f"model-{number:05d}-of-{total:05d}.safetensors"


def base(kind: str = "v3", **changes: Any) -> Model:
    sparse = SPARSE if kind in ("v32", "glm-dsa") else {}
    config = hub.config_of(kind, "bundled", **{**SMALL, **sparse, **changes})
    storage = hub.KINDS[kind].storage
    tensors = [s for w in hub.weights(config) for s in hub.stored(w, storage, 7)]
    return Model(config, {t.name: t for t in tensors})


def fuse_experts(
    model: Model, layer: int, *, up: str = "gate_up_proj", down: str = "down_proj", under: str = "experts"
) -> None:
    """Hold a layer's experts in two tensors, as transformers 5 does in memory."""
    before, count = f"model.layers.{layer}.mlp.", model.config["n_routed_experts"]

    def taken(expert: int, part: str) -> Stored:
        return model.tensors.pop(f"{before}experts.{expert}.{part}.weight")

    pairs = [(taken(e, "gate_proj"), taken(e, "up_proj")) for e in range(count)]
    downs = [taken(e, "down_proj") for e in range(count)]
    stack_of(model, f"{before}{under}.{up}", [[gate, up_] for gate, up_ in pairs])
    stack_of(model, f"{before}{under}.{down}", [[one] for one in downs])


def stack_of(model: Model, name: str, groups: list[list[Stored]]) -> None:
    rows, cols = sum(t.shape[0] for t in groups[0]), groups[0][0].shape[1]

    def make() -> np.ndarray:
        return np.stack([np.concatenate([t.make() for t in group]) for group in groups])

    model.tensors[name] = Stored(name, groups[0][0].dtype, (len(groups), rows, cols), make)


def change_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def planned(directory: Path, choices: Choices | None = None, **options: Any) -> Any:
    """The plan of a directory, and its open checkpoint."""
    checkpoint = open_partial(directory, choices)
    [(plan, _)] = plan_conversion(checkpoint, ["BF16"], **options)
    return plan, checkpoint


def values_of(plan: Any, checkpoint: Any) -> dict[str, bytes]:
    """What every output tensor would be made of: the values of its parts in order, as float32."""
    from tests.inputs.values import digest

    return {job.name: digest(job, checkpoint.tensors) for job in plan.tensors}
