"""The page of a repository that files are uploaded to: of each model a section that is ours, and nothing else touched.

A section stands between two comments with the model's name, and is written anew with the model. What stands outside of
sections stays as it is. A page without any section of ours is somebody's own: then the section becomes a page beside
the model's files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gguf_mla import units
from gguf_mla.quoting import NAME, TEXT, quoted
from gguf_mla.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from gguf_mla.plan.jobs import Plan

PAGE = "README.md"
_ANY = re.compile(r"<!-- gguf-mla: begin .{1,200} -->")


@dataclass(frozen=True)
class Section:
    """What is said of one model.

    name     its own
    plan     what it was written by
    files    by their names in the repository, each with `size` and `sha256`
    recipe   what its types are called together
    origin   the repository that it was made from, OWNER/NAME, and the commit; "" for what is not known
    verdict  sentences of a proof, none without one
    command  that makes the same bytes
    """

    name: str
    plan: Plan
    files: Mapping[str, Mapping[str, Any]]
    recipe: str
    origin: tuple[str, str]
    verdict: Sequence[str]
    command: str

    def text(self) -> str:
        """Return the section with the comments around it."""
        lines = [
            _begin(self.name),
            f"## {_shown(self.name)}",
            "",
            *_table(("", ""), self._facts()),
            "",
            *_table(("tensors of type", "bytes"), self.plan.bytes_by_type().items()),
            "",
            *_table(("file", "bytes", "SHA-256"), self._files()),
            "",
            "The same bytes come from",
            "",
            f"    {quoted(self.command, TEXT)}",
            _end(self.name),
        ]
        return "\n".join(lines) + "\n"

    def _facts(self) -> Iterable[tuple[str, object]]:
        repository, commit = self.origin
        if repository:
            yield "made from", f"{repository} at commit {commit}" if commit else repository
        yield "recipe", self.recipe
        yield "parameters", units.count(self.plan.parameters)
        yield "bits per weight", units.bits_per_weight(self.plan.nbytes, self.plan.parameters)
        for sentence in self.verdict:
            yield "verified", _shown(sentence, TEXT)
        yield "made by", f"gguf-mla {__version__}"

    def _files(self) -> Iterable[tuple[object, ...]]:
        for name, receipt in self.files.items():
            yield _shown(name), receipt["size"], f"`{receipt['sha256']}`"


def pages(sections: Sequence[Section], title: str, read: Callable[[str], str | None]) -> dict[str, str]:
    """Return the pages to write, by name: README.md, or where that is somebody's own, one page for each section.

    `read` returns what a repository has by a name. A page of that name which is not ours is left alone, too.
    """
    there = read(PAGE)
    if is_ours(there):
        text = _new(sections[0].origin[0], title) if there is None else there
        for section in sections:
            text = merged(text, section)
        return {PAGE: text}
    beside = {f"{section.name}.md": section for section in sections}
    return {name: merged(read(name) or "", section) for name, section in beside.items() if is_ours(read(name))}


def is_ours(page: str | None) -> bool:
    """Whether a page may be written: there is none, it is empty but for its head, or it has a section of ours."""
    return page is None or not _body(page) or _ANY.search(page) is not None


def merged(page: str, section: Section) -> str:
    """Return a page with a section in the place of the older one of that name, or at the end."""
    begin, end = _begin(section.name), _end(section.name)
    before, found, rest = page.partition(begin)
    if found and end in rest:
        return before + section.text() + rest.partition(end)[2].removeprefix("\n")
    return (page.rstrip("\n") + "\n\n" if page.strip() else "") + section.text()


def _body(page: str) -> str:
    """Return what a page says beside the data at its head."""
    return re.sub(r"\A---\r?\n.*?\n---\r?\n", "", page, flags=re.DOTALL).strip()


def _new(base: str, title: str) -> str:
    based = f"base_model: {base}\nbase_model_relation: quantized\n" if base else ""
    return f"---\n{based}library_name: gguf\ntags:\n- gguf\n- gguf-mla\n---\n\n# {_shown(title)}\n"


def _begin(name: str) -> str:
    return f"<!-- gguf-mla: begin {_shown(name)} -->"


def _end(name: str) -> str:
    return f"<!-- gguf-mla: end {_shown(name)} -->"


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    return [_row(header), _row(["---"] * len(header)), *map(_row, rows)]


def _row(cells: Iterable[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _shown(text: str, limit: int = NAME) -> str:
    """Return a stranger's text as a page may have it: on one line, and not the end of a comment or a cell."""
    return quoted(text, limit).replace("--", "‐‐").replace("|", "/").replace("<", "‹")
