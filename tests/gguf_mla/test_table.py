"""Tables stay aligned, whatever their cells are made of."""

from __future__ import annotations

import pytest

from gguf_mla.cli.table import table, width


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("", 0),
        ("token_embd.weight", 17),
        ("<｜begin▁of▁sentence｜>", 23),  # two full-width bars, two narrow blocks
        ("注意", 4),
        ("e\N{COMBINING ACUTE ACCENT}", 1),
        ("a\N{ZERO WIDTH SPACE}b", 2),
    ],
)
def test_width_is_what_a_terminal_takes(text: str, columns: int) -> None:
    assert width(text) == columns


def test_columns_end_at_the_same_place_after_full_width_text() -> None:
    lines = table(("token", "id"), [("<｜eos｜>", 1), ("plain", 12)], right="id").splitlines()
    assert lines[1] == "---------  --"
    assert {width(line) for line in lines} == {13}
