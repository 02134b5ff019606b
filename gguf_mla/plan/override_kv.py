"""`--override-kv KEY=TYPE:VALUE`: a value that a file's metadata get, checked before it is one.

A key that is there keeps its place and its type, because readers refuse a value of another. What the format or our own
writer fixes under a key is in RULES. Source: the GGUF specification, "Standardized key-value pairs".
"""

from __future__ import annotations

import math
import re
import struct
from typing import TYPE_CHECKING, Any

from gguf_mla.container.values import STRUCT_CODES, Kind, Value
from gguf_mla.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

FORM = "KEY=TYPE:VALUE with TYPE int, float, bool or str"
_KEY = re.compile(r"[!-<>-~]{1,1000}")  # printable ASCII, as the specification has it, without "="
LONGEST_TEXT = 1 << 20  # bytes
LARGEST_ALIGNMENT = 1 << 16  # of memory pages; every tensor may be padded by as much

_INTEGERS = {Kind.U8, Kind.I8, Kind.U16, Kind.I16, Kind.U32, Kind.I32, Kind.U64, Kind.I64}
_FLOATS = {Kind.F32, Kind.F64}
_TYPES: dict[str, set[Kind]] = {"int": _INTEGERS, "float": _FLOATS, "bool": {Kind.BOOL}, "str": {Kind.STRING}}

# What a key's value has to be: its type, which one may be, and that in words. The first pattern that fits decides.
Rule = tuple[str, "Callable[[Any], bool]", str]
_ANY: Callable[[Any], bool] = lambda _: True  # noqa: E731 - one entry of a table
RULES: tuple[tuple[str, Rule], ...] = (
    (
        r"general\.alignment",
        (
            "int",
            lambda n: 8 <= n <= LARGEST_ALIGNMENT and n.bit_count() == 1,
            f"a power of two from 8 to {LARGEST_ALIGNMENT}",
        ),
    ),
    (r"general\.architecture", ("str", lambda text: bool(re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", text)), "a name")),
    (r"general\.(quantization_version|file_type)", ("int", lambda n: 0 <= n < 1 << 32, "a number of 32 bits")),
    (r"general\.(name|author|version|organization|description|license|type|basename|finetune|size_label)",
     ("str", _ANY, "a text")),
    (r"tokenizer\.ggml\.(model|pre)", ("str", bool, "a name")),
    (r"tokenizer\.chat_template", ("str", _ANY, "a text")),
    (r"tokenizer\.ggml\.\w+_token_id", ("int", lambda n: 0 <= n < 1 << 32, "a token's number")),
    (r"tokenizer\.ggml\.add_\w+", ("bool", _ANY, "true or false")),
    (r"[\w-]+\.(block_count|context_length|embedding_length|vocab_size|\w+_length)",
     ("int", lambda n: 0 < n < 1 << 31, "a positive number of 31 bits")),
    (r"[\w-]+\.([\w.]+_)?(count|lora_rank|dimension_count|gating_func)",
     ("int", lambda n: 0 <= n < 1 << 32, "a number of 32 bits")),
    (r"[\w-]+\.[\w.]*(_epsilon|freq_base|weights_scale|factor|log_multiplier|beta_fast|beta_slow)",
     ("float", _ANY, "a float")),
    (r"[\w-]+\.[\w.]*weights_norm", ("bool", _ANY, "true or false")),
)  # fmt: skip


def override(metadata: Mapping[str, Value], settings: Iterable[str]) -> dict[str, Value]:
    """Return metadata with `KEY=TYPE:VALUE` settings applied; a key that is there keeps its place and its type.

    InputError, naming the setting, for what cannot be read, does not fit, or is not a user's to say.
    """
    changed = dict(metadata)
    for setting in settings:
        key, _, rest = setting.partition("=")
        kind, colon, text = rest.partition(":")
        if not colon or kind not in _TYPES or not _KEY.fullmatch(key):
            raise InputError("--override-kv cannot be read", expected=FORM, found=repr(setting[:200]))
        _check_writable(key)
        data = _content(kind, text, setting)
        _check_rule(key, kind, data)
        changed[key] = Value(_kind(key, kind, data, changed.get(key)), data)
    return changed


def _check_writable(key: str) -> None:
    if key.startswith("split."):
        remedy = "Give --split-max-size, --split-max-tensors or --keep-split"
        raise InputError(f"--override-kv: {key} is written by what splits a file", remedy=remedy)


def _content(kind: str, text: str, setting: str) -> Any:
    data = _READERS[kind](text)
    if data is None:
        raise InputError(f"--override-kv: {text[:80]!r} is no {kind}", expected=FORM, found=repr(setting[:200]))
    return data


def _check_rule(key: str, kind: str, data: Any) -> None:
    for pattern, (needed, holds, words) in RULES:
        if re.fullmatch(pattern, key):
            if kind != needed or not holds(data):
                raise InputError(f"--override-kv: {key} cannot have this value", expected=words, found=repr(data))
            return


def _kind(key: str, kind: str, data: Any, present: Value | None) -> Kind:
    """Return the type to write: the present value's, if that is of the kind and holds it."""
    if present is None:
        return {"float": Kind.F32, "bool": Kind.BOOL, "str": Kind.STRING}.get(kind) or _width(data)
    is_list = present.item is not None and (present.item not in _INTEGERS or key.startswith("tokenizer."))
    wanted = present.item or present.kind  # an engine takes one number for a list that has it for every layer
    if is_list or wanted not in _TYPES[kind]:
        expected = f"{'a list' if is_list else _word(wanted)}, as the file has there"
        raise InputError(f"--override-kv: {key} has a value of another type", expected=expected, found=kind)
    if wanted in STRUCT_CODES and not _fits(wanted, data):
        raise InputError(f"--override-kv: {key} cannot hold this value", expected=wanted.name.lower(), found=data)
    return wanted


def _word(kind: Kind) -> str:
    return next((word for word, kinds in _TYPES.items() if kind in kinds), kind.name.lower())


def _fits(kind: Kind, data: Any) -> bool:
    try:
        struct.pack(f"<{STRUCT_CODES[kind]}", data)
    except (struct.error, OverflowError):
        return False
    return True


def _width(number: int) -> Kind:
    return Kind.U32 if 0 <= number < 1 << 32 else Kind.U64 if number >= 1 << 63 else Kind.I64


def _integer(text: str) -> int | None:
    number = int(text) if re.fullmatch(r"[+-]?[0-9]{1,20}", text, re.ASCII) else None
    return number if number is not None and -(1 << 63) <= number < 1 << 64 else None


def _float(text: str) -> float | None:
    if not re.fullmatch(r"[+-]?[0-9.]{1,40}(e[+-]?[0-9]{1,4})?", text, re.ASCII | re.IGNORECASE):
        return None
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and _fits(Kind.F32, number) else None


def _text(text: str) -> str | None:
    data = text.encode("utf-8", "surrogatepass")
    return text if len(data) <= LONGEST_TEXT and not any(0xD800 <= ord(c) < 0xE000 for c in text) else None


_READERS: dict[str, Callable[[str], Any]] = {
    "int": _integer,
    "float": _float,
    "bool": {"true": True, "false": False}.get,
    "str": _text,
}
