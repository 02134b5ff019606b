"""The parts that the two halves of `kv_b_proj`, and the whole, are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf_mla.errors import InputError
from gguf_mla.files.bounds import HEAD_VALUES, bounded
from gguf_mla.plan.jobs import Part

if TYPE_CHECKING:
    from gguf_mla.container.reader import GgufFile
    from gguf_mla.plan.jobs import Untyped


def key_parts(source: str, heads: int, nope: int, value: int, rank: int) -> tuple[Part, ...]:
    """Return the parts of attn_k_b [H, r, n]: per head its first n rows, transposed."""
    check_head(source, nope, rank)
    step = nope + value
    return tuple(Part(source, head * step, head * step + nope, columns=rank) for head in range(heads))


def value_parts(source: str, heads: int, nope: int, value: int) -> tuple[Part, ...]:
    """Return the parts of attn_v_b [H, v, r]: per head its last v rows."""
    step = nope + value
    return tuple(Part(source, head * step + nope, (head + 1) * step) for head in range(heads))


def joined_parts(k_b: str, v_b: str, heads: int, rank: int, nope: int, value: int) -> tuple[Part, ...]:
    """Return the parts of attn_kv_b [H·(n+v), r]: per head r rows of attn_k_b, transposed, and v rows of attn_v_b."""
    check_head(k_b, nope, rank)
    return tuple(
        part
        for head in range(heads)
        for part in (
            Part(k_b, head * rank, (head + 1) * rank, columns=nope),
            Part(v_b, head * value, (head + 1) * value),
        )
    )


def check_head(source: str, nope: int, rank: int) -> None:
    """Raise InputError for heads that cannot be transposed one at a time in little memory."""
    bounded(nope * rank, HEAD_VALUES, "the number of key values of a head", tensor=source)


def check_shape(tensor: Untyped, allowed: tuple[tuple[int, ...], ...], file: GgufFile) -> None:
    """Raise InputError unless a tensor has one of the allowed shapes, and rows that can be told apart."""
    if tensor.foreign is not None:
        raise InputError(
            f"is of {tensor.stored}, whose heads only the program that made it can take apart",
            file=file.path,
            tensor=tensor.name,
            remedy="Take the file that it was made from",
        )
    if tensor.shape not in allowed:
        raise InputError(
            "does not have the shape that the metadata's head sizes give it",
            file=file.path,
            tensor=tensor.name,
            expected=" or ".join(str(list(shape)) for shape in allowed),
            found=list(tensor.shape),
            remedy="The metadata and the tensors do not belong together",
        )
