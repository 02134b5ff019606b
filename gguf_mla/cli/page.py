"""Reports as self-contained HTML pages: what is written where, and what their parts look like."""

from __future__ import annotations

import html
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gguf_mla.errors import InputError, MachineError
from gguf_mla.files import platform
from gguf_mla.files.guard import check_apart, is_same, mark_of, obstacle, partial_path
from gguf_mla.files.input import InputFile
from gguf_mla.files.output import OutputFile
from gguf_mla.quoting import NAME, quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

STYLE = Path(__file__).with_name("page.css")
BAD = "var(--bad)"


def begin(command: str) -> str:
    """Return what a command's pages begin with, which tells them from files that are not to be replaced."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="generator" content="gguf-mla {command}">'
    )


@contextmanager
def report(path: Path, command: str, inputs: Iterable[Path]) -> Iterator[Callable[[str], None]]:
    """Give what writes a command's page; that it can be written is certain before the work begins.

    An older page is replaced, nothing else, and only when the new one is complete. Raises InputError for another file
    that is there and for one of the inputs, MachineError when the page cannot be written.
    """
    first = begin(command)
    check_apart([path], [partial_path(path)], inputs)
    if not path.parent.is_dir():
        raise MachineError("the report cannot be written, its directory does not exist", file=path)
    if obstacle(path, overwrite=_is_page(path, first)):
        what = f"is there already, and is not a report of an earlier {NOUNS.get(command, command)}"
        raise InputError(what, file=path, remedy="Choose another name for the report")
    draft = partial_path(path)  # what a killed run has left of a page is thrown away
    if is_same(draft, path) and _is_page(path, first):
        platform.remove(draft)  # it was killed between giving the page its name and taking this one from it
    file = OutputFile(path, 0, known={path.name: draft.stat().st_ino} if _is_page(draft, first) else {})

    def write(content: str) -> None:
        file.overwrite = _is_page(path, first)
        file.put(content.encode())

    file.kept = False
    with file:
        yield write


NOUNS = {"verify": "proof", "inspect": "inspection"}  # what a command does, where a sentence needs a noun


def _is_page(path: Path, first: str) -> bool:
    """Whether a page of ours is there, or as much of one as has its beginning."""
    if mark_of(path) is None:
        return False
    with InputFile(path) as file:
        return file.read(0, min(file.size, len(first))).tobytes() == first.encode()


def safe(text: object, limit: int = NAME) -> str:
    """Return a text as HTML, on one line of bounded length."""
    return html.escape(quoted(str(text), limit))


def document(command: str, title: str, sections: Iterable[str]) -> str:
    """Return a page as HTML text."""
    return (
        f"{begin(command)}<title>{safe(title)}</title>"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE.read_text(encoding='utf-8')}</style></head><body><main>{''.join(sections)}</main></body></html>\n"
    )


def section(title: str, content: str) -> str:
    """Return a heading with what follows."""
    return f"<h2>{safe(title)}</h2>{content}"


def table(header: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """Return a table of texts; all columns but the first are aligned to the right."""
    head = "".join(f"<th>{safe(title)}</th>" for title in header)
    return wide(f"<table><tr>{head}</tr>{_rows(rows)}</table>")


def facts(rows: Iterable[Iterable[object]]) -> str:
    """Return a table of names and what is said of them, without a header."""
    return wide(f'<table class="facts">{_rows(rows)}</table>')


def wide(content: str) -> str:
    """Return what keeps its width, and is scrolled where the window has less."""
    return f'<div class="scroll">{content}</div>'


def _rows(rows: Iterable[Iterable[object]]) -> str:
    return "".join("<tr>" + "".join(f"<td>{safe(text)}</td>" for text in row) + "</tr>" for row in rows)


def cell(title: str, colour: str, share: float) -> str:
    """Return a cell of a map, coloured by a share from 0 to 1."""
    return f'<td style="{shade(colour, share)}" title="{safe(title)}"></td>'


def shade(colour: str, share: float) -> str:
    """Return the style of what is coloured by a share from 0 to 1."""
    return f"background:color-mix(in srgb, {colour} {round(100 * max(share, 0.06))}%, var(--paper))"
