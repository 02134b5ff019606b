"""`gguf-mla quantize`, `split`, `merge`, `upgrade` and `downgrade`."""

from __future__ import annotations

from click import Argument, Option

from gguf_mla.cli.main import Command
from gguf_mla.cli.options import GGUF, OUT, OVERRIDE_KV, SMALL, RunOptions, TypeOptions

quantize = Command(
    "quantize.run:quantize",
    """Quantize the GGUF file IN (or the split model whose first part it is) into the file OUT of type TYPE.

    OUT may be a directory, which ends in a slash if it is to be created, or hold {type}, also in directories. Without
    it the file is NAME-TYPE.gguf in the current directory; a type at the end of IN's name makes place for the new one.
    Several types are written from one reading. COPY changes no tensor. As with llama-quantize, a number after the last
    type is that of threads. IN may be OWNER/NAME:TAG, read from the hub.
    """,
    Argument(["source"], metavar="IN", type=GGUF),
    Argument(["out_and_types"], metavar="[OUT] TYPE... [THREADS]", nargs=-1),
    Option(["--allow-requantize"], is_flag=True, help="Accept tensors that are quantized already."),
    Option(["--keep-split"], is_flag=True, help="Write as many parts as IN has, with the same tensors in each."),
    Option(["--upgrade", "to_mla"], is_flag=True, help="IN is a legacy file; write the MLA layout."),
    Option(["--override-kv", "settings"], **OVERRIDE_KV),
    types=TypeOptions,
    options=RunOptions,
)

split = Command(
    "quantize.run:split",
    """Split the GGUF file IN into parts OUT-00001-of-0000N.gguf, by --split-max-size or --split-max-tensors.

    Without either, a part has 128 tensors.
    """,
    Argument(["source"], metavar="IN", type=GGUF),
    Argument(["out"], metavar="OUT", type=OUT),
    options=RunOptions,
)

merge = Command(
    "quantize.run:merge",
    "Merge the split model whose first part is IN into the one file OUT.",
    Argument(["source"], metavar="IN", type=GGUF),
    Argument(["out"], metavar="OUT", type=OUT),
    Option(["--delete-splits"], is_flag=True, help="Delete the parts when OUT is complete and on the disk."),
    options=RunOptions,
)

upgrade = Command(
    "quantize.run:upgrade",
    """Write the MLA file OUT from the legacy file LEGACY: attn_kv_b becomes attn_k_b and attn_v_b.

    attn_k_b is encoded anew, everything else is copied byte for byte. --imatrix writes OUT's importance matrix as
    NAME.imatrix.gguf, too.
    """,
    Argument(["source"], metavar="LEGACY", type=GGUF),
    Argument(["out"], metavar="OUT", type=OUT),
    Option(["--k-b-type"], metavar="TYPE", help="Type of attn_k_b  [default: Q8_0, or attn_kv_b's if it is float]"),
    Option(["--keep-split"], is_flag=True, help="Write as many parts as LEGACY has."),
    Option(["--imatrix"], type=SMALL, metavar="FILE", help="LEGACY's importance matrix; OUT's is written beside OUT."),
    options=RunOptions,
)

downgrade = Command(
    "quantize.run:downgrade",
    """Write the legacy file OUT from the file MLA, for programs that know only attn_kv_b.

    The key half of attn_kv_b is encoded anew, everything else is copied byte for byte. --imatrix writes OUT's
    importance matrix as NAME.imatrix.gguf, too.
    """,
    Argument(["source"], metavar="MLA", type=GGUF),
    Argument(["out"], metavar="OUT", type=OUT),
    Option(["--kv-b-type"], metavar="TYPE", help="Type of attn_kv_b  [default: that of attn_v_b]"),
    Option(["--keep-split"], is_flag=True, help="Write as many parts as MLA has."),
    Option(["--imatrix"], type=SMALL, metavar="FILE", help="MLA's importance matrix; OUT's is written beside OUT."),
    options=RunOptions,
)
