"""What becomes of every case: `python -m tests.inputs DIRECTORY`."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.inputs.cases import CASES
from tests.support.command import gguf_mla

if TYPE_CHECKING:
    from tests.inputs.cases import Case


def told(case: Case, directory: Path) -> str:
    """What the program makes of a case: a plan's warnings, or the error."""
    answer = gguf_mla(
        "convert", directory, directory.parent / "out.gguf", "--type", "BF16", "--dry-run", "--json", *case.options
    )
    if answer.status:
        return answer.output.strip()
    [plan] = json.loads(answer.output)["outputs"]
    return "converts; " + " ".join(plan["warnings"]) + (f" dropped {len(plan['dropped'])}" if plan["dropped"] else "")


if __name__ == "__main__":
    root = Path(sys.argv[1])
    for name, case in CASES.items():
        place = root / "case"
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(place)
        case.write(place)
        print(f"{name:34} {'refused' if case.refused else 'reads':8} {told(case, place)[:400]}", flush=True)
