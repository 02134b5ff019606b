"""What llama-quantize makes of the importance matrices that gguf-mla writes.

    python -m tests.quantize.matrices LLAMA_QUANTIZE

gives each matrix to that program together with its model, insists that it is read and that every tensor is the same as
ours byte for byte, and records digests in matrices.json. test_matrices makes the matrices and our files again and
compares them with the record, so that the suite needs no llama-quantize. Recorded with b11434.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gguf_mla.container.reader import open_gguf
from tests.support import hub, legacy
from tests.support.command import convert, gguf_mla
from tests.support.matrices import write_imatrix

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Rows = Mapping[str, tuple[np.ndarray, np.ndarray]]

RECORD = Path(__file__).with_suffix(".json")
STACKED = ("attn_k_b", "attn_v_b", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")


@dataclass(frozen=True)
class Made:
    """A model, the matrix that was written for it, and the file type to quantize to."""

    model: Path
    matrix: Path
    kind: str


def drawn(model: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Sums and counts for every matrix of a file's layers; of every stack the last expert or head saw no token."""
    random, found = np.random.default_rng(15), {}
    for name, tensor in open_gguf(model).tensors.items():
        if not name.startswith("blk.") or len(tensor.shape) < 2 or "norm" in name:
            continue
        rows = tensor.shape[0] if name.split(".")[2] in STACKED else 1
        sums = random.gamma(1.5, 4, (rows, tensor.shape[-1])).astype(np.float32)
        counts = random.integers(1, 90, rows).astype(np.float32)
        if rows > 1 and "_exps" in name:
            counts[-1], sums[-1] = 0, 0
        found[name] = sums, counts
    return found


def write_dat(path: Path, rows: Rows) -> None:
    """Write the older form: one number of calls for a tensor, and values that are means times it."""
    data = struct.pack("<i", len(rows))
    for name, (sums, counts) in rows.items():
        values = sums / np.maximum(counts, 1)[:, None] * 3
        values[counts == 0] = 3
        data += struct.pack(f"<i{len(name)}sii", len(name), name.encode(), 3, values.size)
        data += values.astype("<f4").tobytes()
    path.write_bytes(data)


def _written(path: Path, rows: Rows) -> Path:
    write_imatrix(path, rows, datasets=["words.txt"], chunk_count=3, chunk_size=512)
    return path


def _run(*arguments: object) -> None:
    answer = gguf_mla(*arguments, "--quiet")
    assert answer.status == 0, answer.output


def upgraded(directory: Path, mla: Path) -> Made:
    """A legacy file's matrix in GGUF form, for the MLA file made of it."""
    old = legacy.write_variant(mla, directory / "old.gguf", "legacy")
    given, new = _written(directory / "given.gguf", drawn(old)), directory / "new.gguf"
    _run("upgrade", old, new, "--imatrix", given)
    return Made(new, directory / "new.imatrix.gguf", "Q4_K_M")


def upgraded_dat(directory: Path, mla: Path) -> Made:
    """A legacy file's matrix in the older form."""
    old = legacy.write_variant(mla, directory / "old.gguf", "legacy")
    write_dat(directory / "given.dat", drawn(old))
    new = directory / "new.gguf"
    _run("upgrade", old, new, "--imatrix", directory / "given.dat")
    return Made(new, directory / "new.imatrix.gguf", "Q2_K")


def upgraded_foreign(directory: Path, mla: Path) -> Made:
    """A matrix of ik_llama.cpp: names of reshaped tensors with one row for all heads, gate and up under one name."""
    old = legacy.write_variant(mla, directory / "old.gguf", "stacked")
    rows = {}
    for name, (sums, counts) in drawn(mla).items():
        kind = name.split(".")[2]
        if kind in ("attn_k_b", "attn_v_b"):
            rows[f"{name} (reshaped)"] = sums[:1], counts[:1]
        elif kind.startswith("ffn_gate") and kind != "ffn_gate_inp":
            rows[name.replace("ffn_gate", "ffn_gate_up")] = sums, counts
        elif not kind.startswith("ffn_up"):
            rows[name] = sums, counts
    new = directory / "new.gguf"
    _run("upgrade", old, new, "--imatrix", _written(directory / "given.gguf", rows))
    return Made(new, directory / "new.imatrix.gguf", "IQ2_XS")


def downgraded(directory: Path, mla: Path) -> Made:
    """An MLA file's matrix, for the legacy file made of it."""
    old = directory / "old.gguf"
    _run("downgrade", mla, old, "--imatrix", _written(directory / "given.gguf", drawn(mla)))
    return Made(old, directory / "old.imatrix.gguf", "Q4_K_M")


def own(directory: Path, mla: Path) -> Made:
    """A matrix as the library writes it, given as it is."""
    return Made(mla, _written(directory / "given.gguf", drawn(mla)), "Q5_K_M")


CASES: tuple[Callable[[Path, Path], Made], ...] = (upgraded, upgraded_dat, upgraded_foreign, downgraded, own)


def base(directory: Path) -> Path:
    """The bundled checkpoint as a BF16 file."""
    convert(hub.BUNDLED, directory / "mla.gguf", "BF16")
    return directory / "mla.gguf"


def digest_of(path: Path) -> str:
    """The digest of a whole file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tensors_of(path: Path) -> str:
    """The digest of all tensors of a GGUF file: names, shapes, types and bytes."""
    found = hashlib.sha256()
    for name, tensor in sorted(open_gguf(path).tensors.items()):
        found.update(f"{name} {tensor.shape} {tensor.type}\n".encode())
        found.update(tensor.read().tobytes())
    return found.hexdigest()


def ours(made: Made, out: Path) -> str:
    """The digest of the tensors of our file."""
    _run("quantize", made.model, out, made.kind, "--imatrix", made.matrix)
    return tensors_of(out)


def theirs(program: Path, made: Made, out: Path) -> str:
    """The digest of the tensors of llama-quantize's file; an error with its words where it refuses the matrix."""
    line = [program, "--imatrix", made.matrix, made.model, out, made.kind, "1"]
    env = os.environ | {"LD_LIBRARY_PATH": str(program.parent)}
    answer = subprocess.run(line, env=env, capture_output=True, text=True, errors="replace", check=False)
    if answer.returncode:
        raise SystemExit("\n".join((answer.stdout + answer.stderr).splitlines()[-12:]))
    return tensors_of(out)


def main(program: Path) -> int:
    """Record what llama-quantize makes; return how many of our files are not the same."""
    record, wrong = {}, 0
    for case in CASES:
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            made = case(directory, base(directory))
            peer, mine = theirs(program, made, directory / "peer.gguf"), ours(made, directory / "ours.gguf")
            record[case.__name__] = {"matrix": digest_of(made.matrix), "tensors": peer}
        wrong += peer != mine
        print(f"{case.__name__:18} {made.kind:8} read by llama-quantize, {'the same' if peer == mine else 'DIFFERENT'}")
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    return wrong


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
