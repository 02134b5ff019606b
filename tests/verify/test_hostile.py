"""Whatever either side of a proof says, it ends in a verdict or a sentence; a conversion in a plan or a sentence."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections import Counter
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from convert.plan import plan_conversion
from gguf_mla.container.values import Kind, Value, array, boolean, f32, string, u32
from gguf_mla.container.writer import TensorSpec, lay_out
from gguf_mla.errors import GgufMlaError, InputError
from gguf_mla.sources.checkpoint import open_checkpoint
from gguf_mla.sources.folder import LocalFolder
from gguf_mla.text.encoders import of_folder
from gguf_mla.text.tokens import read_tokens
from tests.convert.tokenizer_files import small
from tests.support import hub
from tests.support.command import convert
from tests.verify.faults import Image
from verify.job import Proof, Request, prove

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import Shared

CHANGES = 1200
FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json")
HUGE = 10**39  # longer numbers are refused as JSON
TINY = {
    "num_hidden_layers": 2, "n_routed_experts": 2, "num_experts_per_tok": 1, "n_group": 1, "topk_group": 1,
    "vocab_size": 16, "num_nextn_predict_layers": 0,
}  # fmt: skip
ODD: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 7.5, -0.0, 1e300, 1 << 31, 1 << 32, 1 << 63, 10**40, 10**400, HUGE, -HUGE,
    float("nan"),
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
        hub.write(directory / "c", "v3fp8", **TINY)
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
    assert min(found[key] for key in ("right", "wrong", "refused", "convert right", "convert refused")) > 20, found


def placed(files: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Files with a value at a path; REMOVED takes the place away."""
    files = deepcopy(files)
    *parents, last = path.split("/")
    place = files
    for key in parents:
        place = place[key]
    if value is REMOVED:
        del place[last]
    else:
        place[last] = value
    return files


class Gone:
    """A value that is taken out."""

    def __repr__(self) -> str:
        return "gone"


REMOVED = Gone()
CONFIG_TOKENS = "tokenizer_config.json/added_tokens_decoder"


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("tokenizer.json/model", REMOVED, "model is not BPE"),
        ("tokenizer.json/model", [], "model is not BPE"),
        ("tokenizer.json/model", "BPE", "model is not BPE"),
        ("tokenizer.json/model/vocab", [], "not a mapping"),
        ("tokenizer.json/model/vocab", 7, "not a mapping"),
        ("tokenizer.json/model/vocab/a", "3", "not an integer"),
        ("tokenizer.json/model/vocab/a", None, "not an integer"),
        ("tokenizer.json/model/vocab/a", float("nan"), "not an integer"),
        ("tokenizer.json/model/vocab/a", 1 << 63, "larger than any vocabulary"),
        ("tokenizer.json/model/vocab/a", HUGE, "larger than any vocabulary"),
        ("tokenizer.json/model/vocab/a", -HUGE, "negative"),
        ("tokenizer.json/model/vocab/a", 0, "id 0 is given to both"),
        ("tokenizer.json/model/merges", REMOVED, "merges is not a list"),
        ("tokenizer.json/model/merges", {"a": "b"}, "merges is not a list"),
        ("tokenizer.json/model/merges", [1, 2], "merge 0"),
        ("tokenizer.json/model/merges", [[1, 2]], "merge 0"),
        ("tokenizer.json/model/merges", [["a", "b", "c"]], "merge 0"),
        ("tokenizer.json/added_tokens", {"content": "x"}, "added_tokens is not a list"),
        ("tokenizer.json/added_tokens", "x", "added_tokens is not a list"),
        ("tokenizer.json/added_tokens", [1], "an added token needs"),
        ("tokenizer.json/added_tokens", [{"id": 1}], "an added token needs"),
        ("tokenizer.json/added_tokens", [{"id": [], "content": "x"}], "an added token needs"),
        ("tokenizer.json/added_tokens", [{"id": 1 << 64, "content": "x"}], "an added token needs"),
        (CONFIG_TOKENS, [], "added_tokens_decoder is not an object"),
        (CONFIG_TOKENS, "x", "added_tokens_decoder is not an object"),
        (CONFIG_TOKENS, {"x": {"content": "x"}}, "an added token needs"),
        (CONFIG_TOKENS, {"9" * 400: {"content": "x"}}, "an added token needs"),
        (CONFIG_TOKENS, {"9" * 5000: {"content": "x"}}, "an added token needs"),
        (CONFIG_TOKENS, {"9": 5}, "an added token needs"),
        (CONFIG_TOKENS, {"9": {}}, "an added token needs"),
        ("tokenizer_config.json/bos_token", ["a"], "bos_token cannot be used"),
        ("tokenizer_config.json/bos_token", 7, "bos_token cannot be used"),
        ("tokenizer_config.json/eos_token", {"content": 7}, "eos_token cannot be used"),
        ("tokenizer_config.json/pad_token", True, "pad_token cannot be used"),
        ("config.json/num_hidden_layers", (1 << 32) - 1, "num_hidden_layers"),
        ("config.json/num_hidden_layers", 1000, "num_hidden_layers"),
        ("config.json/rms_norm_eps", HUGE, "rms_norm_eps"),
        ("config.json/rope_theta", float("nan"), "rope_theta"),
        ("config.json/hidden_size", 128.5, "hidden_size"),
    ],
    ids=lambda value: f"{value!r:.40}",
)  # fmt: skip
def test_a_damaged_file_is_named_by_both(path: str, value: Any, words: str, pair: Sound) -> None:
    name = path.partition("/")[0]
    rewrite(pair.directory / name, json.dumps(placed(pair.json, path, value)[name]).encode())
    for run in (lambda: proven(pair.directory, pair.directory.with_suffix(".gguf")), lambda: planned(pair.directory)):
        with pytest.raises(InputError, match=re.escape(words)) as refused:
            run()
        assert name in str(refused.value)
        assert refused.value.status == 2


