"""All that reading from the hub has to withstand, at length: python -m tests.remote.faults [RUNS] [DIRECTORY] [PART...]

Each fault alone, RUNS random mixes, a killed run that is continued, memory, bytes and requests beside a local run, and
the share of a link of 1 Gbit/s and 50 ms that is reached. `large` is faults and mixes again, with a checkpoint of more
than 200 MB and requests as they are; `uploads` goes from the hub to the hub. What is found is printed; status 1 if
anything is not right.
"""

from __future__ import annotations

import json
import random
import signal
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from gguf_mla.remote.layout import RUN_BYTES
from tests.remote.disk import Disk
from tests.remote.plans import FAULTS, Link, Plan
from tests.remote.reader import Reader, peak_of
from tests.remote.servers import Network
from tests.support.command import gguf_mla

if TYPE_CHECKING:
    from collections.abc import Iterator

GIGABIT, LATENCY = 125e6, 0.05
READERS = 4  # at a time; most of what a fault costs is waiting
MIB = 1 << 20


def main() -> int:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    with tempfile.TemporaryDirectory() as made:
        place = Path(sys.argv[2] if len(sys.argv) > 2 else made)
        parts = {
            "measures": _measures,
            "rate": _rate,
            "killed": _killed,
            "faults": _Faults(runs),
            "large": _Faults(max(1, runs // 10), "220M", RUN_BYTES),
            "uploads": _uploads,
        }
        failures = [failed for part in sys.argv[3:] or parts for failed in parts[part](place)]
    print(*(f"FAILED: {failed}" for failed in failures), sep="\n")
    print("all right" if not failures else f"{len(failures)} failures")
    return bool(failures)


def checkpoint(place: Path, family: str, size: str) -> Path:
    """Make a checkpoint once; all its names say the same model, wherever it lies."""
    directory = place / f"of-{family}-{size}" / "model"
    if not directory.is_dir():
        assert gguf_mla("demo", directory, "--family", family, "--size", size).status == 0
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps(config | {"_name_or_path": "someone/model"}))
    return directory


def _measures(place: Path) -> Iterator[str]:
    """Bytes, requests and memory of a run, beside the same run from disk."""
    for family, size, kind in (("v3", "220M", "Q4_K_M"), ("v2-lite", "220M", "Q8_0")):
        source, out = checkpoint(place, family, size), place / "out.gguf"
        with Network(source) as net:
            local, local_peak = peak_of(net, place, "convert", source, out, "--type", kind)
            far, peak = peak_of(net, place, "convert", "someone/model", out, "--type", kind)
            shards = [path for path in source.iterdir() if path.suffix == ".safetensors"]
            nbytes, requests = sum(count for *_, count in net.books.ranges), net.books.requests.total()
        dry = json.loads(gguf_mla("convert", source, place / "dry.gguf", "--dry-run", "--json").output)
        needed = sum(path.stat().st_size for path in shards) - _dropped(shards, dry["outputs"][0]["dropped"])
        allowed = needed / (8 * MIB) + 20 * len(shards)
        print(
            f"{family} {kind}: {needed / 1e6:.1f} MB in {len(shards)} shards, {nbytes / needed:.4f} of it fetched "
            f"in {requests} requests (at most {allowed:.0f}); peak {peak / MIB:.0f} MiB, from disk "
            f"{local_peak / MIB:.0f} MiB; {far.seconds:.1f} s, from disk {local.seconds:.1f} s"
        )
        if far.sha256 != local.sha256 or far.sha256 is None:
            yield f"{family}: other bytes than from disk: {far.said}"
        if nbytes > 1.01 * needed or requests > allowed or peak - local_peak > 100 * MIB:
            yield f"{family}: more bytes, requests or memory than allowed"
        if net.books.leaked:
            yield f"the token went to {net.books.leaked[0]}"


def _dropped(shards: list[Path], names: dict[str, str]) -> int:
    total = 0
    for shard in shards:
        with shard.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, entry in header.items():
            if name in names or name.removesuffix("_scale_inv") in names:
                total += entry["data_offsets"][1] - entry["data_offsets"][0]
    return total


def _rate(place: Path) -> Iterator[str]:
    """The share of a simulated link that is reached from the third second on."""
    source, out = checkpoint(place, "v2-lite", "480M"), place / "out.gguf"
    for kind in ("BF16", "Q4_0"):
        with Network(source, Link(GIGABIT, LATENCY)) as net:
            far, _ = peak_of(net, place, "convert", "someone/model", out, "--type", kind)
            flow = net.books.flow
        begin, end = flow[0][0] + 3, flow[-1][0]
        rate = sum(count for when, count in flow if when >= begin) / (end - begin)
        total = sum(count for _, count in flow)
        print(
            f"1 Gbit/s, 50 ms, to {kind}: {total / 1e6:.0f} MB in {end - flow[0][0]:.1f} s, {rate / GIGABIT:.1%} "
            f"of the link from the third second on; the command took {far.seconds:.1f} s in all"
        )
        if kind == "BF16" and rate < 0.9 * GIGABIT:
            yield f"only {rate / GIGABIT:.1%} of the link"


def _killed(place: Path) -> Iterator[str]:
    """A run that is killed and continued fetches nothing twice but what the journal did not hold."""
    source, out = checkpoint(place, "v2-lite", "220M"), place / "killed.gguf"
    command = ("convert", "someone/model", out, "--type", "BF16")
    with Network(source, Link(60e6)) as net:
        with Reader(net, place / "home", {"save": 0.5}) as reader:
            whole = reader.run(*command)
            out.unlink()
            first = len(net.books.ranges)
            threading.Timer(3.0, lambda: reader.process.send_signal(signal.SIGKILL)).start()
            try:
                reader.run(*command)
                yield "the run ended before it was killed"
            except AssertionError:
                reader.process.wait()
        done = _noted(out)
        fetched, before = sum(count for *_, count in net.books.ranges[first:]), len(net.books.ranges)
        with Reader(net, place / "home") as reader:
            again = reader.run(*command)
        anew, size = sum(count for *_, count in net.books.ranges[before:]), out.stat().st_size
    print(
        f"killed with {done / 1e6:.0f} of {size / 1e6:.0f} MB in the journal, {fetched / 1e6:.0f} MB fetched; then "
        f"{anew / 1e6:.0f} MB were fetched, {(size - done) / 1e6:.0f} MB were left to write"
    )
    if again.sha256 != whole.sha256:
        yield f"other bytes after a kill: {again.said}"
    if anew > 1.01 * (size - done) + 2 * MIB:
        yield "a continued run fetches what the journal holds"


def _uploads(place: Path) -> Iterator[str]:
    """From the hub and to it: the disk that takes, and what a killed run fetches and sends when it goes on."""
    source, near, far = checkpoint(place, "v3", "220M"), place / "near", place / "far"
    for directory in (near, far):
        directory.mkdir(exist_ok=True)
    options = ("--type", "Q8_0", "--split-max-size", "32M")
    command = ("convert", "someone/model", far / "m.gguf", *options, "--upload", "me/model-GGUF")
    with Network(source, Link(80e6)) as net, Disk(far) as disk:
        net.store.chunk, net.store.rate = 8 * MIB, 80e6
        with Reader(net, place / "home", {"save": 0.5}) as reader:
            assert reader.run("convert", source, near / "m.gguf", *options, "--overwrite").status == 0
            killer = threading.Thread(target=lambda: _killed_after(3, net, reader))
            killer.start()
            try:
                reader.run(*command)
                yield "the upload ended before it was killed"
            except AssertionError:
                reader.process.wait()
            killer.join()
        there, fetched = {*net.store.contents}, sum(count for *_, count in net.books.ranges)
        before, sent = len(net.books.ranges), net.store.sent.total()
        with Reader(net, place / "home") as reader:
            again = reader.run(*command)
    parts = {path.name: path.read_bytes() for path in sorted(near.iterdir())}
    anew, sizes = sum(count for *_, count in net.books.ranges[before:]), [*map(len, parts.values())]
    two, total = max(a + b for a, b in pairwise(sizes)), sum(sizes)
    print(
        f"{len(parts)} parts, {total / 1e6:.0f} MB: killed with {len(there)} parts there, {sent / 1e6:.0f} MB sent and "
        f"{fetched / 1e6:.0f} MB fetched; then {(net.store.sent.total() - sent) / 1e6:.0f} MB were sent and "
        f"{anew / 1e6:.0f} MB fetched, in {again.seconds:.1f} s; at most {disk.most / 1e6:.1f} MB on the disk, "
        f"two parts have {two / 1e6:.1f} MB"
    )
    repository = net.store.repositories["me/model-GGUF"]
    if {name: net.store.contents[oid] for name, oid in repository.large.items()} != parts:
        yield f"other bytes than from disk: {again.said}"
    if disk.most > two + MIB or len(repository.commits) != 2:
        yield "more than two parts on the disk, or more than one commit"
    if any(net.store.sent[oid] > len(net.store.contents[oid]) for oid in there) or net.books.leaked:
        yield "a part was sent twice, or the token to another host"


def _killed_after(parts: int, net: Network, reader: Reader) -> None:
    while len(net.store.contents) < parts:
        time.sleep(0.01)
    time.sleep(0.2)  # for the journal
    reader.process.send_signal(signal.SIGKILL)


def _noted(out: Path) -> int:
    """Return how many bytes a journal says are on the disk."""
    lines = out.with_name(out.name + ".journal").read_text().splitlines()
    return sum(int(fields[1]) for line in lines if len(fields := line.split(" ")) == 3 and fields[0].isdecimal())


class _Faults:
    """Each fault alone, and `runs` mixes: the right bytes, or one sentence and no file."""

    def __init__(self, runs: int, size: str = "50M", run: int = 2 * MIB) -> None:
        self._runs, self._size, self._run = runs, size, run

    def __call__(self, place: Path) -> Iterator[str]:
        source = checkpoint(place, "v3", self._size)
        with Network(source) as net:
            plans = {f"alone-{fault}": Plan([fault]) for fault in FAULTS}
            for number in range(self._runs):
                some = random.Random(number)
                faults = some.sample(FAULTS, some.randint(2, 6))
                plans[f"mix-{number}"] = Plan(
                    faults, seed=number, chance=some.uniform(0.1, 0.5), times=some.randint(3, 12)
                )
            net.plans.update(plans)
            with ThreadPoolExecutor(READERS) as pool:
                names = [[*plans][number::READERS] for number in range(READERS)]
                found = pool.map(lambda part: _read_all(net, place, self._run, *part), enumerate(names))
                failures = [failed for failed_of_one in found for failed in failed_of_one]
            if net.books.leaked:
                failures.append(f"the token went to {net.books.leaked[0]}")
            yield from failures
            yield from _dies(net, place)
            yield from _moves(net, place)


def _read_all(net: Network, place: Path, run: int, number: int, names: list[str]) -> list[str]:
    failures, right, sentences, planted = [], 0, 0, 0
    out = place / f"fault-{number}.gguf"
    with Reader(net, place / "home", {"run": run}) as reader:
        out.unlink(missing_ok=True)
        wanted = reader.run("convert", net.directory, out, "--type", "Q8_0").sha256
        for name in names:
            out.unlink(missing_ok=True)
            read = reader.run("convert", f"hf://someone/model@{name}", out, "--type", "Q8_0", "--no-resume")
            planted += net.plans[name].planted.total()
            if read.status == 0 and read.sha256 == wanted:
                right += 1
            elif read.status in (2, 3) and read.sha256 is None and read.said.count("error:") == 1:
                sentences += 1
                print(f"{name}: {read.said.strip().splitlines()[-1]}")
            else:
                failures.append(f"{name}: status {read.status}, {read.sha256}, {read.said[-400:]}")
    print(f"{len(names)} runs with {planted} faults: {right} right, {sentences} ended with a sentence")
    return failures


def _dies(net: Network, place: Path) -> Iterator[str]:
    """The CDN goes away for 20 seconds while it is read, and comes back."""
    out = place / "dies.gguf"
    with Reader(net, place / "home", {"patience": 60.0}) as reader:
        out.unlink(missing_ok=True)
        wanted = reader.run("convert", net.directory, out, "--type", "Q8_0").sha256
        out.unlink()
        net.link.rate = 12e6
        timer = threading.Timer(1.5, lambda: (net.cdn.stop(), time.sleep(20), net.cdn.start()))
        timer.start()
        read = reader.run("convert", "hf://someone/model@dies", out, "--type", "Q8_0")
        timer.join()
        net.link.rate = None
    print(f"a server that is gone for 20 s: status {read.status} after {read.seconds:.1f} s")
    if read.sha256 != wanted:
        yield f"a server that is gone for 20 s: {read.said}"


def _moves(net: Network, place: Path) -> Iterator[str]:
    """The CDN names another content in mid-run: refused."""
    out = place / "moves.gguf"
    out.unlink(missing_ok=True)
    with Reader(net, place / "home", {"run": 2 * MIB}) as reader:
        net.link.rate = 12e6
        shard = [name for name in net.names() if name.endswith(".safetensors")][-2]  # it is read long after its head
        threading.Timer(1.5, lambda: net.contents.update({shard: "another"})).start()
        read = reader.run("convert", "hf://someone/model@moves", out, "--type", "Q8_0")
        net.link.rate = None
        net.contents.clear()
    print(f"a file that changes: status {read.status}: {read.said.strip()}")
    if read.status != 3 or out.exists():
        yield f"a file that changes is read: {read.said}"


if __name__ == "__main__":
    assert RUN_BYTES >= 8 * MIB
    sys.exit(main())
