"""What a proof finds: sentences that name a level, what is to blame, and how much it matters."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from gguf_mla.errors import FACT
from gguf_mla.quoting import TEXT, quoted, shown

LEVELS = ("structure", "weights", "attention", "logits")


class Grade(StrEnum):
    """What a finding means for who uses the file, and what all of them together say of the file.

    RIGHT        computes and reads what the reference does
    DIFFERS      is otherwise than the reference, and no engine computes or reads anything else for it
    CANNOT_TELL  could not be judged
    WRONG        an engine computes or reads something else
    """

    RIGHT = "right"
    DIFFERS = "differs"
    CANNOT_TELL = "cannot tell"
    WRONG = "wrong"


@dataclass(frozen=True)
class Finding:
    """Something that is not as in the reference.

    subject  the tensor, metadata key, layer or measure to blame
    remedy   for what cannot be told, what would tell
    """

    level: str
    subject: str
    what: str
    expected: object = None
    found: object = None
    grade: Grade = Grade.WRONG
    remedy: str | None = None

    @property
    def sentence(self) -> str:
        """The finding in a sentence, and what would tell in another."""
        facts = [
            f"{word} {shown(fact, FACT)}"
            for word, fact in (("expected", self.expected), ("found", self.found))
            if fact is not None
        ]
        begin = f"{quoted(self.subject)}: {quoted(self.what, TEXT)}"
        text = begin + (f" ({', '.join(facts)})" if facts else "") + "."
        return f"{text} {quoted(self.remedy, TEXT)}." if self.remedy else text
