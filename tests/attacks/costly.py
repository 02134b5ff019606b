"""Files that are small on the disk and cost much where a reader believes them: each is a name, a call and a file.

`words` are what a refusal says; without any, reading or refusing are both right as long as they cost little.
"""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convert.general import Parameters, general_metadata
from gguf_mla.container.reader import open_gguf
from gguf_mla.container.splits import open_gguf_parts
from gguf_mla.files import checksums, json_text
from gguf_mla.files.stamp import stamp
from gguf_mla.forward.architecture import read_gguf
from gguf_mla.importance.matrix import read_imatrix
from gguf_mla.sources.checkpoint import INDEX, open_checkpoint
from gguf_mla.sources.config import Config
from gguf_mla.sources.folder import open_folder
from gguf_mla.stream.journal import finished, journal_path
from tests.attacks.handmade import (
    ARRAY,
    STRING,
    U32,
    array,
    checkpoint,
    entry,
    gguf,
    placed,
    shard,
    stored,
    tensor,
    text,
)
from tests.attacks.mutated import open_shard
from tests.support.command import gguf_mla

if TYPE_CHECKING:
    from collections.abc import Callable

U16, I32, F32, U64 = 2, 5, 6, 10
MB = 1_000_000


@dataclass(frozen=True)
class Costly:
    """`write` makes a file at a path, `call` reads it; `words` are part of what is said."""

    name: str
    call: Callable[[Path], object]
    words: str
    write: Callable[[Path], object]


def command(*arguments: Any) -> Callable[[Path], tuple[int, str]]:
    """A call of the command; None among the arguments stands for the path."""

    def call(path: Path) -> tuple[int, str]:
        os.chdir(path.parent)
        answer = gguf_mla(*(path if argument is None else argument for argument in arguments))
        return answer.status, answer.output

    return call


def u32(key: str, value: int, kind: int = U32) -> bytes:
    return entry(key, kind, struct.pack({U16: "<H", U32: "<I", I32: "<i", U64: "<Q"}[kind], value))


def model(blocks: int = 1, kind: int = U32, **other: int) -> tuple[bytes, ...]:
    """Metadata of a deepseek32 model, the least that its readers ask for."""
    keys = {
        "block_count": blocks, "embedding_length": 8, "attention.head_count": 2, "attention.key_length_mla": 6,
        "attention.value_length_mla": 4, "attention.kv_lora_rank": 4, "rope.dimension_count": 2,
        "feed_forward_length": 8, "expert_feed_forward_length": 8, "expert_shared_count": 1, "expert_count": 2,
        "expert_used_count": 1, "attention.indexer.key_length": 8, "attention.indexer.head_count": 1,
        "attention.indexer.top_k": 1, "vocab_size": 8, **other,
    }  # fmt: skip
    floats = ("attention.layer_norm_rms_epsilon", "rope.freq_base")
    return (
        entry("general.architecture", STRING, text("deepseek32")),
        *(u32(f"deepseek32.{key}", value, kind if key == "block_count" else U32) for key, value in keys.items()),
        *(entry(f"deepseek32.{key}", F32, struct.pack("<f", 1.0)) for key in floats),
    )


def configured(**keys: Any) -> Callable[[Path], Config]:
    """A call that asks a configuration for keys that readers count by."""

    def call(path: Path) -> Config:
        config = Config(keys, path)
        for key in keys:
            config.integer(key)
        return config

    return call


def described(path: Path) -> None:
    """Read a model card; everything that it says is short."""
    values, warnings = general_metadata(open_folder(path), "deepseek2", Parameters(1, 1, 0, 0))
    assert len(str(warnings)) < 5000
    assert len(str(values)) < 5000


def dat(count: int, made: int, values: int = 1, size: int | None = None) -> Callable[[Path], None]:
    """An importance file of `made` entries that claims `count`; `size` makes it larger by a hole."""

    def write(path: Path) -> None:
        entries = b"".join(struct.pack("<i8sii", 8, b"%08d" % number, 1, values) + bytes(4) for number in range(made))
        path.write_bytes(struct.pack("<i", count) + entries)
        if size is not None:
            os.truncate(path, size)

    return write


def index(names: int) -> Callable[[Path], None]:
    """A checkpoint whose index names so many shards."""
    return checkpoint({"weight_map": {f"t{number}": f"s{number}" for number in range(names)}})


def beside(suffix: str) -> Callable[[Path], None]:
    """A file with a pipe of this ending beside it."""

    def write(path: Path) -> None:
        gguf()(path)
        os.mkfifo(path.with_name(path.name + suffix))

    return write


def words(count: int) -> Callable[[Path], None]:
    return gguf((entry("tokenizer.ggml.tokens", ARRAY, array(STRING, count, bytes(8 * count))),))


