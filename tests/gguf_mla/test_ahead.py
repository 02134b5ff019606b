"""Kernels are compiled side by side; a helper that fails in any way costs time, never a kernel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

import pytest

from convert.plan import plan_conversion
from gguf_mla.codec import ahead, compiling, cpu_kernels, kernel_cache
from gguf_mla.codec.ahead import Need, to_decode, to_encode
from gguf_mla.errors import InputError
from gguf_mla.plan.jobs import NO_IMPORTANCE
from gguf_mla.plan.outputs import single
from gguf_mla.sources.checkpoint import open_checkpoint
from gguf_mla.stream import needs
from gguf_mla.stream.execute import execute
from tests.support.hub import BUNDLED

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

met: list[str] = []
OBEDIENT = "import sys\nfor line in sys.stdin: print(flush=True)"
DEAD_AT_WORK = "input()"


def compile_slowly(name: str) -> None:
    compiling.tell(name)
    time.sleep(0.1)
    met.append(name)


def interrupted() -> None:
    compiling.tell("it")
    raise KeyboardInterrupt


def wanted(count: int, function: str = "compile_slowly") -> list[Need]:
    return [Need(str(i), f"{__name__}:{function}", (str(i),)) for i in range(count)]


@pytest.fixture
def helpers(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[subprocess.Popen[bytes]]]:
    """Replace helpers by a program; return those that were started."""
    met.clear()

    def replaced(program: str) -> list[subprocess.Popen[bytes]]:
        started: list[subprocess.Popen[bytes]] = []

        def start() -> subprocess.Popen[bytes]:
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            started.append(subprocess.Popen([sys.executable, "-c", program], bufsize=0, **pipes))
            return started[-1]

        monkeypatch.setattr(ahead, "_start", start)
        return started

    return replaced


def test_helpers_take_a_share_and_progress_is_told(helpers: Any) -> None:
    started, told = helpers(OBEDIENT), []
    ahead.meet(wanted(12), 2, lambda done, total: told.append((done, total)))
    assert len(started) == 1
    assert 0 < len(met) < 12
    assert told == [(done, 12) for done in range(13)]


def test_what_a_dead_helper_leaves_is_compiled_here(helpers: Any) -> None:
    helpers(DEAD_AT_WORK)
    ahead.meet(wanted(6), 3)
    assert sorted(met) == sorted("012345")


def test_nothing_is_started_where_nothing_is_compiled(helpers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    started, told = helpers(OBEDIENT), []
    monkeypatch.setattr(compiling, "tell", lambda _: None)
    ahead.meet(wanted(2), 8, lambda done, total: told.append((done, total)))
    assert (len(met), started, told) == (2, [], [])


@pytest.mark.parametrize(("processes", "keeps"), [(1, True), (2, False)], ids=["one core", "nothing can be kept"])
def test_no_helper_where_it_would_be_of_no_use(
    processes: int, keeps: bool, helpers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = helpers(OBEDIENT)
    monkeypatch.setattr(kernel_cache, "keeps", lambda: keeps)
    ahead.meet(wanted(3), processes)
    assert (len(met), started) == (3, [])


def test_an_interrupt_leaves_no_process(helpers: Any) -> None:
    started = helpers("import time\ntime.sleep(60)")
    with pytest.raises(KeyboardInterrupt):
        ahead.meet([Need("it", f"{__name__}:interrupted"), *wanted(2)], 2)
    assert started
    assert all(helper.poll() is not None for helper in started)


def test_a_helper_ends_at_once_with_whoever_started_it() -> None:
    helper = ahead._start()
    assert helper.stdin is not None
    helper.stdin.write(json.dumps(astuple(Need("", "time:sleep", ("60",)))).replace('"60"', "60").encode() + b"\n")
    helper.stdin.close()
    assert helper.wait(20) == 0
    assert helper.stdout is not None
    helper.stdout.close()


def test_the_command_keeps_kernels_for_others(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gguf_mla", "warm", "--types", "bf16,F16", "--threads", "2"]
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    (place,) = tmp_path.iterdir()
    assert str(place) in done.stdout
    names = {path.name.rpartition("-")[0].rpartition(".")[2] for path in place.iterdir()}
    assert names == {"BF16_encode_value", "F16_encode_value", "F32_encode_value", "decode_blocks"}


def test_the_command_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for arguments, place, words, status in (
        (["--types", "Q4_7"], tmp_path, "unknown file type", 2),
        (["--types", "Q8_0"], tmp_path / "file", "cannot be kept", 3),
    ):
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(place)}
        command = [sys.executable, "-m", "gguf_mla", "warm", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert (words in done.stderr, done.returncode) == (True, status), done.stderr


def test_all_that_a_conversion_uses_was_known_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_checkpoint(BUNDLED)
    [(plan, _)] = plan_conversion(source, ["Q4_K_M"])
    known = needs.of_plans([plan], source.tensors, NO_IMPORTANCE)
    used: set[Need] = set()
    for name in ("encoder", "value_encoder"):
        original = getattr(cpu_kernels, name)
        monkeypatch.setattr(
            cpu_kernels, name, lambda way, original=original: used.add(to_encode(way.type.name)) or original(way)
        )
    execute([single(plan, tmp_path / "out.gguf")], source.tensors, threads=1)
    assert used == {need for need in known if need.function.endswith("encode_one")}
    assert any("compile_decoder" in need.function for need in known)


def test_the_largest_come_first_and_what_cannot_be_encoded_is_refused() -> None:
    order = [to_encode(kind, weighted=True).cost for kind in ("IQ1_S", "IQ3_XXS", "Q4_K", "Q8_0", "BF16")]
    assert order == sorted(order, reverse=True)
    assert to_decode("iq1_s").cost == 0
    with pytest.raises(InputError, match="importance"):
        to_encode("IQ1_S")
