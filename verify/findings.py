"""What a proof finds: sentences that name a level and what is to blame."""

from __future__ import annotations

from dataclasses import dataclass

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
            f"{word} {fact}" for word, fact in (("expected", self.expected), ("found", self.found)) if fact is not None
        ]
        return f"{self.subject}: {self.what}" + (f" ({', '.join(facts)})" if facts else "") + "."
