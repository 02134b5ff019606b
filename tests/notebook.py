"""Run the notebook of the library's page; `python -m tests.notebook` stores what its cells print."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.hub import BUNDLED, REPOSITORY

if TYPE_CHECKING:
    from nbformat import NotebookNode

PATH = REPOSITORY / "docs" / "library.ipynb"
SECONDS = 300  # for a cell, which may have to compile kernels


def stored() -> NotebookNode:
    """Return the notebook as it is."""
    import nbformat

    return nbformat.read(PATH, as_version=4)


def ran(directory: Path) -> NotebookNode:
    """Return the notebook as a kernel leaves it that runs all cells in a directory, where they find the checkpoint."""
    from nbclient import NotebookClient

    (directory / BUNDLED.name).symlink_to(BUNDLED)
    place = {"metadata": {"path": str(directory)}}
    client = NotebookClient(stored(), timeout=SECONDS, resources=place, coalesce_streams=True, record_timing=False)
    return client.execute()


def shown(notebook: NotebookNode) -> list[tuple[str, list[str]]]:
    """Return the code cells with the texts that they show."""
    return [
        (cell.source, [output.text if "text" in output else output.data["text/plain"] for output in cell.outputs])
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


if __name__ == "__main__":
    import nbformat

    with tempfile.TemporaryDirectory() as working:
        notebook = ran(Path(working))
    notebook.metadata.language_info = {"name": "python"}  # and not which version of it was here
    nbformat.write(notebook, PATH)