@pytest.mark.parametrize("listed", [{"DeepseekV3ForCausalLM": 0}, "DeepseekV3ForCausalLM", [["x"]], [HUGE], 5])
def test_a_class_that_is_not_a_list_of_words(listed: Any, pair: Sound) -> None:
    rewrite(pair.directory / "config.json", json.dumps(pair.json["config.json"] | {"architectures": listed}).encode())
    for run in (lambda: proven(pair.directory, pair.directory.with_suffix(".gguf")), lambda: planned(pair.directory)):
        with pytest.raises(InputError, match="DeepseekV3ForCausalLM"):
            run()


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("rope_theta", 0, "the base of the rotation's angles"),
        ("rope_theta", 1.0, "the base of the rotation's angles"),
        ("rms_norm_eps", -1.0, "the epsilon of its norms"),
        ("num_experts_per_tok", 99, "experts of a token"),
        ("n_group", 3, "expert groups"),
        ("rope_scaling/factor", 0, "YaRN's factor"),
        ("rope_scaling/beta_fast", -1, "YaRN's factor"),
        ("hidden_size", 64, "has the wrong shape"),
        ("kv_lora_rank", 64, "has the wrong shape"),
    ],
)
def test_a_reference_that_cannot_be_computed_is_not_held_against_the_candidate(
    path: str, value: Any, words: str, pair: Sound
) -> None:
    files = placed(pair.json, f"config.json/{path}", value)
    rewrite(pair.directory / "config.json", json.dumps(files["config.json"]).encode())
    # the candidate says the same, where it can, or is found to be another before tensors are looked at
    with pytest.raises(InputError, match=re.escape(words)):
        proven(pair.directory, pair.directory.with_suffix(".gguf"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("top_k", 10**38),
        ("top_k", -HUGE),
        ("temperature", HUGE),
        ("temperature", 1e300),
        ("top_p", float("nan")),
        ("min_p", [1]),
    ],
    ids=lambda value: f"{value!r:.40}",
)
def test_an_impossible_sampling_default_is_left_out(key: str, value: Any, pair: Sound) -> None:
    generation = pair.json["generation_config.json"] | {key: value}
    rewrite(pair.directory / "generation_config.json", json.dumps(generation).encode())
    [(plan, _)] = plan_conversion(open_checkpoint(pair.directory), ("Q8_0",))
    lay_out(plan.metadata, [])
    assert any("sampling" in warning for warning in plan.warnings)
    assert proven(pair.directory, pair.directory.with_suffix(".gguf")).right


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("decoder", {"type": "Nope"}),
        ("pre_tokenizer", {"type": "Nope"}),
        ("pre_tokenizer", {"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated", "invert": False}),
        ("normalizer", 5),
    ],
)
def test_a_tokenizer_that_the_library_cannot_read_is_a_sentence(path: str, value: Any, pair: Sound) -> None:
    content = placed(pair.json, f"tokenizer.json/{path}", value)["tokenizer.json"]
    rewrite(pair.directory / "tokenizer.json", json.dumps(content).encode())
    with pytest.raises(InputError, match=r"tokenizer\.json: the package tokenizers cannot read"):
        proven(pair.directory, pair.directory.with_suffix(".gguf"), level="attention")


