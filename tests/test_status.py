"""Statuses are honest, streams are safe, and what a file says is quoted, each kind with siblings."""

from __future__ import annotations

import errno
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from gguf_mla import discovery, ggtypes, quoting
from gguf_mla.cli.main import main
from gguf_mla.cli.printing import as_json
from gguf_mla.cli.table import WIDEST, table
from gguf_mla.container.values import Kind, Value, array, f32, string
from gguf_mla.container.writer import TensorSpec, lay_out
from gguf_mla.errors import GgufMlaError, InputError, MachineError
from tests.support import hub
from tests.support.command import command, environment
from verify.findings import Finding

SPITEFUL = "a\x1b[2J\x1b]0;owned\x07\r\nb\u202egnp\x9b31m\u2028c"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("status") / "tiny.gguf"
    done = CliRunner().invoke(main, ["convert", str(hub.BUNDLED), str(path), "--quiet"])
    assert done.exit_code == 0, done.output
    return path


def write_gguf(path: Path, metadata: dict[str, Value], names: tuple[str, ...] = ("t",)) -> Path:
    specs = [TensorSpec(name, (32,), "F32") for name in names]
    laid = lay_out(metadata, specs)
    path.write_bytes(laid.head.ljust(laid.size, b"\0"))
    return path


def shell(line: str, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a line of shell in which "$@" is the command."""
    return subprocess.run(
        ["bash", "-c", line, "bash", *command(*arguments)],
        capture_output=True,
        text=True,
        errors="replace",
        env=environment() | variables,
        timeout=120,
        check=False,
    )


# ---------------------------------------------------------------------------------------------------------- statuses


def failing(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> Any:
    @click.command()
    def fail() -> None:
        raise error

    monkeypatch.setattr(type(main), "get_command", lambda *_: fail)
    return CliRunner().invoke(main, ["fail"])


@pytest.mark.parametrize(
    "error",
    [
        KeyError("kv_lora_rank"),
        EOFError(),
        ZeroDivisionError(),
        RecursionError(),
        OverflowError("too large"),
        UnicodeEncodeError("ascii", "é", 0, 1, "no"),
        AssertionError(),
        ImportError("x"),
        ValueError("\x1b[2J"),
        RuntimeError("x" * 10**6),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_crash_is_status_3_with_a_sentence_and_a_report(
    error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    result = failing(error, monkeypatch)
    assert result.exit_code == 3
    assert result.stderr.startswith("gguf-mla: error: an unexpected error in gguf-mla")
    assert type(error).__name__ in result.stderr
    assert "Traceback" not in result.stderr
    assert "\x1b" not in result.stderr
    assert len(result.stderr) < 1000
    [report] = tmp_path.iterdir()
    assert str(report) in result.stderr
    assert "Traceback" in report.read_text()
    assert "Python 3" in report.read_text()


def test_no_report_is_left_where_the_user_works(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # what Python falls back to
    result = failing(KeyError("x"), monkeypatch)
    assert result.exit_code == 3
    assert "GGUF_MLA_TRACEBACK=1" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_traceback_is_shown_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GGUF_MLA_TRACEBACK", "1")
    assert "Traceback" in failing(KeyError("x"), monkeypatch).stderr


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EMFILE, "too many open files"),
        (errno.ENOSPC, "no space left"),
        (errno.EIO, "input/output error"),
        (errno.EROFS, "read-only file system"),
        (errno.EACCES, "permission denied"),
    ],
)
def test_what_the_machine_refuses_is_a_sentence(number: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    result = failing(OSError(number, os.strerror(number), "a.gguf"), monkeypatch)
    assert result.exit_code == 3
    assert f"error: a.gguf: {words}" in result.stderr
    assert "unexpected" not in result.stderr


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (click.Abort(), 130),
        (KeyboardInterrupt(), 130),
        (BrokenPipeError(errno.EPIPE, "x"), 141),
        (click.exceptions.Exit(1), 1),
        (click.UsageError("no"), 2),
        (MemoryError(), 3),
        (SystemExit(5), 5),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_end_has_its_status(error: BaseException, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert failing(error, monkeypatch).exit_code == status


def test_a_command_that_cannot_be_loaded_is_no_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ImportError("half installed")

    monkeypatch.setattr(type(main), "get_command", broken)
    assert CliRunner().invoke(main, ["verify", "a", "b"]).exit_code == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["verify", "nowhere", "x.gguf"], "nowhere: cannot be read"),
        (["inspect"], "Missing argument 'FILE'. See gguf-mla inspect --help."),
        (["inspect", "a", "--nothing"], "No such option"),
        (["bench", "quantize", "--against", "nowhere"], "does not exist"),
    ],
)
def test_usage_errors_look_like_all_others(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(main, arguments, prog_name="gguf-mla")
    assert result.exit_code == 2
    assert result.stderr.startswith("gguf-mla: error: ")
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


# ----------------------------------------------------------------------------------------------------------- streams


@pytest.mark.parametrize("line", ['"$@" 2>&-', '"$@" 2>/dev/full', '"$@" <&- 2>&-', '"$@" >&- 2>&-'])
def test_nobody_listening_to_errors_stops_no_run(line: str, model: Path, tmp_path: Path) -> None:
    done = shell(line, "quantize", model, tmp_path / "new.gguf", "COPY")
    assert done.returncode == 0
    assert (tmp_path / "new.gguf").read_bytes() == model.read_bytes()


def test_a_right_file_is_right_without_standard_error(model: Path) -> None:
    for options in ((), ("--json",), ("--quiet",)):
        assert shell('"$@" 2>&-', "verify", hub.BUNDLED, model, "--level", "structure", *options).returncode == 0


@pytest.mark.parametrize("options", [(), ("--json",), ("--tensors",)], ids=str)
def test_a_full_standard_output_is_the_machines_failure(options: tuple[str, ...], model: Path) -> None:
    done = shell('"$@" >/dev/full', "inspect", model, *options)
    assert done.returncode == 3
    assert done.stderr == "gguf-mla: error: standard output cannot be written (No space left on device).\n"
    assert shell('"$@" >/dev/full', "--help").returncode == 3


def test_a_reader_who_has_seen_enough_ends_the_command_quietly(model: Path) -> None:
    done = shell('trap "" PIPE; "$@" | true; exit ${PIPESTATUS[0]}', "inspect", model, "--tensors")
    assert done.returncode in (0, 141)
    assert done.stderr == ""
    read, write = os.pipe()
    os.close(read)
    line = command("inspect", model)
    done = subprocess.run(line, stdout=write, stderr=subprocess.PIPE, text=True, env=environment(), check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(
    "variables",
    [{"PYTHONIOENCODING": "latin-1"}, {"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}],
    ids=str,
)
def test_a_character_that_the_terminal_lacks_is_escaped(variables: dict[str, str], tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf", {"general.name": string("Δ注\N{GRINNING FACE}")})
    for arguments in (("inspect", path), ("inspect", path, "--json"), ("inspect", "Δ.gguf")):
        done = shell('"$@"', *arguments, **variables)
        assert done.returncode == (2 if arguments[1] == "Δ.gguf" else 0)
        # In ASCII, Python reads the bytes of an argument's character as two halves of nothing.
        assert re.search(r"\\u0394|\\udcce\\udc94", done.stdout + done.stderr)
        assert "Traceback" not in done.stderr


# -------------------------------------------------------------------------------------------------------- discovery


def test_when_no_more_files_may_be_open_nothing_is_found_wrong(model: Path) -> None:
    seen = set()
    for limit in range(5, 14):
        line = f'ulimit -n {limit}; "$@" 2>/dev/stdout'
        done = shell(line, "verify", hub.BUNDLED, model, "--level", "structure")
        assert done.returncode in (0, 3), (limit, done.stdout)
        seen.add(done.returncode)
    assert seen == {0, 3}


def test_an_empty_answer_is_neither_believed_nor_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    ggtypes.types.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr("pkgutil.iter_modules", lambda _: iter(()))
        with pytest.raises(MachineError, match=r"modules of gguf_mla\.ggtypes cannot be found"):
            ggtypes.types()
        with pytest.raises(MachineError):
            ggtypes.by_id(8)
    assert "Q8_0" in ggtypes.types()
    with pytest.raises(MachineError, match="nothing is installed"):
        discovery.plugins("gguf_mla.nothing")


# ---------------------------------------------------------------------------------------------------------- quoting


@pytest.mark.parametrize("text", [SPITEFUL, "\ud800half", "\u2066x\u2069", "\x00\x7f\x85", "x" * 10**6, "\x1b" * 10**6])
def test_what_is_quoted_is_one_bounded_printable_line(text: str) -> None:
    for limit in (10, 200):
        found = quoting.quoted(text, limit)
        assert found.isprintable()
        assert len(found) <= limit
        found.encode()
    error = InputError(text, file=text, tensor=text, expected=text, found=[text] * 10**5, remedy=text)
    for sentence in (str(error), Finding(text, text, text, text, (text,) * 1000).sentence):
        assert sentence.isprintable()
        assert len(sentence) < 10_000


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("plain", "plain"),
        (3, "3"),
        (None, "None"),
        (True, "True"),
        ((1, 2), "(1, 2)"),
        ((1,), "(1,)"),
        ([], "[]"),
        (["a"], "['a']"),
        ({"a": [1]}, "{'a': [1]}"),
        (0.5, "0.5"),
        (b"ab", "b'ab'"),
        (Path("a"), "a"),
        (list(range(1000)), "[0, 1, 2, 3, 4, ... 995 more]"),
        (10**5000, "a whole number of 16610 bits"),
        (-(10**300), "a negative whole number of 997 bits"),
    ],
    ids=map(str, range(15)),
)
def test_a_value_is_shown_as_it_is_or_by_examples(value: object, words: str) -> None:
    assert quoting.shown(value) == words


def test_numbers_beyond_reason_cost_nothing_to_show() -> None:
    begin = time.process_time()
    nested: list[Any] = []
    for _ in range(10_000):
        nested = [nested]
    sentences = [str(GgufMlaError("x", found=found)) for found in ([9**30_000] * 10**5, nested, "y" * 10**8)]
    assert all(len(sentence) < 1000 for sentence in sentences)
    assert time.process_time() - begin < 2


def test_no_row_of_a_table_is_wider_than_a_cell_may_be() -> None:
    lines = table(("key", "value"), [("k" * 65_000, "\x1b" * 99), *((f"k{n}", n) for n in range(20_000))])
    assert len(lines) < 20_010 * (2 * WIDEST + 3)
    assert "\x1b" not in lines


def test_json_is_strict() -> None:
    text = as_json({"a": float("nan"), "b": [float("inf"), 1.5], "c": SPITEFUL, "d": (-float("inf"),)})
    assert json.loads(text, parse_constant=pytest.fail) == {
        "a": None,
        "b": [None, 1.5],
        "c": SPITEFUL,
        "d": [None],
    }
    assert text.isascii()
    assert text.isprintable()


def spiteful(path: Path) -> Path:
    metadata = {
        "general.architecture": string(SPITEFUL),
        "general.name": string(SPITEFUL),
        SPITEFUL: string("x"),
        "a.list": array(Kind.STRING, [SPITEFUL, SPITEFUL]),
        "nan": f32(float("nan")),
    }
    return write_gguf(path, metadata, ("blk.0." + SPITEFUL, SPITEFUL))


def on_a_terminal(*arguments: object) -> bytes:
    """Return all that a command prints on a pseudo-terminal."""
    master, slave = pty.openpty()
    process = subprocess.Popen(command(*arguments), stdout=slave, stderr=slave, stdin=slave, env=environment())
    os.close(slave)
    shown = b""
    try:
        while data := os.read(master, 1 << 16):
            shown += data
    except OSError:  # how a terminal says that nobody writes to it any more
        pass
    os.close(master)
    assert process.wait() != 1
    return shown


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "bad.gguf"),
        ("inspect", "bad.gguf", "--tensors"),
        ("inspect", "bad.gguf", "--json"),
        ("inspect", "bad.gguf", "--context", "9"),
        ("quantize", "bad.gguf", "out.gguf", "COPY", "--dry-run"),
        ("quantize", "bad.gguf", "out.gguf", "Q8_0"),
        ("upgrade", "bad.gguf", "up.gguf"),
        ("merge", "bad.gguf", "one.gguf"),
        ("verify", "bad.gguf", "bad.gguf"),
        ("convert", "bad", "out.gguf"),
        ("inspect", f"no\x1b[2J{SPITEFUL[-5:]}.gguf"),
    ],
    ids=lambda words: " ".join(words[:1]),
)
def test_no_terminal_obeys_a_file(arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spiteful(tmp_path / "bad.gguf")
    shutil.copytree(hub.BUNDLED, tmp_path / "bad")
    config = json.loads((tmp_path / "bad" / "config.json").read_text())
    (tmp_path / "bad" / "config.json").write_text(json.dumps(config | {"architectures": [SPITEFUL]}))
    printed = on_a_terminal(*arguments).decode()
    assert printed
    for unwanted in "\x1b\x07\x9b\u202e\u2028":
        assert unwanted not in printed
    assert "Traceback" not in printed


# ------------------------------------------------------------------------------------------------------------- weight


def test_help_loads_no_numbers() -> None:
    program = "import sys, gguf_mla.__main__, gguf_mla.cli.main; print('numpy' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment(), check=True
    )
    assert done.stdout.strip() == "False"
