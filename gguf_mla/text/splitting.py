r"""How the pre-tokenizers that a GGUF file names cut a text into the pieces whose bytes are then joined.

The names and expressions of llama.cpp's vocabulary (b11434), for the models whose attention is MLA and for what is
taken for them by mistake. Each expression isolates its matches within the pieces that those before it have left.
deepseek-llm's last step takes digits one by one, as its tokenizer.json does; llama.cpp takes them together, and no
merge of that vocabulary joins two.
"""

from __future__ import annotations

from dataclasses import dataclass

from gguf_mla.text import ranks


@dataclass(frozen=True)
class Splitting:
    """The steps of a pre-tokenizer; `whole`: a piece that is a token is taken as it is, whatever the merges say."""

    steps: tuple[str, ...]
    whole: bool = False


_CONTRACTIONS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_SPACES = r"|\s+(?!\S)|\s+"
_LINES = r"|\s*[\r\n]+" + _SPACES
_MARKS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*" + _LINES
_WORD = r"|[^\r\n\p{L}\p{N}]?\p{L}+"
_CAPITALS, _SMALL = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_UPPER_LOWER = rf"[^\r\n\p{{L}}\p{{N}}]?{_CAPITALS}*{_SMALL}+"
_UPPERS = rf"[^\r\n\p{{L}}\p{{N}}]?{_CAPITALS}+{_SMALL}*"
_PATHS = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _LINES
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_HAN = "[一-龥\u0800-一가-\ud7ff]+"
_LETTERS = (
    r"\s?"
    "[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u1f7d"
    "ᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-"
    "ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+"
)

_DEEPSEEK_V3 = Splitting(
    (
        r"\p{N}{1,3}",
        "[一-龥\u3040-ゟ゠-ヿ]+",
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
        r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*" + _LINES,
    )
)
_GLM = Splitting((_CONTRACTIONS + _WORD + r"|\p{N}{1,3}" + _MARKS,), whole=True)
_GPT_2 = Splitting((_GPT2,))
_QWEN2 = Splitting((_CONTRACTIONS + _WORD + r"|\p{N}" + _MARKS,))

SPLITTINGS = {
    **dict.fromkeys(("deepseek-v3", "joyai-llm", "hunyuan-dense", "hy_v4"), _DEEPSEEK_V3),
    "deepseek-llm": Splitting((r"[\r\n]", _LETTERS, "\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+", r"\s+$", _HAN, r"\p{N}")),
    "deepseek-coder": Splitting((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN, r"\p{N}")),
    "kimi-k2": Splitting((ranks.SPLIT,)),
    **dict.fromkeys(("glm4", "glm5", "llama-bpe", "llama3", "llama-v3"), _GLM),
    **dict.fromkeys(("chatglm-bpe", "dbrx", "smaug-bpe"), Splitting(_GLM.steps)),
    **dict.fromkeys(("gpt-2", "gigachat", "mpt", "olmo", "phi-2", "exaone4", "trillion"), _GPT_2),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "hunyuan", "megrez", "stablelm2", "grok-2", "solar-open"), _QWEN2),
    **dict.fromkeys(
        ("gpt-4o", "llama4", "kanana2", "minimax-m2"),
        Splitting((rf"{_UPPER_LOWER}{_CONTRACTIONS}?|{_UPPERS}{_CONTRACTIONS}?" + r"|\p{N}{1,3}" + _PATHS,)),
    ),
    "youtu": Splitting(
        (
            "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥\u3040-ゟ゠-ヿ]+",
            rf"{_UPPER_LOWER}{_CONTRACTIONS}?|{_UPPERS}{_CONTRACTIONS}?" + r"|\p{N}" + _PATHS,
        ),
        whole=True,
    ),
    "tekken": Splitting((rf"{_UPPER_LOWER}|{_UPPERS}" + r"|\p{N}" + _PATHS,), whole=True),
    "default": Splitting((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
}
