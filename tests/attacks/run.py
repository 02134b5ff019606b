"""Changed files over all readers and commands: `python -m tests.attacks.run --count 50000 [--seed 0]`.

Every input is a sound file with something changed. It is read by one reader or command, in children of this process of
BATCH inputs each, and what came of it is counted. Prints a table: how many were read or refused, ended with a traceback
or, outside of verify, with status 1, took longer than SLOW or more memory than LARGE. Ends with status 1 if any did.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import verify.run  # noqa: F401 - loaded here: torch is more than a child may take
from gguf_mla.container.reader import open_gguf
from gguf_mla.errors import GgufMlaError
from gguf_mla.files import checksums
from gguf_mla.importance.matrix import read_imatrix
from gguf_mla.sources.checkpoint import INDEX, open_checkpoint
from gguf_mla.stream.journal import finished, journal_path
from tests.attacks.costly import dat
from tests.attacks.mutated import bytes_changed, open_shard, sound_gguf, sound_shard, tree_changed
from tests.support.command import gguf_mla
from tests.support.hub import BUNDLED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Case = Callable[[Path, random.Random], object]

BATCH = 50  # inputs that share a child, whose memory is what the largest of them took
SLOW = 1.0  # seconds of CPU
LARGE = 200_000_000  # bytes
ENDLESS = 120  # seconds
OUTCOMES = ("read", "refused", "status 1", "traceback", "killed", "slow", "large")
BAD = OUTCOMES[2:]
CARD = b"---\nlicense: mit\ntags:\n- a\n- b\nbase_model: a/b\n---\n# Model\n"
JSONS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", INDEX)


def changed_file(path: Path, data: bytes, chance: random.Random) -> Path:
    path.unlink(missing_ok=True)
    path.write_bytes(bytes_changed(data, chance))
    return path


def changed_legacy(directory: Path, chance: random.Random) -> Path:
    return changed_model(directory, chance, "legacy.gguf")


def changed_model(directory: Path, chance: random.Random, name: str = "sound.gguf") -> Path:
    """The bundled checkpoint as a GGUF file, with changes in its head, which is most of what a reader believes."""
    data, path = (directory / name).read_bytes(), directory / "model.gguf"
    cut = chance.choice((2000, 20_000, len(data)))
    return changed_file(path, data, chance) if cut == len(data) else _spliced(path, data, cut, chance)


def _spliced(path: Path, data: bytes, cut: int, chance: random.Random) -> Path:
    path.unlink(missing_ok=True)
    path.write_bytes(bytes_changed(data[:cut], chance) + data[cut:])
    return path


def changed_checkpoint(directory: Path, chance: random.Random) -> Path:
    """The bundled checkpoint with one of its JSON files changed, or a shard's head."""
    path = directory / "checkpoint"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    for file in BUNDLED.iterdir():
        (path / file.name).symlink_to(file)
    name = chance.choice([*JSONS, "model-00001-of-000002.safetensors", "README.md"])
    data = CARD if name == "README.md" else (BUNDLED / name).read_bytes()
    (path / name).unlink(missing_ok=True)
    if name.endswith(".json") and chance.random() < 0.7:
        (path / name).write_text(json.dumps(tree_changed(json.loads(data), chance)))
    else:
        (path / name).write_bytes(bytes_changed(data[:3000], chance) + data[3000:])
    return path


def command(name: str, *before: str, after: tuple[str, ...] = (), source: Case = changed_model) -> Case:
    """A command over a changed model or checkpoint."""

    def case(directory: Path, chance: random.Random) -> object:
        path = source(directory, chance)
        first, last = ([item.format(dir=directory) for item in items] for items in (before, after))
        return gguf_mla(name, *first, path, *last)

    return case


def _head(directory: Path, chance: random.Random) -> object:
    file = open_gguf(changed_file(directory / "x.gguf", sound_gguf(), chance))
    return [str(value) for value in file.metadata.values()], [tensor.read() for tensor in file.tensors.values()]


def _shard(directory: Path, chance: random.Random) -> object:
    return [t.read() for t in open_shard(changed_file(directory / "x", sound_shard(), chance)).values()]


def _dat(directory: Path, chance: random.Random) -> object:
    dat(3, 3)(directory / "sound.dat")
    matrix = read_imatrix([changed_file(directory / "x.dat", (directory / "sound.dat").read_bytes(), chance)])
    return [matrix.sums(name) for name in matrix.names]


def _checksum(directory: Path, chance: random.Random) -> object:
    path = directory / "x.gguf"
    changed_file(checksums.beside(path), b"%s  x.gguf\n" % (b"0" * 64), chance)
    return checksums.stated(path)


