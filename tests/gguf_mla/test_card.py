"""The page of a repository: sections of ours are written anew, and not a word of anybody else's is touched."""

from __future__ import annotations

import click
import pytest

from gguf_mla.cli import sending
from gguf_mla.cli.card import Section, merged, pages
from gguf_mla.plan.jobs import Part, Plan, TensorJob
from quantize import command

OWN = "---\nlicense: mit\n---\n\n# Somebody's model\n\nRead this first.\n"


def section(name: str = "m-Q8_0", verdict: tuple[str, ...] = (), origin: str = "o/m", command: str = "c") -> Section:
    tensor = TensorJob("t", (4, 32), "Q8_0", (Part("t", 0, 4),), "BF16", "")
    files = {f"{name}.gguf": {"size": 136, "sha256": "ab" * 32}}
    return Section(name, Plan({}, (tensor,)), files, "Q8_0", (origin, "c0ffee"), verdict, command)


def test_a_new_page_says_what_was_made_of_what() -> None:
    found = pages([section(verdict=("right, against m",))], "me/m-GGUF", lambda _: None)
    page = found["README.md"]
    assert page.startswith("---\nbase_model: o/m\nbase_model_relation: quantized\nlibrary_name: gguf\n")
    for line in (
        "| made from | o/m at commit c0ffee |",
        "| bits per weight | 8.50 |",
        "| verified | right, against m |",
        "| Q8_0 | 136 |",
        f"| m-Q8_0.gguf | 136 | `{'ab' * 32}` |",
        "    c",
    ):
        assert line in page.splitlines()


def test_models_have_a_section_each_which_is_written_anew() -> None:
    first = pages([section()], "me/x", lambda _: None)["README.md"] + "\nA word of mine.\n"
    second = pages([section("m-Q4_K_M")], "me/x", {"README.md": first}.get)["README.md"]
    assert second.startswith(first.rstrip("\n"))
    third = pages([section(command="another")], "me/x", {"README.md": second}.get)["README.md"]
    assert third == second.replace("    c\n<!-- gguf-mla: end m-Q8_0 -->", "    another\n<!-- gguf-mla: end m-Q8_0 -->")
    assert "A word of mine." in third
    assert merged(third, section(command="another")) == third


def test_a_page_of_somebody_else_is_left_alone() -> None:
    found = pages([section()], "me/x", {"README.md": OWN}.get)
    assert [*found] == ["m-Q8_0.md"]
    assert pages([section()], "me/x", {"README.md": OWN, "m-Q8_0.md": "mine"}.get) == {}
    head = "---\nlicense: mit\n---\n"  # what the hub itself puts into a new repository
    page = pages([section()], "me/x", {"README.md": head}.get)["README.md"]
    assert page.startswith(head)


def test_a_name_of_a_stranger_ends_no_comment() -> None:
    page = pages([section("a --> <script>|b")], "me/x", lambda _: None)["README.md"]
    assert "<script" not in page
    assert page.count("-->") == 2


@pytest.mark.parametrize(
    ("used", "given", "told"),
    [
        ("quantize", "/home/me/in.gguf /home/me/o.gguf Q4_K_M 8 --overwrite", "in.gguf o.gguf Q4_K_M 8"),
        ("merge", "/home/me/a-00001-of-00002.gguf o.gguf --delete-splits", "a-00001-of-00002.gguf o.gguf"),
    ],
)
def test_the_command_names_no_directory_and_deletes_nothing(used: str, given: str, told: str) -> None:
    found: click.Command = getattr(command, used)
    context = click.Context(found, info_name=used)
    found.parse_args(context, given.split())
    with context:
        assert sending.command() == f"gguf-mla {used} {told}"
