"""Whatever either side of a proof says, it ends in a verdict or a sentence; a conversion in a plan or a sentence."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from convert.plan import plan_conversion
from gguf_mla.container.values import Kind, Value, array, boolean, f32, string, u32
from gguf_mla.container.writer import TensorSpec, lay_out
from gguf_mla.errors import GgufMlaError
from gguf_mla.sources.checkpoint import open_checkpoint
from tests.convert.tokenizer_files import small
from tests.support import hub
from tests.support.command import convert
from tests.verify.faults import Image
from verify.job import Proof, Request, prove

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import Shared

CHANGES = 3200
FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json")
HUGE = 10**400
ODD: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 7.5, -0.0, 1e300, 1 << 31, 1 << 32, 1 << 63, 10**40, HUGE, -HUGE, float("nan"),
    float("inf"), "", "a", "a b", "\ud800", "0", "9" * 400, [], [0], ["a"], [None], [["a", "b"]], {}, {"a": 0},
    {"type": "Nope"}, {"content": 5}, {"content": "a"}, {"id": 1},
)  # fmt: skip
VALUES = (
    u32(0), u32(1), u32((1 << 32) - 1), Value(Kind.U64, (1 << 64) - 1), Value(Kind.I64, -(1 << 63)), f32(0.0),
    f32(float("nan")), f32(float("inf")), f32(-1.0), Value(Kind.F64, 1e300), boolean(True), string(""), string("none"),
    string("deepseek32"), array(Kind.U32, []), array(Kind.I32, [-1, 5]), array(Kind.STRING, ["a"]),
    array(Kind.BOOL, [True]), array(Kind.F32, [float("nan")]),
)  # fmt: skip


def changed(value: Any, chance: random.Random) -> Any:
    """A JSON value with one node replaced, removed, renamed or added."""
    if not isinstance(value, dict | list) or not value or chance.random() < 0.12:
        return chance.choice(ODD)
    if isinstance(value, list):
        at = chance.randrange(len(value))
        return [*value[:at], changed(value[at], chance), *value[at + 1 :]]
    key, kind = chance.choice(list(value)), chance.random()
    rest = {name: item for name, item in value.items() if name != key}
    if kind < 0.1:
        return rest
    if kind < 0.2:
        return rest | {chance.choice(["", "type", "content", "9" * 5000, "é" * 99, "-1", "１"]): value[key]}
    return value | {key: changed(value[key], chance)}


def renamed(name: str, chance: random.Random) -> str:
    digits = "9" * 5000
    return chance.choice(
        ["rope_freqs.weight", "blk", "blk.", "blk.0", "blk.0.", "blk.x.attn_norm.weight", f"blk.{digits}.x.weight",
         "blk.-1.attn_norm.weight", "blk.9.attn_kv_b.weight", "blk.00.attn_norm.weight", "x", name + "x",
         "blk.0.attn_kv_b.weight"]
    )  # fmt: skip


@dataclass
class Sound:
    """A right pair: the files of a checkpoint as JSON, and a GGUF file taken apart."""

    directory: Path
    json: dict[str, Any]
    image: Image

    def checkpoint(self, chance: random.Random) -> None:
        """Change one or two things in one of the JSON files."""
        name = chance.choice(FILES)
        content = self.json[name]
        for _ in range(chance.randint(1, 2)):
            content = changed(content, chance)
        rewrite(self.directory / name, json.dumps(content).encode())

    def restore(self) -> None:
        for name, content in self.json.items():
            rewrite(self.directory / name, json.dumps(content).encode())

    def gguf(self, path: Path, chance: random.Random) -> Path:
        """Write the file with one or two things of its head changed."""
        metadata, specs = dict(self.image.metadata), list(self.image.tensors.items())
        for _ in range(chance.randint(1, 2)):
            self._change(metadata, specs, chance)
        layout = lay_out(metadata, [TensorSpec(name, shape, kind) for name, (shape, kind, _) in dict(specs).items()])
        path.unlink(missing_ok=True)
        with path.open("wb") as file:
            file.write(layout.head)
            file.truncate(layout.size)
        return path

    @staticmethod
    def _change(metadata: dict[str, Value], specs: list[Any], chance: random.Random) -> None:
        at, kind = chance.randrange(len(specs)), chance.random()
        name, (shape, stored, data) = specs[at]
        if kind < 0.6:
            metadata[chance.choice(list(metadata))] = chance.choice(VALUES)
        elif kind < 0.7:
            del metadata[chance.choice(list(metadata))]
        elif kind < 0.8:
            specs.insert(at, (renamed(name, chance), (shape, stored, data)))
        elif kind < 0.85:
            specs[at] = (renamed(name, chance), (shape, stored, data))
        elif kind < 0.95:
            specs[at] = (name, (chance.choice([(1,), (32,), shape[::-1], (1, *shape)[:4], (32, 32)]), "F32", data))
        elif len(specs) > 1:
            del specs[at]


def rewrite(path: Path, data: bytes) -> None:
    """Write a new file: one that is overwritten is brought to the disk at once, ten milliseconds for each."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