def _journal(directory: Path, chance: random.Random) -> object:
    head = json.dumps({"version": "1", "plan": "0", "inputs": [["a", 1, 2, "b"]], "importance": "0"}).encode()
    changed_file(journal_path(directory / "x.gguf"), head + b"\n0 100 00000000\n1 100 0000000f\nfinished\n", chance)
    return bool(finished(directory / "x.gguf", 1))


OUT = ("{dir}/out.gguf", "--overwrite", "--quiet", "--threads", "1")
CASES: dict[str, tuple[Case, int]] = {  # with a share of all inputs, in percent
    "GGUF head": (_head, 24),
    "shard": (_shard, 20),
    "checkpoint": (lambda d, chance: open_checkpoint(changed_checkpoint(d, chance)), 12),
    "importance .dat": (_dat, 10),
    "checksum": (_checksum, 6),
    "journal": (_journal, 6),
    "inspect": (command("inspect", after=("--tensors",)), 6),
    "inspect --context": (command("inspect", after=("--context", "4096")), 2),
    "convert --dry-run": (command("convert", after=("{dir}/o.gguf", "--dry-run"), source=changed_checkpoint), 4),
    "quantize": (command("quantize", after=(*OUT, "COPY")), 2),
    "split": (command("split", after=(*OUT, "--split-max-tensors", "9")), 2),
    "merge": (command("merge", after=OUT), 2),
    "upgrade": (command("upgrade", after=OUT, source=changed_legacy), 2),
    "verify": (command("verify", str(BUNDLED), after=("--level", "structure", "--quiet")), 2),
}


def batches(count: int) -> Iterator[tuple[str, int, int]]:
    """Yield a kind, the number of the first input, and how many there are."""
    for kind, (_, share) in CASES.items():
        for first in range(0, count * share // 100, BATCH):
            yield kind, first, min(BATCH, count * share // 100 - first)


def tried(kind: str, first: int, count: int, seed: int, directory: Path) -> Counter[str]:
    """Do a batch in a child; return what came of it. The first of every bad outcome is shown."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        signal.alarm(ENDLESS)
        gc.freeze()  # what is loaded here is not looked through at the cost of an input
        found = _batch(kind, first, count, seed, directory)
        os.write(writing, json.dumps(found).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    if not said:
        print(f"{kind}: a batch was killed, inputs {first} to {first + count - 1}", file=sys.stderr)
    return Counter(json.loads(said)) if said else Counter(killed=1)


def _batch(kind: str, first: int, count: int, seed: int, directory: Path) -> Counter[str]:
    case, outcomes = CASES[kind][0], Counter[str]()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(first, first + count):
        begin = time.process_time()
        outcome = _outcome(case, directory, random.Random(f"{seed} {kind} {number}"), kind)
        outcomes[outcome] += 1
        if time.process_time() - begin > SLOW:
            outcomes["slow"] += 1
            print(f"{kind} {number}: {time.process_time() - begin:.1f} s", file=sys.stderr)
    if (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 > LARGE:
        outcomes["large"] += 1
    return outcomes


def _outcome(case: Case, directory: Path, chance: random.Random, kind: str) -> str:
    try:
        answer: Any = case(directory, chance)
    except GgufMlaError:
        return "refused"
    except BaseException:
        print(f"{kind}: {traceback.format_exc()}", file=sys.stderr)
        return "traceback"
    status = getattr(answer, "status", 0)
    if status == 1 and kind != "verify":
        print(f"{kind}: status 1: {answer.output[-300:]}", file=sys.stderr)
        return "status 1"
    return "refused" if status > 1 else "read"


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--count", type=int, default=2000)
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    table = {kind: Counter[str]() for kind in CASES}
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        for words in (
            ("convert", BUNDLED, "sound.gguf", "--type", "BF16"),
            ("downgrade", "sound.gguf", "legacy.gguf"),
            ("upgrade", "legacy.gguf", "again.gguf"),  # so that kernels are compiled before anything is measured
        ):
            answer = gguf_mla(*words, "--quiet")
            assert answer.status == 0, answer.output
        for kind, first, count in batches(given.count):
            table[kind] += tried(kind, first, count, given.seed, Path(place))
    print("  ".join([f"{'':18}", *(f"{outcome:>9}" for outcome in OUTCOMES)]))
    for kind, found in {**table, "all": sum(table.values(), Counter[str]())}.items():
        print("  ".join([f"{kind:18}", *(f"{found[outcome]:9}" for outcome in OUTCOMES)]))
    return int(any(found[outcome] for found in table.values() for outcome in BAD))


if __name__ == "__main__":
    sys.exit(main())