def numbers(kind: int, count: int, size: int) -> Callable[[Path], None]:
    return gguf((entry("k", ARRAY, array(kind, count, bytes(size * count))),))


def hollow(size: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.touch()
        os.truncate(path, size)

    return write


LONG = b"9" * 4200
SHAPES = (
    Costly("a shape of a million", open_shard, "malformed", shard({"t": stored([9_999_999] * MB, 0, 64)})),
    Costly("a shape of a million ones", open_shard, "malformed", shard({"t": stored([1] * MB, 0, 64)})),
    Costly("a product of 32 numbers", open_shard, "contradict", shard({"t": stored([10**39] * 32, 0, 64)})),
    Costly(
        "numbers of 4200 digits",
        open_shard,
        "4200 digits",
        shard(b'{"t":{"dtype":"F32","shape":[' + b",".join([LONG] * 7500) + b'],"data_offsets":[0,64]}}'),
    ),
    Costly("many different numbers", open_shard, "", shard(b"[" + b",".join([b"9" * 39] * 800_000) + b"]")),
    Costly("a row of 2^28", open_shard, "length of a row",
           shard({"t": stored([1 << 28], 0, 1 << 30)}, b"", size=(1 << 30) + 74)),
)  # fmt: skip
SPLITS = tuple(
    Costly(
        f"{count} parts, {kind}",
        call,
        said,
        gguf((u32("split.count", count, kind), u32("split.no", 0, U16), u32("split.tensors.count", 0, I32))),
    )
    for call in (open_gguf_parts, command("merge", None, "out.gguf"))
    for count, kind, said in (
        (1 << 40, U64, "split.count"),
        ((1 << 32) - 1, U32, "split.count"),
        (3 * MB, U32, "split.count"),
        (65_535, U16, "its name does not say so"),
    )
)
COUNTS = (
    Costly("3e8 layers", lambda path: read_gguf(open_gguf_parts(path)), "block_count", gguf(model(300 * MB))),
    Costly("2^32 - 1 layers", lambda path: read_gguf(open_gguf_parts(path)), "block_count",
           gguf(model((1 << 32) - 1))),
    Costly("2^32 - 1 layers as a reference", command("verify", None, None), "block_count", gguf(model((1 << 32) - 1))),
    Costly("2^32 layers", command("inspect", None, "--context", 8), "block_count", gguf(model(1 << 32, U64))),
    Costly("no layers", command("inspect", None, "--context", 8), "block_count", gguf(model(0))),
    Costly("no layers to fit", command("inspect", None, "--fit", "80G"), "block_count", gguf(model(0))),
    Costly("negative layers", command("inspect", None, "--fit", "80G"), "block_count",
           gguf((*model()[:1], u32("deepseek32.block_count", -4, I32), *model()[2:]))),
    Costly("only predicting layers", command("inspect", None, "--fit", "8G"), "predicts",
           gguf(model(2, nextn_predict_layers=2))),
    *(
        Costly(f"{key} in a configuration", configured(**{key: (1 << 32) - 1}), key, Path.touch)
        for key in ("num_hidden_layers", "num_nextn_predict_layers", "index_skip_topk_offset", "vocab_size")
    ),
    Costly("an alignment of 2^31", command("quantize", None, "out.gguf", "COPY"), "general.alignment",
           gguf((u32("general.alignment", 1 << 31), u32("deepseek2.block_count", 1)), size=1 << 33)),
    Costly("an alignment of 2^17", open_gguf, "general.alignment", gguf((u32("general.alignment", 1 << 17),))),
    Costly("experts by the million", open_gguf, "experts and heads",
           gguf(tensors=(tensor("t", (1, 1, 1 << 22)),), size=1 << 25)),
    Costly("experts of many tensors", open_gguf, "experts and heads",
           gguf(tensors=tuple(tensor(f"t{n}", (1, 1, 1 << 18), offset=n << 20) for n in range(9)), size=1 << 25)),
    Costly("a vector of 2^28", command("quantize", None, "out.gguf", "COPY"), "length of a row",
           gguf(tensors=(tensor("t", (1 << 28,)),), size=1 << 31)),
    Costly("rows of 2^28", open_gguf, "length of a row", gguf(tensors=(tensor("t", (1 << 28, 2)),), size=1 << 32)),
)  # fmt: skip
LISTS = (
    Costly("a million entries", lambda path: read_imatrix([path]), "number of entries", dat(MB, MB)),
    Costly("40 000 entries", lambda path: read_imatrix([path]), "", dat(40_000, 40_000)),
    Costly("values in a hole", lambda path: read_imatrix([path]), "number of values", dat(1, 1, 1 << 30, 1 << 33)),
    Costly("a million shards", open_checkpoint, "more shards", index(MB)),
    Costly("70 000 shards", open_checkpoint, "more shards", index(70_000)),
    Costly("60 000 shards", open_checkpoint, "missing", index(60_000)),
    Costly("four million strings", command("inspect", None), "tokens", words((1 << 22) - 1)),
    Costly("four million numbers", command("inspect", None), "u64", numbers(U64, (1 << 22) - 1, 8)),
    Costly("four million bytes", command("inspect", None, "--json"), "length", numbers(0, (1 << 22) - 1, 1)),
    Costly("a text of 60 MB", command("inspect", None), "more text",
           gguf((entry("k", STRING, text("😀" + "x" * 60 * MB)),))),
    Costly("many long texts", open_gguf, "more text",
           gguf(tuple(entry(f"k{n}", STRING, text("😀" + "x" * MB)) for n in range(40)))),
    Costly("many long keys", open_gguf, "more text",
           gguf(tuple(entry(f"{n:065000}", U32, bytes(4)) for n in range(600)))),
    Costly("100 000 tensors", open_gguf, "",
           gguf(tensors=tuple(tensor(f"blk.{n}.t", (8,), offset=32 * n) for n in range(100_000)),
                data=bytes(3_200_000))),
)  # fmt: skip
TEXTS = (
    Costly("one emoji in 30 MB", lambda path: json_text.parse(path.read_bytes()), "",
           lambda path: path.write_text(json.dumps({"k": "x" * 30 * MB})[:-2] + '😀"}', encoding="utf-8")),
    Costly("an emoji in each of a thousand texts", lambda path: json_text.parse(path.read_bytes()), "",
           lambda path: path.write_text(json.dumps(["x" * 30_000 + "😀"] * 900, ensure_ascii=False), encoding="utf-8")),
    Costly("seven million emojis", lambda path: json_text.parse(path.read_bytes()), "",
           lambda path: path.write_text('["' + "😀" * 7 * MB + '"]', encoding="utf-8")),
    Costly("a million members", lambda path: json_text.parse(path.read_bytes()), "",
           lambda path: path.write_text(json.dumps(dict.fromkeys(map(str, range(MB)), 0)))),
    Costly("a configuration of a million members", open_checkpoint, "larger than",
           checkpoint(config=dict.fromkeys(map(str, range(MB)), 0))),
    Costly("a configuration with a text of 30 MB", open_checkpoint, "larger than",
           checkpoint(config=b'{"k": "' + b"x" * 30 * MB + b'"}')),
    Costly("a template in a hole", lambda path: open_checkpoint(path).folder.text("t", 1 << 22), "larger than",
           checkpoint(placed("a.safetensors"), t=hollow(600 * MB))),
)  # fmt: skip
CARDS = tuple(
    Costly(name, described, said, checkpoint(**{"README.md": write}))
    for name, said, write in (
        ("a card in a hole", "", hollow(600 * MB)),
        ("a front matter in a hole", "", lambda path: (path.write_text("---\na: b\n"), os.truncate(path, 600 * MB))),
        ("2 MB of front matter", "", lambda path: path.write_text("---\n" + "a: {b: [c]}\n" * 170_000 + "---\n")),
        ("a front matter of nothing but objects", "", lambda path: path.write_text(
            "---\n" + "".join(f"k{n}: {{}}\n" for n in range(5000)) + "---\n")),
        ("aliases of aliases", "", lambda path: path.write_text(
            "---\na0: &a0 [x, x]\n"
            + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 99)) + "---\n")),
        ("a card with a long text", "", lambda path: path.write_text("---\nlicense: mit\n---\n" + "x\n" * MB)),
    )
)  # fmt: skip
PIPES = (
    Costly("a pipe as checksum", checksums.stated, "not a regular file", beside(".sha256")),
    Costly("a pipe as checksum, inspected", command("inspect", "--verify", None), "not a regular file",
        beside(".sha256")),
    Costly("a pipe as journal", lambda path: finished(path, 1), "", beside(".journal")),
    Costly("a pipe as journal of a run", command("quantize", None, "out.gguf", "COPY"), "",
           lambda path: (gguf()(path), os.mkfifo(journal_path(path.with_name("out.gguf"))))),
    Costly("a pipe as an input's stamp", stamp, "not a regular file", os.mkfifo),
    Costly("checksums in a hole", checksums.stated, "larger than",
           lambda path: (gguf()(path), hollow(1 << 33)(checksums.beside(path)))),
    Costly("a journal in a hole", lambda path: finished(path, 1), "",
           lambda path: (gguf()(path), hollow(1 << 33)(journal_path(path)))),
    Costly("an index in a hole", open_checkpoint, "larger than", checkpoint(**{INDEX: hollow(1 << 40)})),
)  # fmt: skip
COSTLY = (*SHAPES, *SPLITS, *COUNTS, *LISTS, *TEXTS, *CARDS, *PIPES)
