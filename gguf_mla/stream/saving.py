"""The driver's books: what was done is brought to the disk now and then, and only then noted in the journal."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Self

from gguf_mla.files.output import check_room
from gguf_mla.stream.threads import grace_after, join

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gguf_mla.files.output import OutputFile
    from gguf_mla.stream.books import Books
    from gguf_mla.stream.engine import Done

START_BYTES = 512 << 20  # written bytes after which the disk is started, so that a sync has little left to wait for
SAVE_SECONDS = 20.0  # the work that a kill can cost; writers are slower during a sync, so it is not done all the time


class Saver:
    """Keeps count of a run; as a context, saves from a thread of its own while the others compute.

    at_once     bytes that the files take at the same time, at most; None where all are there in the end

    done        bytes that were written or taken over
    taken_over  bytes that an earlier run had written
    seconds     by stage of the work, all workers together
    remarks     what reading has shown, by task
    """

    def __init__(self, files: Sequence[OutputFile], journal: Books, at_once: int | None = None) -> None:
        self._files, self._journal, self._at_once = [*files], journal, at_once
        self._disk = threading.RLock()  # of the files, which may go
        self._wake = threading.Condition()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._guarded, daemon=True)
        self._unsaved: list[Done] = []
        self._started = 0
        self._error: BaseException | None = None
        self.done = self.taken_over = 0
        self.seconds: Counter[str] = Counter()
        self.remarks: dict[int, tuple[Any, ...]] = {}

    def note(self, done: Done) -> None:
        """Count what was done, to be saved later; raises what an earlier saving has met with."""
        self.seconds.update(done.seconds)
        if done.remarks:
            self.remarks[done.number] = done.remarks
        with self._wake:
            self.done += done.nbytes
            if done.taken_over:
                self.taken_over += done.nbytes
            if done.sums != self._journal.claims.of(done.number):
                self._unsaved.append(done)
            if self._is_due_to_start():
                self._wake.notify_all()
        if self._error is not None:
            raise self._error

    def save(self) -> None:
        """Bring what was noted to the disk and say so in the journal; MachineError if the rest will not fit."""
        with self._disk:
            with self._wake:
                batch, self._unsaved = self._unsaved, []
            for file in self._files:
                file.sync()
            self._journal.record(batch)
            if self._files:
                check_room(self._files, max(self.done, self._journal.nbytes), at_once=self._at_once)

    def let_go(self, file: OutputFile) -> None:
        """Discard a file whose content is elsewhere for good."""
        with self._disk:
            self._files.remove(file)
            file.discard()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        self._stop.set()
        with self._wake:
            self._wake.notify_all()
        join([self._thread], grace_after(error))
        if error is None and self._error is not None:
            raise self._error

    def _guarded(self) -> None:
        try:
            self._watch()
        except BaseException as error:
            self._error = error

    def _watch(self) -> None:
        """Keep the disk busy, and save now and then."""
        due = time.monotonic() + SAVE_SECONDS
        while not self._stop.is_set():
            with self._wake:
                self._wake.wait_for(self._has_news, max(0.0, due - time.monotonic()))
                self._started = self.done
            with self._disk:
                for file in () if self._stop.is_set() else self._files:
                    file.start_sync()
            if time.monotonic() >= due and not self._stop.is_set():
                self.save()
                due = time.monotonic() + SAVE_SECONDS

    def _has_news(self) -> bool:
        return self._stop.is_set() or self._is_due_to_start()

    def _is_due_to_start(self) -> bool:
        return self.done - self._started >= START_BYTES
