"""What docs/plan.md shows for Slurm, run as it stands there by submitit's local executor."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.plan.contract import ok, plan
from tests.support import crash
from tests.support.command import environment, gguf_mla
from tests.support.hub import REPOSITORY

if TYPE_CHECKING:
    from tests.support.crash import Job


@pytest.mark.slow
def test_the_example_runs(jobs: dict[str, Job], undisturbed: dict[str, dict[str, bytes]], tmp_path: Path) -> None:
    [code] = re.findall("```python\n(.*?)```", (REPOSITORY / "docs" / "plan.md").read_text(), re.DOTALL)
    (tmp_path / "example.py").write_text(code.replace("RANKS = 4", "RANKS = 2"))
    (out := tmp_path / "out").mkdir()
    ok(plan(jobs["convert"], out, tmp_path / "plan.json"))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    line = [sys.executable, "example.py"]
    done = subprocess.run(line, cwd=tmp_path, env=environment() | {"PATH": path}, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    ok(gguf_mla("finish", tmp_path / "plan.json", "--quiet"))
    assert crash.content(out) == undisturbed["convert"]
