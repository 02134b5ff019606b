"""`gguf-mla convert` and `demo`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from click import Argument, Choice, Option

from gguf_mla.cli.main import Command, instead
from gguf_mla.cli.options import (
    CHECKPOINT,
    OUT,
    OVERRIDE_KV,
    PAD_VOCAB,
    PATH,
    ReadingOptions,
    RunOptions,
    TypeOptions,
    option,
)

if TYPE_CHECKING:
    from pathlib import Path

MTP = ("keep", "drop", "only")  # as in gguf_mla.families.prediction
FAMILIES = ("v2-lite", "v2", "v3", "v32", "glm-dsa", "glm-5.2", "kimi-k2", "v4")  # as in gguf_mla.synthetic.shapes


@dataclass(frozen=True)
class ConvertOptions:
    """What a file is made of, and what it says of the model."""

    outfile: str | None = option(
        None, "--outfile", type=OUT, metavar="OUT", help="OUT, as llama.cpp's converter has it."
    )
    type_names: tuple[str, ...] = option(
        (), "--type", "--outtype", multiple=True, metavar="TYPE",
        help="Q4_K_M, BF16, MLA-Q4_K_M, 3.5bpw, 200G, ...; auto, the default, keeps what the checkpoint has (FP8 as "
        "BF16, INT4 as Q4_0). Repeat it for several files.",
    )  # fmt: skip
    calibrate: tuple[Path, ...] = option(
        (), "--calibrate", type=PATH, multiple=True, metavar="FILE",
        help="First run the model over this text, and use the importance matrix that comes of it, NAME.imatrix.gguf "
        "beside OUT. Repeatable; `gguf-mla imatrix` has more options.",
    )  # fmt: skip
    pre: str | None = option(
        None, "--pre", metavar="NAME", help="The pre-tokenizer's name in llama.cpp, where it is not recognised."
    )
    light: bool = option(
        False, "--light", is_flag=True,
        help="A model with sparse attention as a plain deepseek2 file, which attends densely.",
    )  # fmt: skip
    pad_vocab: bool = option(False, "--pad-vocab", **PAD_VOCAB)
    mtp: str | None = option(
        None, "--mtp", type=Choice(MTP),
        help="What becomes of multi-token prediction, with which llama.cpp drafts tokens: keep it in the file, drop "
        "it, or write only it, into a file of its own.  [default: keep for V3.2 and GLM, drop for V3, R1 and others, "
        "as llama.cpp's converter does]",
    )  # fmt: skip
    no_mtp: bool = option(
        False, "--no-mtp", "--no-nextn", is_flag=True, help="--mtp drop, as llama.cpp's converter has it."
    )
    model_name: str | None = option(None, "--model-name", metavar="NAME", help="The model's name, general.name.")
    metadata: Path | None = option(  # noqa: RUF009 - it returns a field
        None, "--metadata", type=PATH, metavar="FILE",
        help='A JSON file of general.* values: {"general.url": "..."}.',
    )  # fmt: skip
    override_kv: tuple[str, ...] = option((), "--override-kv", **OVERRIDE_KV)
    vocab_only: bool = option(
        False, "--vocab-only", is_flag=True, help="Write metadata and vocabulary without any tensor."
    )


convert = Command(
    "convert.run:convert",
    """Convert the Hugging Face checkpoint in directory CHECKPOINT into the GGUF file OUT.

    CHECKPOINT may be OWNER/NAME or hf://OWNER/NAME@REVISION, which is read from the hub and not stored.
    OUT may be a directory, which ends in a slash if it is to be created, or hold {type}, also in directories. Without
    it the file is NAME-TYPE.gguf in the current directory. It appears under its name only when it is complete. Several
    types are written from one reading.
    """,
    Argument(["checkpoint"], type=CHECKPOINT),
    Argument(["out"], type=OUT, required=False),
    instead(
        "--print-supported-models", "convert.run:print_supported", "List the models that can be converted, and end."
    ),
    wanted=ConvertOptions,
    reading=ReadingOptions,
    types=TypeOptions,
    options=RunOptions,
)  # fmt: skip

demo = Command(
    "convert.demo:demo",
    """Convert the bundled trained FP8 checkpoint into DIRECTORY and let llama.cpp continue a line of Python.

    The engine is used when it is installed: pip install xllamacpp.

    With --family a checkpoint is written into DIRECTORY instead: the published model in small, with random weights, but
    heads, names, shards and number formats (FP8, INT4) as they are, and a tokenizer. The same command gives the same
    bytes.
    """,
    Argument(["directory"], type=PATH, required=False),
    Option(["--copy"], is_flag=True, help="Only copy the bundled checkpoint into DIRECTORY, to try the jobs on."),
    Option(["--family"], type=Choice(FAMILIES), help="Write a small model of this family, to convert and to run."),
    Option(["--size"], metavar="SIZE", help="With --family: about how many parameters, 50M or 1.5B.  [default: 50M]"),
)
