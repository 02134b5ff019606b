"""File types, what a whole file is called by: llama.cpp's, and ours on top of each."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gguf_mla.errors import InputError
from gguf_mla.recipes.names import closest

NO_ID = -1
OURS = "MLA-"
PLAIN = frozenset({"F32", "F16", "BF16"})


@dataclass(frozen=True)
class FileType:
    """What a file is called by.

    `id` is `general.file_type`; COPY has none (`NO_ID`), its file keeps the source's. `default` is the type of most
    tensors, "" for COPY. `kept` is a block type that tensors of a checkpoint keep if they have it, "" for none.
    """

    name: str
    id: int
    default: str
    kept: str = ""

    @property
    def plain(self) -> bool:
        """Whether its weights are floats on their own, without blocks, so that any row fits."""
        return self.default in PLAIN

    @property
    def protects(self) -> bool:
        """Whether it is one of ours, which protect all but the routed experts."""
        return self.name.startswith(OURS)

    @property
    def rules(self) -> str:
        """The file type of llama.cpp whose rules it follows otherwise."""
        return self.name.removeprefix(OURS)


COPY = FileType("COPY", NO_ID, "")

# Source: llama.cpp's `enum llama_ftype` and the type that llama-quantize starts from for each. The enum also has NVFP4
# (39), but llama-quantize makes no such file.
FILE_TYPES = {
    entry.name: entry
    for entry in (
        FileType("F32", 0, "F32"),
        FileType("F16", 1, "F16"),
        FileType("BF16", 32, "BF16"),
        FileType("Q8_0", 7, "Q8_0"),
        FileType("Q6_K", 18, "Q6_K"),
        FileType("Q5_K_M", 17, "Q5_K"),
        FileType("Q5_K_S", 16, "Q5_K"),
        FileType("Q5_1", 9, "Q5_1"),
        FileType("Q5_0", 8, "Q5_0"),
        FileType("Q4_K_M", 15, "Q4_K"),
        FileType("Q4_K_S", 14, "Q4_K"),
        FileType("Q4_1", 3, "Q4_1"),
        FileType("Q4_0", 2, "Q4_0"),
        FileType("IQ4_NL", 25, "IQ4_NL"),
        FileType("IQ4_XS", 30, "IQ4_XS"),
        FileType("MXFP4_MOE", 38, "MXFP4"),
        FileType("Q3_K_L", 13, "Q3_K"),
        FileType("Q3_K_M", 12, "Q3_K"),
        FileType("Q3_K_S", 11, "Q3_K"),
        FileType("IQ3_M", 27, "IQ3_S"),
        FileType("IQ3_S", 26, "IQ3_S"),
        FileType("IQ3_XS", 22, "IQ3_S"),
        FileType("IQ3_XXS", 23, "IQ3_XXS"),
        FileType("Q2_K", 10, "Q2_K"),
        FileType("Q2_K_S", 21, "Q2_K"),
        FileType("IQ2_M", 29, "IQ2_S"),
        FileType("IQ2_S", 28, "IQ2_XS"),
        FileType("IQ2_XS", 20, "IQ2_XS"),
        FileType("IQ2_XXS", 19, "IQ2_XXS"),
        FileType("Q2_0", 41, "Q2_0"),
        FileType("TQ2_0", 37, "TQ2_0"),
        FileType("TQ1_0", 36, "TQ1_0"),
        FileType("IQ1_M", 31, "IQ1_M"),
        FileType("IQ1_S", 24, "IQ1_S"),
        FileType("Q1_0", 40, "Q1_0"),
        COPY,
    )
}

_NAMES = "|".join(sorted({*FILE_TYPES} - {COPY.name}, key=len, reverse=True))
_TYPE_AT_END = re.compile(rf"(?<=.)[-._](?:(?:{OURS})?(?:{_NAMES})|[0-9.]+bpw)$", re.IGNORECASE | re.DOTALL)
_ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
_NUMBERS = {str(entry.id): name for name, entry in FILE_TYPES.items() if entry is not COPY}


def file_type(name: str) -> FileType:
    """Return the file type of that name, in any case, or of that llama.cpp number; InputError suggests near names."""
    key = name.upper()
    if key.startswith(OURS):
        return _ours(file_type(key.removeprefix(OURS)))
    entry = FILE_TYPES.get(_ALIASES.get(key) or _NUMBERS.get(key) or key)
    if entry is None:
        expected = f"{', '.join(FILE_TYPES)}; {OURS} before one that quantizes; auto for a checkpoint"
        raise InputError("unknown file type", expected=expected, found=name, remedy=closest(name, FILE_TYPES))
    return entry


def without_type(name: str) -> str:
    """Return the name of a file without the types at its end: "v3" for "v3-BF16", "v3.q4_k_m" and "v3-Q4_0-BF16"."""
    while (shorter := _TYPE_AT_END.sub("", name)) != name:
        name = shorter
    return name


def _ours(base: FileType) -> FileType:
    if base.plain or base is COPY:
        raise InputError(f"{OURS}{base.name} does not exist: {base.name} quantizes nothing that could be protected")
    return FileType(OURS + base.name, base.id, base.default)
