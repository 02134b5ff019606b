"""Everything that can be said of a CUDA device, in one go: `make gpu`.

The tests of the device; those of the types under compute-sanitizer, where it is installed; then what it achieves, as a
table that is also written to docs/benchmarks/gpu-NAME.md. Without a usable device: one sentence, status 3.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from gguf_mla.device import open_device
from gguf_mla.errors import GgufMlaError

ROOT = Path(__file__).parent.parent
SANITIZER = ["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "1"]


def python(*arguments: str) -> list[str]:
    """Return the command line of a module."""
    return [sys.executable, "-m", *arguments]


def tests(path: str) -> list[str]:
    """Return the command line of tests on the device."""
    return python("pytest", "-m", "gpu", path, "-q", "-p", "no:cacheprovider")


def main() -> int:
    """Run every step that can be run; the first failure's status counts."""
    try:
        device = open_device("cuda")
    except GgufMlaError as error:
        print(f"gguf-mla: error: {error}", file=sys.stderr)
        return error.status
    print(device.title, flush=True)
    steps = [tests("tests/gpu")]
    if shutil.which(SANITIZER[0]):
        steps.append([*SANITIZER, *tests("tests/gpu/test_types.py")])
    else:
        print("compute-sanitizer is not installed: memory accesses are not checked", flush=True)
    steps.append(python("gguf_mla", "bench", "gpu", "--out", "docs/benchmarks"))
    statuses = [subprocess.run(step, cwd=ROOT, check=False).returncode for step in steps]
    return next((status for status in statuses if status), 0)


if __name__ == "__main__":
    sys.exit(main())
