"""Hostile files, by the thousand: `python -m tests.attacks.mutated DIRECTORY COUNT SEED`.

First all that were made by hand, then sound ones with something changed (a COUNT of 0: none of either).

Prints how many were read and how many refused, and the most calls of functions one took. Anything else than reading or
refusing with our own error ends it with a traceback, a file that never ends with an alarm.
"""

from __future__ import annotations

import contextlib
import json
import random
import signal
import struct
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gguf_mla.container.reader import open_gguf
from gguf_mla.container.values import Kind, Value, array, boolean, f32, string, u32
from gguf_mla.container.writer import TensorSpec, lay_out
from gguf_mla.errors import InputError
from gguf_mla.files.input import InputFile
from gguf_mla.sources.checkpoint import INDEX, open_checkpoint
from gguf_mla.sources.safetensors import StoredTensor, read_shard
from tests.attacks import handmade
from tests.support.kinds import FP8, INT4
from tests.support.work import Work

if TYPE_CHECKING:
    from collections.abc import Callable

ENDLESS = 60  # seconds
NUMBERS = (0, 1, 2, 7, 31, 255, 1 << 16, (1 << 31) - 1, 1 << 31, 1 << 40, 1 << 62, 1 << 63, (1 << 64) - 1)
ODD = (None, True, -1, 0, 1.5, 1 << 63, 1 << 64, "", "F32", "U8", "../a", "\0", [], {}, [[]], float("nan"))


def sound_gguf() -> bytes:
    values = {
        "general.architecture": string("deepseek2"),
        "general.alignment": u32(64),
        "flag": boolean(True),
        "scale": f32(0.5),
        "wide": Value(Kind.U64, 1 << 40),
        "tokenizer.ggml.tokens": array(Kind.STRING, ["a", "bb", "", "dé"]),
        "tokenizer.ggml.scores": array(Kind.F32, [1.0, 2.0, 3.0]),
        "bytes": array(Kind.I8, [1, -2, 3]),
    }
    specs = (("a.weight", (2, 3, 32), "Q8_0"), ("b", (7,), "F32"), ("c", (4, 256), "Q4_K"))
    layout = lay_out(values, [TensorSpec(*spec) for spec in specs])
    return layout.head + bytes(layout.size - len(layout.head))


def sound_shard() -> bytes:
    header = {
        "__metadata__": {"format": "pt"},
        "a.weight": {"dtype": "BF16", "shape": [3, 4], "data_offsets": [0, 24]},
        "b": {"dtype": "F32", "shape": [], "data_offsets": [24, 28]},
        "c.weight": {"dtype": "F8_E4M3", "shape": [2, 2, 2], "data_offsets": [28, 36]},
    }
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(36)


def bytes_changed(data: bytes, chance: random.Random) -> bytes:
    """Up to four changes of bytes, numbers or length."""
    content = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(max(1, len(content)))
        kind = chance.randrange(6)
        if kind == 0:
            content[at : at + 1] = bytes([chance.randrange(256)])
        elif kind == 1:
            content[at : at + 8] = struct.pack("<Q", chance.choice(NUMBERS))
        elif kind == 2:
            content[at : at + 4] = struct.pack("<I", chance.choice(NUMBERS) & 0xFFFFFFFF)
        elif kind == 3:
            del content[at : at + chance.randint(1, 16)]
        elif kind == 4:
            content[at:at] = content[at : at + chance.randint(1, 64)]
        else:
            del content[at:]
    return bytes(content)


def tree_changed(value: Any, chance: random.Random) -> Any:
    """A JSON value with one node replaced, removed or renamed."""
    if not isinstance(value, dict | list) or not value or chance.random() < 0.1:
        return chance.choice(ODD)
    if isinstance(value, list):
        at = chance.randrange(len(value))
        return [*value[:at], tree_changed(value[at], chance), *value[at + 1 :]]
    key = chance.choice(list(value))
    rest = {name: item for name, item in value.items() if name != key}
    choice = chance.random()
    if choice < 0.1:
        return rest
    if choice < 0.2:
        return rest | {chance.choice(["", "__metadata__", "b", "é" * 99]): value[key]}
    return value | {key: tree_changed(value[key], chance)}


def rewrite(path: Path, data: bytes) -> None:
    """Write a new file: ext4 brings one that is overwritten to the disk at once, ten milliseconds for each."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def gguf_case(path: Path, chance: random.Random) -> None:
    rewrite(path, bytes_changed(sound_gguf(), chance))
    file = open_gguf(path)
    for value in file.metadata.values():
        str(value)
    for tensor in file.tensors.values():
        tensor.read()


def open_shard(path: Path) -> dict[str, StoredTensor]:
    return read_shard(InputFile(path))


def shard_case(path: Path, chance: random.Random) -> None:
    data = sound_shard()
    if chance.random() < 0.5:
        length = int.from_bytes(data[:8], "little")
        text = json.dumps(tree_changed(json.loads(data[8 : 8 + length]), chance)).encode()
        data = struct.pack("<Q", len(text)) + text + data[8 + length :]
    else:
        data = bytes_changed(data, chance)
    rewrite(path, data)
    for tensor in open_shard(path).values():
        tensor.read()


def checkpoint_case(path: Path, chance: random.Random) -> None:
    config: Any = {"quantization_config": chance.choice((FP8, INT4))}
    index: Any = {"metadata": {"total_size": 64}, "weight_map": {"t": "a.safetensors"}}
    if chance.random() < 0.5:
        index = tree_changed(index, chance)
    else:
        config = tree_changed(config, chance)
    if not path.exists():
        handmade.checkpoint()(path)
    data = json.dumps(index).encode()
    rewrite(path / INDEX, bytes_changed(data, chance) if chance.random() < 0.3 else data)
    rewrite(path / "config.json", json.dumps(config).encode())
    for tensor in open_checkpoint(path).tensors.values():
        tensor.read(0, 1)


CASES: tuple[tuple[str, Callable[[Path, random.Random], None], int], ...] = (
    ("x.gguf", gguf_case, 9),
    ("x.safetensors", shard_case, 8),
    ("checkpoint", checkpoint_case, 3),
)


ATTACKS: tuple[tuple[Callable[[Path], Any], handmade.Attack], ...] = (
    *((open_gguf, made) for made in handmade.GGUF),
    *((open_shard, made) for made in handmade.SAFETENSORS),
    *((open_checkpoint, made) for made in handmade.CHECKPOINTS),
)


def attack(directory: Path) -> None:
    """Open every file that was made by hand."""
    for number, (reader, made) in enumerate(ATTACKS):
        path = directory / str(number)
        made.write(path)
        with contextlib.suppress(InputError):
            reader(path)


def mutate(directory: Path, count: int, seed: int) -> dict[str, Any]:
    """Try `count` changed files; return what came of them."""
    chance, outcome, most = random.Random(seed), Counter[str](), 0
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for name, case, share in CASES:
        path = directory / name
        for _ in range(count * share // 20):
            signal.alarm(ENDLESS)
            work = Work()
            try:
                with work:
                    case(path, chance)
                outcome["read"] += 1
            except InputError as error:
                assert str(path) in str(error) or "config.json" in str(error), error
                assert len(str(error)) < 70_000
                outcome["refused"] += 1
            most = max(most, work.calls)
    signal.alarm(0)
    return {**outcome, "calls": most}


if __name__ == "__main__":
    if int(sys.argv[2]):
        attack(Path(sys.argv[1]))
    print(json.dumps(mutate(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
