"""The few general keys that engines act on, and what a file says of itself: its type, and what comes after its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gguf_mla.container.splits import GgufParts
from verify.findings import Finding, Grade
from verify.keys.expected import LEVEL, REQUIRED, Expected

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gguf_mla.container.reader import GgufFile

SAMPLING = "general.sampling."
SAMPLED = "llama.cpp samples by it unless its user says otherwise"
# Key → what generation_config.json calls it.
GENERATION = {
    "sequence": ("sequence",),
    "top_k": ("top_k",),
    "top_p": ("top_p",),
    "min_p": ("min_p",),
    "xtc_probability": ("xtc_probability",),
    "xtc_threshold": ("xtc_threshold",),
    "temp": ("temperature",),
    "penalty_last_n": ("penalty_last_n",),
    "penalty_repeat": ("penalty_repeat", "repetition_penalty"),
    "mirostat": ("mirostat",),
    "mirostat_tau": ("mirostat_tau",),
    "mirostat_eta": ("mirostat_eta",),
}
LARGEST = 1 << 31  # no integer of the metadata is larger, and no default for sampling
FILE_TYPE = "general.file_type"
# The number of a file type → the types that some matrix of such a file has.
FILE_TYPES: Mapping[int, tuple[str, ...]] = {
    0: ("F32",), 1: ("F16",), 2: ("Q4_0",), 3: ("Q4_1",), 7: ("Q8_0",), 8: ("Q5_0",), 9: ("Q5_1",), 10: ("Q2_K",),
    11: ("Q3_K",), 12: ("Q3_K",), 13: ("Q3_K",), 14: ("Q4_K",), 15: ("Q4_K",), 16: ("Q5_K",), 17: ("Q5_K",),
    18: ("Q6_K",), 19: ("IQ2_XXS",), 20: ("IQ2_XS",), 21: ("Q2_K",), 22: ("IQ3_S", "IQ3_XXS"), 23: ("IQ3_XXS",),
    24: ("IQ1_S",), 25: ("IQ4_NL",), 26: ("IQ3_S",), 27: ("IQ3_S",), 28: ("IQ2_S", "IQ2_XS"), 29: ("IQ2_S",),
    30: ("IQ4_XS",), 31: ("IQ1_M",), 32: ("BF16",), 36: ("TQ1_0",), 37: ("TQ2_0",), 38: ("MXFP4",), 39: ("NVFP4",),
    40: ("Q1_0",), 41: ("Q2_0",),
}  # fmt: skip


def keys() -> dict[str, Expected]:
    """Return what every file of a model says."""
    return {
        "general.type": Expected("model", "model", Grade.DIFFERS, "llama.cpp does not look at it", optional=True),
        "general.quantization_version": Expected(
            2, 2, Grade.DIFFERS, "the version of the types' blocks, of which only this is in use", optional=True
        ),
    }


def sampling(generation: Mapping[str, Any]) -> dict[str, Expected]:
    """Return the defaults for sampling that a generation_config.json states."""
    found = {}
    for name, places in GENERATION.items():
        value = next((generation[place] for place in places if generation.get(place) is not None), None)
        if value is not None:
            found[SAMPLING + name] = _sampled(value)
    return found


def _sampled(value: Any) -> Expected:
    """Return what is asked of a key for sampling; what no such key can hold is left open."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST < value < LARGEST
    if number or isinstance(value, str):
        return Expected(value, REQUIRED, note=SAMPLED, missing=Grade.DIFFERS)
    return Expected(None, grade=Grade.DIFFERS, note="what generation_config.json says of it cannot be used")


def looks(file: GgufFile) -> Iterator[Finding]:
    """Yield what a file says wrongly of itself, which no engine computes with."""
    types = {tensor.type for tensor in file.tensors.values() if len(tensor.shape) > 1}
    stated = file.metadata.get(FILE_TYPE)
    wanted = FILE_TYPES.get(stated) if type(stated) is int else None
    if types and wanted is not None and types.isdisjoint(wanted):
        what = "names a type that no matrix of the file has: engines print it"
        yield Finding(LEVEL, FILE_TYPE, what, " or ".join(sorted(types)), " or ".join(wanted), Grade.DIFFERS)
    for part in file.files if isinstance(file, GgufParts) else (file,):
        end = max((tensor.offset + tensor.nbytes for tensor in part.tensors.values()), default=part.size)
        more = part.size - (-(-end // part.alignment) * part.alignment)
        if more > 0:
            what = f"{more} bytes come after the last tensor, which no engine reads"
            yield Finding(LEVEL, part.path.name, what, grade=Grade.DIFFERS)
