"""Texts that tokenizers disagree about."""

TEXTS = [
    "Hello World, I've I'LL we'd 'tis",
    "def f(x):\n    return x**2  # ok\n\n\n",
    "  leading  and trailing   ",
    "你好，世界。日本語テスト 한국어 텍스트 中文abc中文",
    "naïve café Ünïcödé Ωμέγα \u1f7d\u212a e\u0301",
    "tabs\t\tand\r\nCRLF\r\n",
    "a_b-c+d=e/f\\g [x]{y}(z) <|foo|> $ €",
    "🚀🦙 emoji👩‍👩‍👧 zero\u200dwidth",
    "...!!!???---===",
    "iPhoneProMax XMLHttpRequest fooBarBaz नमस्ते दुनिया",
]
DIGITS = ["12345 apples", "1a2b 3.14 ½ ² Ⅷ ١٢٣٤", "中文123"]
