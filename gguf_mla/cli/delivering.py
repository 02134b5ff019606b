"""Shared work whose files go to a destination: each is a job, built on a worker's own disk."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gguf_mla.cli import launch, network, sending
from gguf_mla.cli.progress import progress
from gguf_mla.codec.device import open_device
from gguf_mla.errors import InputError
from gguf_mla.files.locked import BusyError
from gguf_mla.stream.execute import RunInterrupted
from gguf_mla.stream.sharing import parts
from gguf_mla.stream.sharing.parts import PartLedger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gguf_mla.cli.options import RunOptions
    from gguf_mla.cli.sharing import Shared
    from gguf_mla.remote.destination import Destination
    from gguf_mla.stream.sharing.parts import Whole
    from gguf_mla.stream.sharing.work import Worked


def scratch() -> Path:
    """Return where this machine builds files: in the temporary directory (TMPDIR)."""
    return Path(tempfile.gettempdir())


def opened(shared: Shared) -> tuple[Destination, PartLedger]:
    """Return where the files of a plan go, and the notes there; InputError where nothing can be sent."""
    destination = sending.sink(shared.job, replace(shared.options, dry_run=False))
    if destination is None:
        raise InputError("this plan sends its files nowhere", remedy="Plan with --upload")
    return destination, PartLedger(destination, shared.plan)


def worked_on(shared: Shared, mine: Sequence[Whole], options: RunOptions) -> Worked:
    """Build some files of a plan and send them, with a bar; Interrupted for Ctrl-C."""
    destination, ledger = opened(shared)
    title = f"{launch.title([output for _, output in shared.job.outputs])}, {len(mine)} files"
    total = sum(whole.nbytes for whole in mine)
    note = network.note(shared.job, destination)
    with ExitStack() as stack:
        bar = stack.enter_context(progress(title, total, quiet=options.quiet, note=note))
        stack.enter_context(launch.heard_by(bar))
        device = open_device(options.device)
        try:
            return parts.work_on_parts(
                shared.job, mine, destination, ledger, scratch(),
                threads=options.threads, device=device, progress=bar.update,
            )  # fmt: skip
        except RunInterrupted as stop:
            raise launch.interrupted(stop, options) from None
        except BusyError as error:
            remedy = "Give every worker of a machine a TMPDIR of its own, or other files"
            raise InputError(error.what, file=str(error.file), remedy=remedy) from None


def finished(shared: Shared, options: RunOptions, planning: float) -> None:
    """Have everybody see the files of a plan, and say what was sent."""
    with shared.context.scope(cleanup=False):  # the command that the repository's page names
        destination, ledger = opened(shared)
        if not ledger.is_there():
            raise InputError("no work was done by this plan", file=destination.called, remedy="Run gguf-mla work")
        result = parts.finish_parts(shared.plan, destination, ledger, shared.job.extras, scratch())
    launch.report(shared.job, result, options, planning, destination)
