"""Ways to damage a checkpoint: each returns a function that takes its directory, or is one."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

from tests.support.safetensors_file import header_bytes, read_header, rewrite_header

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

INDEX = "model.safetensors.index.json"
Q_A = "model.layers.0.self_attn.q_a_proj.weight"
KV_A = "model.layers.1.self_attn.kv_a_proj_with_mqa.weight"
NORM = "model.layers.1.input_layernorm.weight"
EXPERT = "model.layers.1.mlp.experts.2.up_proj.weight"


def shard_of(directory: Path, name: str) -> Path:
    return directory / str(json.loads((directory / INDEX).read_text())["weight_map"][name])


def change_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def configure(**changes: Any) -> Callable[[Path], None]:
    return lambda directory: change_json(directory / "config.json", lambda config: config.update(changes))


def rope(**changes: Any) -> Callable[[Path], None]:
    return lambda directory: change_json(
        directory / "config.json", lambda config: config["rope_scaling"].update(changes)
    )


def entry(name: str, **changes: Any) -> Callable[[Path], None]:
    """Change what a shard's header says of a tensor."""
    return lambda directory: rewrite_header(shard_of(directory, name), lambda header: header[name].update(changes))


def place(name: str, value: Any) -> Callable[[Path], None]:
    """Change where the index says a tensor is."""
    return lambda directory: change_json(directory / INDEX, lambda index: index["weight_map"].update({name: value}))


def write_text(name: str, text: str) -> Callable[[Path], object]:
    return lambda directory: (directory / name).write_text(text, encoding="utf-8")


def remove_file(name: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).unlink()


def remove_tensor(name: str) -> Callable[[Path], None]:
    """Take a tensor out of its shard, header, data and index."""

    def damage(directory: Path) -> None:
        shard = shard_of(directory, name)
        header, start_ = read_header(shard)
        data, kept, new = shard.read_bytes()[start_:], bytearray(), {}
        for other, item in header.items():
            if other == "__metadata__":
                new[other] = item
            elif other != name:
                first, last = item["data_offsets"]
                new[other] = item | {"data_offsets": [len(kept), len(kept) + last - first]}
                kept += data[first:last]
        shard.write_bytes(header_bytes(new) + kept)
        change_json(directory / INDEX, lambda index: index["weight_map"].pop(name))

    return damage


def rename_tensor(old: str, new: str) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        shard = shard_of(directory, old)
        rewrite_header(shard, lambda header: header.update({new: header.pop(old)}))
        change_json(directory / INDEX, lambda index: index["weight_map"].update({new: shard.name}))
        change_json(directory / INDEX, lambda index: index["weight_map"].pop(old))

    return damage


def add_tensors(*names: str) -> Callable[[Path], None]:
    """Put further small tensors into a shard of their own."""

    def damage(directory: Path) -> None:
        entries = {
            n: {"dtype": "F32", "shape": [4], "data_offsets": [16 * i, 16 * i + 16]} for i, n in enumerate(names)
        }
        (directory / "extra.safetensors").write_bytes(header_bytes(entries) + bytes(16 * len(names)))
        change_json(
            directory / INDEX, lambda index: index["weight_map"].update(dict.fromkeys(names, "extra.safetensors"))
        )

    return damage


def write_value(name: str, item: int, pattern: bytes) -> Callable[[Path], None]:
    """Overwrite one stored value; `pattern` is as long as the tensor's items."""

    def damage(directory: Path) -> None:
        shard = shard_of(directory, name)
        header, start_ = read_header(shard)
        with shard.open("r+b") as file:
            file.seek(start_ + header[name]["data_offsets"][0] + item * len(pattern))
            file.write(pattern)

    return damage


def header_length(length: int) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        with shard_of(directory, Q_A).open("r+b") as file:
            file.write(length.to_bytes(8, "little"))

    return damage


def header_text(text: bytes) -> Callable[[Path], object]:
    return lambda directory: shard_of(directory, Q_A).write_bytes(len(text).to_bytes(8, "little") + text)


def cut(count: int) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        shard = shard_of(directory, Q_A)
        with shard.open("r+b") as file:
            file.truncate(shard.stat().st_size - count)

    return damage


def empty(directory: Path) -> None:
    shard_of(directory, Q_A).write_bytes(b"")


def overlap(directory: Path) -> None:
    """Two tensors of equal size share their bytes."""
    norms = ["model.layers.1.input_layernorm.weight", "model.layers.1.post_attention_layernorm.weight"]
    shard = shard_of(directory, norms[0])
    assert shard == shard_of(directory, norms[1])
    rewrite_header(shard, lambda header: header[norms[1]].update(data_offsets=header[norms[0]]["data_offsets"]))


def outside(absolute: bool) -> Callable[[Path], None]:
    """The index names a sound shard that lies beside the directory."""

    def damage(directory: Path) -> None:
        shard = shard_of(directory, Q_A)
        moved = directory.parent / "beside.safetensors"
        shutil.move(shard, moved)
        name = str(moved) if absolute else "../beside.safetensors"
        new = {
            n: name if s == shard.name else s
            for n, s in json.loads((directory / INDEX).read_text())["weight_map"].items()
        }
        change_json(directory / INDEX, lambda index: index.update(weight_map=new))

    return damage


def inside_two_shards(directory: Path) -> None:
    shutil.copyfile(shard_of(directory, Q_A), directory / "copy.safetensors")
    place("model.norm.weight", "copy.safetensors")(directory)
    rewrite_header(directory / "copy.safetensors", lambda header: header.update({"model.norm.weight": header.pop(Q_A)}))


def only_pickle(directory: Path) -> None:
    for shard in directory.glob("*.safetensors"):
        shard.rename(shard.with_suffix(".bin"))
    (directory / INDEX).rename(directory / "pytorch_model.bin.index.json")


def no_index(directory: Path) -> None:
    (directory / INDEX).unlink()
