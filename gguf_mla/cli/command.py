"""`gguf-mla inspect`."""

from __future__ import annotations

from click import Argument, Option

from gguf_mla.cli import numbers
from gguf_mla.cli.main import Command
from gguf_mla.cli.options import GGUF, PATH

inspect = Command(
    "gguf_mla.cli.inspect:inspect",
    """Show what is in the GGUF file FILE: family, layout, parameters, bytes by type, metadata, what an upgrade changes.

    FILE may be OWNER/NAME:TAG on the hub: only its beginning is read, of every part if it is split.

    A split model is shown as one, by its first part. With --context or --fit, show the size of the key-value cache for
    each layout of the attention and cache type. Of an importance matrix, show what it was made from.
    """,
    Argument(["file"], type=GGUF),
    Option(["--tensors"], is_flag=True, help="List every tensor."),
    Option(
        ["--context"], type=numbers.Whole(numbers.TOKENS), help="Show the key-value cache of so many tokens instead."
    ),
    Option(
        ["--fit"],
        type=numbers.Size(),
        metavar="SIZE",
        help="Show the longest context beside the weights in SIZE (80G) instead.",
    ),
    Option(
        ["--sequences"],
        type=numbers.Whole(numbers.COUNT),
        default=1,
        show_default=True,
        help="Sequences cached at the same time.",
    ),
    Option(
        ["--html", "page"], type=PATH, metavar="OUT.html", help="Write a page, too: tensors and types as a treemap."
    ),
    Option(["--json", "as_json"], is_flag=True, help="Print everything as JSON; long arrays as their length."),
    Option(["--verify"], is_flag=True, help="Compare with the checksum in FILE.sha256 first; status 1 if it differs."),
)
