"""About how long a job takes: a measure to share work out by, and never a promise.

The speeds are those of docs/benchmarks/types.md, one thread of an AMD EPYC; other machines are faster or slower, and
only the ratios count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf_mla import ggtypes
from gguf_mla.stream.worker import is_copied

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gguf_mla.plan.jobs import Part
    from gguf_mla.sources.tensor import SourceTensor
    from gguf_mla.stream.engine import Target

# Millions of values that are encoded in a second: without importance, and with it.
ENCODED: dict[str, tuple[float, float]] = {
    "F32": (8000, 8000), "F16": (5200, 5200), "BF16": (8100, 8100),
    "Q4_0": (2220, 297), "Q4_1": (2160, 96), "Q5_0": (1910, 292), "Q5_1": (1750, 96), "Q8_0": (2040, 2040),
    "Q2_K": (165, 78), "Q3_K": (365, 274), "Q4_K": (158, 96), "Q5_K": (197, 96), "Q6_K": (302, 301),
    "IQ1_S": (58, 58), "IQ1_M": (56, 50), "IQ2_XXS": (18, 18), "IQ2_XS": (12, 12), "IQ2_S": (21, 22),
    "IQ3_XXS": (6.8, 6), "IQ3_S": (11, 11), "IQ4_NL": (112, 108), "IQ4_XS": (114, 111),
    "TQ1_0": (2470, 2470), "TQ2_0": (2830, 2830), "MXFP4": (940, 940), "NVFP4": (916, 916),
    "Q1_0": (4450, 4450), "Q2_0": (2270, 2270),
}  # fmt: skip
OTHER = 100.0  # of a type that is not listed
DECODED = 1000.0  # millions of values that are read and decoded in a second
COPIED = 1000.0  # millions of bytes that are copied or written in a second

# Bytes of a stored value, by the first word of its format; a scale per block or row is too little to count.
STORED: dict[str, float] = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "FP8": 1, "INT8": 1, "INT4": 0.53, "MXFP4": 0.53, "NVFP4": 0.57,
}  # fmt: skip


def bytes_read(part: Part, source: SourceTensor, written: Sequence[Target]) -> int:
    """Return about how many bytes a part's rows take where they are stored; `written` is where they go."""
    if source.raw_type is not None and source.raw_type == written[0].type:
        return written[0].nbytes
    values = (part.stop - part.start) * source.shape[-1]
    kind = source.stored.partition(" ")[0]
    known = ggtypes.types().get(kind)
    width = STORED.get(kind, 2.0) if known is None else known.bytes / known.block
    return int(values * width)


def seconds(part: Part, source: SourceTensor, written: Sequence[Target], *, weighted: bool) -> float:
    """Return about how long one thread takes for a part, for all outputs together."""
    spent = bytes_read(part, source, written) / COPIED
    values = (part.stop - part.start) * source.shape[-1]
    for target in written:
        spent += target.nbytes / COPIED
        if not is_copied(part, source, target):
            spent += values / DECODED + values / ENCODED.get(target.type, (OTHER, OTHER))[weighted]
    return spent * 1e-6
