"""The bundled tokenizer's files, stretched to another size, or in the form that Kimi publishes."""

from __future__ import annotations

import base64
import itertools
import json
import math
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gguf_mla.text.ranks import FILE, byte_values

if TYPE_CHECKING:
    from collections.abc import Mapping

BUNDLED = "data/tiny-deepseek-v3"
SIZE = 2048
SPECIAL_TOKENS = 256  # of Kimi, after the ordinary ones
# Some of Kimi's, by offset; the text models say.
_KIMI = {
    0: "[BOS]", 1: "[EOS]", 2: "<|im_end|>", 3: "<|im_user|>", 4: "<|im_assistant|>", 9: "[EOT]", 10: "<|im_system|>",
    17: "<|im_middle|>", 254: "[UNK]", 255: "[PAD]",
}  # fmt: skip
_KIMI_TEMPLATE = (
    "{% for message in messages %}<|im_{{ message['role'] }}|>{{ message['role'] }}<|im_middle|>"
    "{{ message['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_assistant|>assistant<|im_middle|>{% endif %}"
)


def as_json(content: Mapping[str, Any]) -> bytes:
    """Return an object as the text of a file."""
    return (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode()


def _read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((Path(str(files("gguf_mla"))) / BUNDLED / name).read_text("utf-8"))
    return content


def bundled() -> dict[str, bytes]:
    """Return the files of the bundled tokenizer, which has SIZE tokens."""
    return {name: as_json(_read(name)) for name in ("tokenizer.json", "tokenizer_config.json")}


def stretched(size: int) -> dict[str, bytes]:
    """Return the bundled tokenizer with so many tokens: each further one joins two that are there."""
    content = _read("tokenizer.json")
    model, known = content["model"], {token["content"] for token in content["added_tokens"]}
    vocabulary: dict[str, int] = model["vocab"]
    least = list(vocabulary)[: math.isqrt(2 * size)]
    number = max([*vocabulary.values(), *(token["id"] for token in content["added_tokens"])]) + 1
    for first, second in itertools.product(least, least):
        if number == size:
            break
        if (joined := first + second) not in vocabulary and joined not in known:
            vocabulary[joined] = number
            model["merges"].append(f"{first} {second}")
            number += 1
    return bundled() | {"tokenizer.json": as_json(content)}


def kimis() -> tuple[dict[str, bytes], int]:
    """Return the bundled vocabulary in Kimi's files, ranks and their configuration, and how many tokens there are."""
    vocabulary, alphabet = _read("tokenizer.json")["model"]["vocab"], byte_values()
    ordered = (text for text in sorted(vocabulary, key=vocabulary.__getitem__) if all(c in alphabet for c in text))
    tokens = [bytes(map(alphabet.__getitem__, text)) for text in ordered]
    lines = [base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens)]
    added = {str(len(tokens) + offset): {"content": text, "special": True} for offset, text in _KIMI.items()}
    config = {
        "added_tokens_decoder": added, "bos_token": "[BOS]", "eos_token": "[EOS]", "unk_token": "[UNK]",
        "pad_token": "[PAD]", "tokenizer_class": "TikTokenTokenizer", "chat_template": _KIMI_TEMPLATE,
        "auto_map": {"AutoTokenizer": ["tokenization_kimi.TikTokenTokenizer", None]},
    }  # fmt: skip
    written = {FILE: b"".join(lines), "tokenizer_config.json": as_json(config)}
    return written, len(tokens) + SPECIAL_TOKENS
