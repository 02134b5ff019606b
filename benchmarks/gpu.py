"""Everything that can be said of a CUDA device, in one go: `make gpu`.

The tests of the device; those of the types under compute-sanitizer, where it is installed; then what it achieves with
rows and with attention, as tables that are also written to docs/benchmarks/gpu-NAME.md. Without a usable device: one
sentence, status 3.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from gguf_mla.bench.gpu import slug
from gguf_mla.codec.device import open_device
from gguf_mla.errors import GgufMlaError

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "docs" / "benchmarks"
SANITIZER = ["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "1"]


def python(*arguments: str) -> list[str]:
    """Return the command line of a module."""
    return [sys.executable, "-m", *arguments]


def tests(path: str) -> list[str]:
    """Return the command line of tests on the device."""
    return python("pytest", "-m", "gpu", path, "-q", "-p", "no:cacheprovider")


def attention(page: Path) -> int:
    """Measure the kernels of attention, and add what is printed to the page; return the status."""
    command = python("gguf_mla", "bench", "attention", "--device", "cuda")
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout, flush=True)
    if done.returncode == 0 and page.exists():
        with page.open("a", encoding="utf-8") as file:
            file.write(f"\nAttention, `gguf-mla bench attention --device cuda`:\n\n```\n{done.stdout}```\n")
    return done.returncode


def main() -> int:
    """Run every step that can be run; the first failure's status counts."""
    try:
        device = open_device("cuda")
    except GgufMlaError as error:
        print(f"gguf-mla: error: {error}", file=sys.stderr)
        return error.status
    print(device.title, flush=True)
    steps = [tests("tests/gpu"), tests("tests/verify/test_cuda.py")]
    if shutil.which(SANITIZER[0]):
        steps.append([*SANITIZER, *tests("tests/gpu/test_types.py")])
    else:
        print("compute-sanitizer is not installed: memory accesses are not checked", flush=True)
    steps.append(python("gguf_mla", "bench", "gpu", "--out", str(PAGES)))
    statuses = [subprocess.run(step, cwd=ROOT, check=False).returncode for step in steps]
    statuses.append(attention(PAGES / f"gpu-{slug(device.title)}.md"))
    return next((status for status in statuses if status), 0)


if __name__ == "__main__":
    sys.exit(main())
