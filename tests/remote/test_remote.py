"""Reading from a hub, over servers of this machine: every fault, and everything that an id can stand for."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import time
from typing import TYPE_CHECKING

import pytest

from tests.remote.plans import FAULTS, Plan
from tests.remote.reader import Read, Reader
from tests.remote.servers import Network
from tests.support import hub
from tests.support.command import gguf_mla

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ID = "hf://someone/model"
MIXES = 4  # python -m tests.remote.faults has hundreds
QUICK = [fault for fault in FAULTS if fault not in ("429", "stall")]  # the others make a reader wait for long
ALWAYS = ("503", "expired", "short", "reset", "wrong-range", "redirect")  # one of each kind; the others are thorough


class World:
    """A repository with a checkpoint and GGUF files, a process that reads it, and what the same gives from disk."""

    def __init__(self, place: Path, net: Network, reader: Reader) -> None:
        self.place, self.net, self.reader = place, net, reader
        self.out = place / "out.gguf"
        self.wanted = self.convert(str(net.directory)).sha256
        assert self.wanted is not None

    def convert(self, source: str, *options: str) -> Read:
        self.out.unlink(missing_ok=True)
        return self.reader.run("convert", source, self.out, "--type", "Q8_0", *options)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    place = tmp_path_factory.mktemp("hub")
    model = hub.write(place / "model", "v3", shard_bytes=12_000_000)
    config = json.loads((model / "config.json").read_text())
    hub.write_json(model / "config.json", config | {"_name_or_path": "someone/model"})
    types = ("--type", "Q8_0", "--type", "Q4_K_M")
    assert gguf_mla("convert", model, place / "m-{type}.gguf", *types, "--quiet").status == 0
    shutil.move(place / "m-Q8_0.gguf", model / "tiny-Q8_0.gguf")
    parts = place / "tiny-Q4_K_M"
    assert gguf_mla("split", place / "m-Q4_K_M.gguf", parts, "--split-max-size", "4M", "--quiet").status == 0
    (model / "Q4_K_M").mkdir()
    for part in place.glob("tiny-Q4_K_M-*.gguf"):
        shutil.move(part, model / "Q4_K_M" / part.name)
    settings = {"run": 1 << 20, "read": 0.5, "pause": 0.02}
    with Network(model) as net, Reader(net, place / "home", settings) as reader:
        yield World(place, net, reader)
        assert not net.books.leaked, "the token went to another host"


@pytest.mark.parametrize(
    "fault", [pytest.param(fault, marks=[] if fault in ALWAYS else pytest.mark.thorough) for fault in FAULTS]
)
def test_each_fault_alone_gives_the_right_bytes(world: World, fault: str) -> None:
    world.net.plans[fault] = Plan([fault], times=1)
    read = world.convert(f"{ID}@{fault}")
    assert (read.status, read.sha256) == (0, world.wanted), read.said
    assert world.net.plans[fault].planted


@pytest.mark.thorough
def test_mixed_faults_give_the_right_bytes_or_one_sentence(world: World) -> None:
    for seed in range(MIXES):
        some = random.Random(seed)
        plan = Plan(some.sample(QUICK, 3), seed=seed, chance=0.3, times=2)
        world.net.plans[f"mix-{seed}"] = plan
        read = world.convert(f"{ID}@mix-{seed}", "--no-resume")
        right = read.status == 0 and read.sha256 == world.wanted
        assert right or (read.status in (2, 3) and read.sha256 is None and read.said.count("error:") == 1), read.said


def test_what_never_ends_is_a_sentence_and_no_file(world: World) -> None:
    world.net.plans["never"] = Plan(["wrong-range"], times=1 << 30)
    read = world.convert(f"{ID}@never")
    assert (read.status, read.sha256) == (3, None)
    assert "another range than was asked for" in read.said


def test_a_file_that_changes_in_mid_run_is_refused(world: World) -> None:
    shard = next(name for name in world.net.names() if name.endswith(".safetensors"))
    assert world.convert(f"{ID}@before").status == 0
    world.net.contents[shard] = "another"
    try:
        read = world.convert(f"{ID}@before")
    finally:
        world.net.contents.clear()
    assert read.status == 3
    assert "has changed on the hub" in read.said


def test_every_range_is_fetched_once_in_few_requests(world: World) -> None:
    commit = world.net.commit("once")
    read = world.convert(f"{ID}@once", "--json")
    ranges = world.net.books.of(commit)
    told = json.loads(read.said)["run"]["network"]
    needs = json.loads(world.convert(f"{ID}@once", "--dry-run", "--json").said)["run"]["network"]
    assert sum(count for *_, count in ranges) <= told["bytes"]
    shards = {name for name, *_ in ranges}
    # The heads are read before the plan is known; all else once.
    assert sum(count for *_, count in ranges) <= 1.01 * needs["bytes"] + len(shards) * (128 << 10)
    assert len(ranges) <= needs["requests"] + 2 * len(shards)


def test_whole_shards_are_compared_with_their_digest(world: World) -> None:
    assert world.convert(f"{ID}@whole", "--verify-source").sha256 == world.wanted
    shard = world.net.directory / next(name for name in world.net.names() if name.endswith("1-of-000004.safetensors"))
    digest, data = world.net.digest(shard.relative_to(world.net.directory).as_posix()), shard.read_bytes()
    changed = shard.stat().st_mtime
    shard.write_bytes(data[:-100] + bytes(100))
    world.net._digests[shard.name] = shard.stat().st_mtime, digest  # the hub states the old one
    try:
        read = world.convert(f"{ID}@damaged", "--verify-source")
    finally:
        shard.write_bytes(data)
        world.net._digests.clear()
    assert changed
    assert read.status == 2
    assert "is not the file that the hub has" in read.said


def test_a_limit_of_the_rate_is_kept(world: World) -> None:
    begin = time.monotonic()
    read = world.convert(f"{ID}@slow", "--bandwidth", "40M")
    assert read.sha256 == world.wanted
    assert time.monotonic() - begin > 0.8 * read.bytes / 40e6


def test_inspect_reads_the_heads_of_all_parts(world: World) -> None:
    far = world.reader.run("inspect", "someone/model:Q4_K_M", "--json")
    near = gguf_mla("inspect", world.net.directory / "Q4_K_M" / "tiny-Q4_K_M-00001-of-00003.gguf", "--json")
    assert far.status == 0, far.said
    found, expected = json.loads(far.said), json.loads(near.output)
    assert found["model"].pop("path").startswith("hf://someone/model@")
    expected["model"].pop("path")
    assert found["model"] == expected["model"]
    assert [given["bytes"] for given in found["inputs"]] == [given["bytes"] for given in expected["inputs"]]
    assert far.bytes < 3_000_000
    ambiguous = world.reader.run("inspect", "someone/model:tiny")
    assert (ambiguous.status, "2 models fit" in ambiguous.said) == (2, True)


def test_a_gguf_file_of_the_hub_is_quantized_and_gives_its_types(world: World) -> None:
    near, far = world.place / "near.gguf", world.place / "far.gguf"
    local = world.net.directory / "tiny-Q8_0.gguf"
    options = ("Q4_K_M", "--allow-requantize")
    expected = world.reader.run("quantize", local, near, *options)
    assert expected.status == 0, expected.said
    assert world.reader.run("quantize", "someone/model:Q8_0", far, *options).sha256 == expected.sha256
    types = ("BF16", "--types-from", "someone/model:Q4_K_M", "--allow-requantize")
    assert world.reader.run("quantize", local, far, *types, "--overwrite").status == 0
    model, other = (json.loads(gguf_mla("inspect", path, "--json").output)["model"]["tensors"] for path in (far, near))
    assert {t["name"]: t["type"] for t in model} == {t["name"]: t["type"] for t in other}


@pytest.mark.thorough
def test_the_importance_of_a_model_of_the_hub_is_that_of_its_files(world: World) -> None:
    near, far, tokens = (world.place / name for name in ("near.imatrix.gguf", "far.imatrix.gguf", "tokens.txt"))
    tokens.write_text(" ".join(map(str, range(3, 40))))
    options = ("--tokens", tokens, "--context", "16", "--chunks", "1", "--no-ppl")
    for model, local in ((ID, world.net.directory), ("someone/model:Q8_0", world.net.directory / "tiny-Q8_0.gguf")):
        expected = world.reader.run("imatrix", local, near, *options, "--overwrite")
        assert expected.status == 0, expected.said
        read = world.reader.run("imatrix", model, far, *options, "--overwrite")
        assert (read.status, read.sha256) == (0, expected.sha256), read.said
        assert read.bytes > 0


def test_a_legacy_file_of_the_hub_is_upgraded(world: World) -> None:
    legacy, near, far = world.net.directory / "tiny-legacy.gguf", world.place / "near.gguf", world.place / "far.gguf"
    assert gguf_mla("downgrade", world.net.directory / "tiny-Q8_0.gguf", legacy, "--quiet").status == 0
    try:
        expected = world.reader.run("upgrade", legacy, near, "--overwrite")
        read = world.reader.run("upgrade", f"{ID}@legacy/tiny-legacy.gguf", far, "--overwrite")
    finally:
        legacy.unlink()
    assert expected.status == 0, expected.said
    assert (read.status, read.sha256) == (0, expected.sha256), read.said
    assert read.bytes > 0


@pytest.mark.thorough
def test_a_model_of_the_hub_is_proven_against_its_checkpoint_there(world: World) -> None:
    read = world.reader.run("verify", f"{ID}@proof", "someone/model:Q8_0", "--level", "weights", "--json")
    assert read.status == 0, read.said
    told = json.loads(next(line for line in read.said.splitlines() if line.startswith("{")))
    assert (told["right"], told["inputs"][0]["path"].startswith("hf://someone/model@")) == (True, True)
    assert len(told["tensors"]) > 10


def test_what_the_cache_holds_is_a_file_of_this_machine(world: World) -> None:
    cache = world.place / "home" / "hub" / "models--someone--model"
    links = []
    for name in (name for name in world.net.names() if name.startswith("Q4_K_M/")):
        blob, link = cache / "blobs" / world.net.digest(name), cache / "snapshots" / world.net.commit("cached") / name
        for path in (blob, link):
            path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(world.net.directory / name, blob)
        link.symlink_to(blob)
        links.append(link)
    command = ("merge", f"{ID}@cached/Q4_K_M/{links[0].name}", world.out, "--overwrite")
    told = json.loads(world.reader.run(*command, "--verify-source", "--json").said)
    assert [given["path"] for given in told["inputs"]] == [str(link) for link in links]
    assert told["run"]["network"] is None
    read = world.reader.run(*command, "--delete-splits")
    assert (read.status, "lies on the hub" in read.said) == (2, True)
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    read = world.reader.run(*command, "--verify-source")
    assert (read.status, "is not the file that the hub has" in read.said) == (2, True)


def test_without_a_connection_the_cache_is_read(world: World) -> None:
    cache = world.place / "offline" / "hub" / "models--someone--model"
    commit = world.net.commit("main")
    shutil.copytree(world.net.directory, cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    before = world.net.books.requests.total()
    with Reader(world.net, world.place / "offline", HF_HUB_OFFLINE="1") as reader:
        world.out.unlink(missing_ok=True)
        read = reader.run("convert", "someone/model", world.out, "--type", "Q8_0")
        assert read.sha256 == world.wanted, read.said
        missing = reader.run("convert", "someone/other", world.out, "--type", "Q8_0")
        assert (missing.status, "not in the hub's cache" in missing.said) == (2, True)
        near, far = world.place / "near.gguf", world.place / "far.gguf"
        expected = reader.run("quantize", world.net.directory / "tiny-Q8_0.gguf", near, "COPY", "--overwrite")
        assert reader.run("quantize", "someone/model:Q8_0", far, "COPY", "--overwrite").sha256 == expected.sha256
        upload = reader.run("quantize", "someone/model:Q8_0", far, "COPY", "--overwrite", "--upload", "me/x")
        assert (upload.status, "HF_HUB_OFFLINE" in upload.said) == (2, True)
    assert world.net.books.requests.total() == before


def test_sentences(world: World) -> None:
    assert "no such revision" in world.convert(f"{ID}@nowhere").said
    assert "is not the id of a repository" in world.convert("hf://someone").said
    assert "names a file" in world.convert(f"{ID}/config.json").said


def test_without_the_extra_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(name: str, _package: str | None = None) -> object:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr("gguf_mla.remote.repository.importlib.import_module", missing)
    answer = gguf_mla("convert", "someone/never-opened", tmp_path / "out.gguf")
    assert answer.status == 2
    assert "pip install huggingface_hub" in answer.output


def test_a_plan_names_the_commit_and_workers_read_it(world: World) -> None:
    plan, moved = world.place / "plan.json", Plan(["503", "short"], times=2)
    world.out.unlink(missing_ok=True)
    world.net.plans["planned"] = moved
    line = ("convert", f"{ID}@planned", world.out, "--type", "Q8_0")
    reads = [world.reader.run("plan", *line, "--out", plan, "--job-size", "2M")]
    assert f"{ID}@{world.net.commit('planned')}" in plan.read_text()
    reads += [world.reader.run("work", plan, "--rank", rank, "--of", 2) for rank in (1, 0)]
    reads.append(world.reader.run("finish", plan))
    assert [read.status for read in reads] == [0, 0, 0, 0], [read.said for read in reads]
    assert hashlib.sha256(world.out.read_bytes()).hexdigest() == world.wanted
    assert moved.planted
