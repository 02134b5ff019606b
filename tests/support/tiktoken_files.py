"""The bundled vocabulary as Kimi would publish it: ranks in tiktoken.model, special tokens in tokenizer_config.json."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# Offsets behind the ordinary tokens, as Kimi-K2-Thinking has them; text, and whether it is marked special.
SPECIAL = {
    0: ("[BOS]", True),
    1: ("[EOS]", True),
    2: ("<|im_end|>", True),
    3: ("<|im_user|>", True),
    4: ("<|im_assistant|>", True),
    9: ("[EOT]", True),
    10: ("<|im_system|>", True),
    11: ("<|tool_calls_section_begin|>", False),
    22: ("<think>", False),
    23: ("</think>", False),
    254: ("[UNK]", True),
    255: ("[PAD]", True),
}
RESERVED = 256
# What tokenization_kimi.py joins with "|".
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_CONTRACTED = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
PATTERNS = (
    r"[\p{Han}]+",
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTED}",
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTED}",
    r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
)


def byte_of() -> dict[str, int]:
    """The byte of each character of GPT-2's alphabet, by the library that wrote tokenizer.json."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {character: byte for byte, character in bytes_to_unicode().items()}


def ranks_of(tokenizer: Path) -> dict[bytes, int]:
    """The tokens of a tokenizer.json that stand for bytes, in the order of their ids, ranked from 0 on."""
    vocabulary, alphabet = json.loads(tokenizer.read_text(encoding="utf-8"))["model"]["vocab"], byte_of()
    ordered = sorted(vocabulary, key=vocabulary.__getitem__)
    tokens = [bytes(map(alphabet.__getitem__, text)) for text in ordered if all(c in alphabet for c in text)]
    return {token: rank for rank, token in enumerate(tokens)}


def special_tokens(base: int) -> dict[str, int]:
    """Every special token's id, as tokenization_kimi.py counts them."""
    named = {base + offset: text for offset, (text, _) in SPECIAL.items()}
    return {named.get(number, f"<|reserved_token_{number}|>"): number for number in range(base, base + RESERVED)}


def write(directory: Path, ranks: dict[bytes, int]) -> None:
    """Write tiktoken.model and tokenizer_config.json."""
    lines = [base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()]
    (directory / "tiktoken.model").write_bytes(b"".join(lines))
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    config = {
        "added_tokens_decoder": {
            str(len(ranks) + offset): {"content": text, **flags, "special": special}
            for offset, (text, special) in SPECIAL.items()
        },
        "additional_special_tokens": ["<|im_end|>"],
        "auto_map": {"AutoTokenizer": ["tokenization_kimi.TikTokenTokenizer", None]},
        "bos_token": "[BOS]",
        "chat_template": "{% for message in messages %}{{ message['content'] }}<|im_end|>{% endfor %}",
        "eos_token": "[EOS]",
        "model_max_length": 1000000000000000019884624838656,
        "pad_token": "[PAD]",
        "tokenizer_class": "TikTokenTokenizer",
        "unk_token": "[UNK]",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
