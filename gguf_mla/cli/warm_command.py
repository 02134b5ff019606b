"""`gguf-mla warm`."""

from __future__ import annotations

from click import Option

from gguf_mla.cli.main import Command
from gguf_mla.cli.options import THREADS

warm = Command(
    "gguf_mla.cli.warm:warm",
    """Compile the kernels of tensor types now, so that no run has to wait for them: for images and installers.

    They are kept for this user and this processor, in NUMBA_CACHE_DIR where that is set.
    """,
    Option(
        ["--types", "names"],
        metavar="A,B,…",
        help="Tensor types (Q4_K), or file types (Q4_K_M) for all that is in their files.  [default: all]",
    ),
    Option(["--threads"], **THREADS),
    Option(["--quiet"], is_flag=True, help="No progress and no summary."),
)
