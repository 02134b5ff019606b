"""The completion record of a job: what it left on the disk, and by whom; readable, and worth nothing once torn."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gguf_mla.files import json_text
from gguf_mla.sources import remarks

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gguf_mla.stream.engine import Sums
    from gguf_mla.stream.sharing.plan import SharedPlan

DIGITS = 8  # of a CRC-32
_HEXADECIMAL = re.compile("[0-9a-f]*")


@dataclass(frozen=True)
class Record:
    """A job that is done.

    number   the job's
    plan     the digest of its plan
    worker   who did it: machine and process
    seconds  how long that took
    sums     by tensor, the CRC-32 of every task in every output, one after the other as eight hexadecimal digits each
    remarks  what reading has shown
    """

    number: int
    plan: str
    worker: str
    seconds: float
    sums: Mapping[str, str]
    remarks: tuple[Any, ...] = ()

    def to_text(self) -> str:
        """Return what the file holds."""
        return json.dumps({**self._content(), "sha256": self.digest}, indent=1) + "\n"

    @property
    def digest(self) -> str:
        """SHA-256 of everything else."""
        return hashlib.sha256(json.dumps(self._content(), sort_keys=True).encode()).hexdigest()

    @property
    def digits(self) -> int:
        """How many digits all checksums have."""
        return sum(map(len, self.sums.values()))

    def _content(self) -> dict[str, Any]:
        return {
            "job": self.number,
            "plan": self.plan,
            "worker": self.worker,
            "seconds": round(self.seconds, 3),
            "crc32": dict(self.sums),
            "remarks": [remarks.to_data(remark) for remark in self.remarks],
        }

    def tasks(self, first: int, outputs: int) -> Iterator[tuple[int, Sums]]:
        """Yield the tasks of the job and their checksums; `first` is the number of the first task."""
        digits = "".join(self.sums.values())
        width = DIGITS * outputs
        for at in range(0, len(digits), width):
            task = digits[at : at + width]
            yield first + at // width, tuple(int(task[i : i + DIGITS], 16) for i in range(0, width, DIGITS))

    @classmethod
    def _of(cls, data: Any) -> tuple[Record, Any]:
        """Return what data say, and the digest that they state."""
        try:
            sums = {str(name): str(digits) for name, digits in data["crc32"].items()}
            shown = tuple(map(remarks.from_data, data["remarks"]))
            found = cls(data["job"], data["plan"], str(data["worker"]), float(data["seconds"]), sums, shown)
            return found, data["sha256"]
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"{type(error).__name__} {error}") from None

    @classmethod
    def parse(cls, text: bytes, plan: SharedPlan, number: int) -> Record:
        """Return the record of a job in a file; ValueError for one that is torn or forged."""
        found, stated = cls._of(json_text.parse(text))
        job = plan.jobs[number]
        digits = DIGITS * len(job.ranges) * (job.stop - job.first)
        sound = (found.number, found.plan, found.digits) == (number, plan.digest, digits)
        if not sound or not _HEXADECIMAL.fullmatch("".join(found.sums.values())) or stated != found.digest:
            raise ValueError("it is torn, or another job's")
        return found


def sums_text(sums: Sums) -> str:
    """Return the checksums of a task as a record has them."""
    return "".join(f"{value:0{DIGITS}x}" for value in sums)
