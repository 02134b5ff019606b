"""The processor that kernels are compiled for: which it is, and how to measure as another would."""

from __future__ import annotations

import os
import subprocess
import sys

from numba.core.codegen import get_host_cpu_features
from numba.core.registry import cpu_target

from gguf_mla.codec import cpu_kernels  # noqa: F401  # decides which of the processor's features are used

WIDTHS = (("avx512f", 512), ("avx", 256))


def described() -> str:
    """Say for which processor this process compiles, and how many bits its vector registers have."""
    _, name, features = cpu_target.target_context.codegen().magic_tuple()
    enabled = features.split(",")
    bits = next((bits for feature, bits in WIDTHS if f"+{feature}" in enabled), 128)
    return f"compiled for {name}, vectors of {bits} bits"


def run_as(name: str, arguments: list[str]) -> int:
    """Run `gguf-mla ARGUMENTS` with kernels for the processor that LLVM calls `name`; return its status.

    "generic" has what every processor of this architecture has; any other name stands for what this machine has without
    AVX-512, in the order that suits that processor.
    """
    chosen = {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": "" if name == "generic" else features_without_avx512()}
    line = [sys.executable, "-m", "gguf_mla", *arguments]
    return subprocess.run(line, env={**os.environ, **chosen}, check=False).returncode  # noqa: S603 - this program


def features_without_avx512() -> str:
    """Return this machine's features, as LLVM lists them, with all of AVX-512 and SSE4a off."""
    features = get_host_cpu_features().replace("+sse4a", "-sse4a").split(",")
    return ",".join(f"-{name[1:]}" if name[1:].startswith("avx512") else name for name in features)
