"""What a proof finds: sentences that name a level and what is to blame."""

from __future__ import annotations

from dataclasses import dataclass

from gguf_mla.errors import FACT
from gguf_mla.quoting import TEXT, quoted, shown

LEVELS = ("structure", "weights", "attention", "logits")


@dataclass(frozen=True)
class Finding:
    """Something that is wrong; `subject` is the tensor, metadata key, layer or measure to blame."""

    level: str
    subject: str
    what: str
    expected: object = None
    found: object = None

    @property
    def sentence(self) -> str:
        """The finding in one sentence."""
        facts = [
            f"{word} {shown(fact, FACT)}"
            for word, fact in (("expected", self.expected), ("found", self.found))
            if fact is not None
        ]
        begin = f"{quoted(self.subject)}: {quoted(self.what, TEXT)}"
        return begin + (f" ({', '.join(facts)})" if facts else "") + "."