@pytest.fixture(scope="module")
def sound(shared: Shared, tmp_path_factory: pytest.TempPathFactory) -> Sound:
    def fill(directory: Path) -> None:
        hub.write(directory / "c", "v3fp8", num_hidden_layers=2, n_routed_experts=4, num_experts_per_tok=2)
        for name, content in small().items():
            if name != "config.json":
                (directory / "c" / name).write_text(json.dumps(content), encoding="utf-8")
        generation = {"bos_token_id": 0, "top_k": 40, "temperature": 0.6, "top_p": 0.95}
        (directory / "c" / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
        convert(directory / "c", directory / "c.gguf", "Q8_0")

    made = shared("hostile", fill)
    directory = shutil.copytree(made / "c", tmp_path_factory.mktemp("hostile") / "c")
    content = {name: json.loads((directory / name).read_text(encoding="utf-8")) for name in FILES}
    shutil.copyfile(made / "c.gguf", directory.with_suffix(".gguf"))
    return Sound(directory, content, Image.of(directory.with_suffix(".gguf")))


@pytest.fixture
def pair(sound: Sound) -> Iterator[Sound]:
    """The sound pair; what a test changes in its checkpoint is put right again."""
    yield sound
    sound.restore()


def proven(reference: Path, candidate: Path, **options: Any) -> Proof:
    return prove(Request(reference, candidate, **{"level": "structure", **options}))


def planned(checkpoint: Path) -> None:
    """Plan a conversion as far as the bytes of the file's head."""
    for plan, _ in plan_conversion(open_checkpoint(checkpoint), ("Q8_0",)):
        lay_out(plan.metadata, [])


def outcome(run: Callable[[], Proof | None]) -> str:
    try:
        proof = run()
    except GgufMlaError as error:
        assert error.status in (2, 3)
        return "refused"
    return "right" if proof is None or proof.right else "wrong"


def test_whatever_files_say_a_proof_is_a_verdict_or_a_sentence(pair: Sound, tmp_path: Path) -> None:
    assert proven(pair.directory, pair.directory.with_suffix(".gguf")).right
    chance, found = random.Random(0), Counter[str]()
    right = pair.directory.with_suffix(".gguf")
    for number in range(CHANGES):
        seed = chance.getrandbits(32)
        case = random.Random(seed)
        try:
            if number % 2:
                other = pair.gguf(tmp_path / "other.gguf", case)
                sides = (other, right) if number % 4 == 1 else (pair.directory, other)
                found[outcome(lambda sides=sides: proven(*sides))] += 1
            else:
                pair.checkpoint(case)
                found[outcome(lambda: proven(pair.directory, right))] += 1
                found["convert " + outcome(lambda: planned(pair.directory))] += 1
                pair.restore()
        except Exception as error:
            error.add_note(f"number {number}, seed {seed}")
            raise
    assert min(found[key] for key in ("right", "wrong", "refused", "convert right", "convert refused")) > 50, found