def test_a_tokenizer_that_truncates_or_pads_reads_the_whole_text_all_the_same(pair: Sound, tmp_path: Path) -> None:
    content = pair.json["tokenizer.json"] | {
        "truncation": {"max_length": 3, "strategy": "LongestFirst", "stride": 5, "direction": "Right"},
        "padding": None,
    }
    rewrite(pair.directory / "tokenizer.json", json.dumps(content).encode())
    (tmp_path / "text").write_text("abc" * 20)
    ids = read_tokens(tmp_path / "text", None, of_folder(LocalFolder(pair.directory)), 2048)
    assert len(ids) == 40  # "ab" and "c"


@pytest.mark.parametrize(
    "name",
    ["rope_freqs.weight", "blk", "blk.x.y.z", "blk.7.attn_norm.weight", f"blk.{'9' * 5000}.x"],
    ids=lambda name: name[:30],
)
def test_a_tensor_that_no_rule_knows(name: str, pair: Sound, tmp_path: Path) -> None:
    image = Image(pair.image.metadata, pair.image.tensors | {name: ((4,), "F32", bytes(16))})
    proof = proven(pair.directory, image.write(tmp_path / "more.gguf"), level="weights")
    if name == "rope_freqs.weight":
        assert proof.right
    else:
        assert [finding.subject for finding in proof.findings] == [name]


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("attention.head_count", u32(0), "head_count"),
        ("block_count", u32((1 << 32) - 1), "block_count"),
        ("block_count", string("2"), "block_count"),
        ("expert_gating_func", array(Kind.U32, [2]), "expert_gating_func"),
        ("expert_weights_scale", string("x"), "expert_weights_scale"),
        ("expert_weights_norm", array(Kind.BOOL, [True]), "expert_weights_norm"),
        ("rope.scaling.yarn_log_multiplier", f32(float("nan")), "yarn_log_multiplier"),
        ("rope.scaling.yarn_beta_fast", array(Kind.F32, [1.0]), "yarn_beta_fast"),
        ("rope.freq_base", f32(0.0), "base of the rotation"),
        ("attention.key_length_mla", u32(64), "not rotated"),
    ],
)
def test_metadata_of_another_type_or_size(name: str, values: Value, words: str, pair: Sound, tmp_path: Path) -> None:
    image = Image(pair.image.metadata | {"deepseek2." + name: values}, pair.image.tensors)
    other, right = image.write(tmp_path / "other.gguf"), pair.directory.with_suffix(".gguf")
    assert not proven(pair.directory, other).right
    with pytest.raises(InputError, match=words):
        proven(other, right)


@pytest.mark.parametrize("key", ["tokens", "merges", "bos_token_id", "add_bos_token", "token_type"])
@pytest.mark.parametrize("value", [u32(7), string("x"), array(Kind.U32, [1]), f32(float("nan"))])
def test_tokenizer_metadata_of_another_type(key: str, value: Value, pair: Sound, tmp_path: Path) -> None:
    image = Image(pair.image.metadata | {"tokenizer.ggml." + key: value}, pair.image.tensors)
    other, right = image.write(tmp_path / "other.gguf"), pair.directory.with_suffix(".gguf")
    assert outcome(lambda: proven(right, other)) != "right"
    assert outcome(lambda: proven(pair.directory, other)) != "right"
