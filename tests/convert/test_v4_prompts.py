"""The chat template that V4's files get, against what the published encoder makes of such conversations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import pytest

from gguf_mla import families
from tests.support import hub

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
ENVIRONMENT = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False)
ENVIRONMENT.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
ENVIRONMENT.filters["from_json"] = json.loads
TEMPLATE = Path(families.__file__).parents[1] / "data" / "templates" / "deepseek4.jinja"

SYSTEM = {"role": "system", "content": "You are brief."}
TALK: list[dict[str, Any]] = [
    SYSTEM,
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "reasoning_content": "A greeting.", "content": "Hello!"},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "reasoning_content": "Four.", "content": "4"},
]
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "required": ["city"]}}},
    {"type": "function", "function": {"name": "time", "parameters": {}}},
]
CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "北京", "days": 2}'}}
CALLS: list[dict[str, Any]] = [
    SYSTEM,
    {"role": "user", "content": "How is Beijing?"},
    {"role": "assistant", "reasoning_content": "I ask.", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "1", "content": '{"sky": "clear"}'},
    {"role": "assistant", "reasoning_content": "Known.", "content": "Clear."},
    {"role": "user", "content": "Thanks"},
]
TOLD = """## Tools

You have access to a set of tools to help answer the user's question. You can invoke tools by writing a \
"<｜DSML｜tool_calls>" block like the following:

<｜DSML｜tool_calls>
<｜DSML｜invoke name="$TOOL_NAME">
<｜DSML｜parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</｜DSML｜parameter>
...
</｜DSML｜invoke>
<｜DSML｜invoke name="$TOOL_NAME2">
...
</｜DSML｜invoke>
</｜DSML｜tool_calls>

String parameters should be specified as is and set `string="true"`. For all other types (numbers, booleans, arrays, \
objects), pass the value in JSON format and set `string="false"`.

If thinking_mode is enabled (triggered by <think>), you MUST output your complete reasoning inside <think>...</think> \
BEFORE any tool calls or final response.

Otherwise, output directly after </think> with tool calls or final response.

### Available Tool Schemas

{"name": "weather", "parameters": {"type": "object", "required": ["city"]}}
{"name": "time", "parameters": {}}

You MUST strictly follow the above defined tool name and parameter schemas to invoke tool calls.
"""
CALLED = """<｜DSML｜tool_calls>
<｜DSML｜invoke name="weather">
<｜DSML｜parameter name="city" string="true">北京</｜DSML｜parameter>
<｜DSML｜parameter name="days" string="false">2</｜DSML｜parameter>
</｜DSML｜invoke>
</｜DSML｜tool_calls>"""
DONE = [
    {"role": "tool", "content": "a"},
    {"role": "tool", "content": "b"},
    {"role": "user", "content": "Go on"},
]
EMPTY = {"type": "function", "function": {"name": "time", "arguments": "{}"}}
CASES: dict[str, tuple[list[dict[str, Any]], dict[str, Any], str]] = {
    "an answer at once": (
        [{"role": "user", "content": "Hello"}],
        {"add_generation_prompt": True},
        "<｜User｜>Hello<｜Assistant｜></think>",
    ),
    "an answer after thought": (
        [{"role": "user", "content": "Hello"}],
        {"add_generation_prompt": True, "enable_thinking": True},
        "<｜User｜>Hello<｜Assistant｜><think>",
    ),
    "a talk": (
        TALK,
        {},
        f"You are brief.<｜User｜>Hi<｜Assistant｜></think>Hello!{EOS}<｜User｜>2+2?<｜Assistant｜></think>4{EOS}",
    ),
    "only the last thought": (
        TALK,
        {"thinking": True},
        (
            f"You are brief.<｜User｜>Hi<｜Assistant｜></think>Hello!{EOS}"
            f"<｜User｜>2+2?<｜Assistant｜><think>Four.</think>4{EOS}"
        ),
    ),
    "every thought": (
        TALK,
        {"thinking": True, "drop_thinking": False},
        (
            f"You are brief.<｜User｜>Hi<｜Assistant｜><think>A greeting.</think>Hello!{EOS}"
            f"<｜User｜>2+2?<｜Assistant｜><think>Four.</think>4{EOS}"
        ),
    ),
    "tools, with which every thought stays": (
        CALLS,
        {"thinking": True, "tools": TOOLS, "add_generation_prompt": True},
        (
            f"You are brief.\n\n{TOLD}<｜User｜>How is Beijing?<｜Assistant｜><think>I ask.</think>\n\n{CALLED}{EOS}"
            f'<｜User｜><tool_result>{{"sky": "clear"}}</tool_result><｜Assistant｜><think>Known.</think>Clear.{EOS}'
            "<｜User｜>Thanks<｜Assistant｜><think>"
        ),
    ),
    "tools and no system message": (
        [{"role": "user", "content": "Hello"}],
        {"tools": TOOLS, "add_generation_prompt": True},
        f"\n\n{TOLD}<｜User｜>Hello<｜Assistant｜></think>",
    ),
    "results and a question in one turn": (
        DONE,
        {"add_generation_prompt": True},
        "<｜User｜><tool_result>a</tool_result>\n\n<tool_result>b</tool_result>\n\nGo on<｜Assistant｜></think>",
    ),
    "a developer with tools, and a reminder": (
        [
            {"role": "latest_reminder", "content": "2026-02-21"},
            {"role": "developer", "content": "Do it", "tools": TOOLS},
            {"role": "assistant", "content": "", "tool_calls": [EMPTY]},
        ],
        {"thinking": True},
        (
            f"<｜latest_reminder｜>2026-02-21<｜User｜>Do it\n\n{TOLD}<｜Assistant｜><think></think>\n\n"
            "<｜DSML｜tool_calls>\n"
            f'<｜DSML｜invoke name="time">\n\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>{EOS}'
        ),
    ),
    "an answer in a form": (
        [SYSTEM, {"role": "user", "content": "Hello"}],
        {"response_format": {"type": "object"}, "add_generation_prompt": True},
        (
            "You are brief.\n\n## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n"
            '{"type": "object"}<｜User｜>Hello<｜Assistant｜></think>'
        ),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_prompts_are_those_of_the_published_encoder(name: str) -> None:
    messages, options, expected = CASES[name]
    template = ENVIRONMENT.from_string(TEMPLATE.read_text("utf-8"))
    assert template.render(messages=messages, bos_token=BOS, **options) == BOS + expected


def test_its_tokens_are_in_the_published_vocabulary() -> None:
    tokenizer = json.loads((hub.tokenizer_directory("deepseek") / "tokenizer.json").read_text("utf-8"))
    known = {token["content"] for token in tokenizer["added_tokens"]}
    assert {"<｜User｜>", "<｜Assistant｜>", "<think>", "</think>", "｜DSML｜", "<｜latest_reminder｜>"} <= known
