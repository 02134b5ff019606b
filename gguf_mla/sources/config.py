"""config.json with its types checked: every key is asked for by type, and a wrong one is named."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gguf_mla.errors import InputError
from gguf_mla.files.bounds import EXPERTS, LAYERS, VOCABULARY, shown

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import PurePath

# What is counted, or what lists are as long as: a larger number would cost time and memory before it is found wrong.
AT_MOST = {
    "vocab_size": VOCABULARY,
    "num_hidden_layers": LAYERS,
    "num_nextn_predict_layers": LAYERS,
    "index_skip_topk_offset": LAYERS,
    "n_routed_experts": EXPERTS,
}


@dataclass(frozen=True)
class Config:
    """A configuration object; `file` is named in errors. A key that is null counts as absent."""

    content: Mapping[str, Any]
    file: PurePath

    def integer(self, key: str, default: int | None = None) -> int:
        """Return a non-negative integer that a GGUF file can hold (32 bits), and that a model can have."""
        value = self._get(key, default, "a number")
        if type(value) is not int or not 0 <= value < 1 << 32:
            raise self.refuse(key, "a whole number from 0 to 2^32 - 1", value)
        if value > AT_MOST.get(key, value):
            raise self.refuse(key, f"at most {AT_MOST[key]}, which no model exceeds", value)
        return value

    def positive(self, key: str, default: int | None = None) -> int:
        """Return an integer above zero."""
        value = self.integer(key, default)
        if value == 0:
            raise self.refuse(key, "a whole number above zero", value)
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return a finite number."""
        value = self._get(key, default, "a number")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > 3e38 or value != value:  # noqa: PLR0124 - NaN
            raise self.refuse(key, "a number", value)
        return float(value)

    def flag(self, key: str, *, default: bool) -> bool:
        """Return a truth value."""
        value = self._get(key, default, "true or false")
        if not isinstance(value, bool):
            raise self.refuse(key, "true or false", value)
        return value

    def choice(self, key: str, known: tuple[str, ...], default: str) -> str:
        """Return one of the known words."""
        value = self._get(key, default, "a word")
        if value not in known:
            raise self.refuse(key, " or ".join(known), value)
        return str(value)

    def first(self, key: str) -> str | None:
        """Return the first of a list of words; None where the key is absent or the list is empty."""
        listed = self.content.get(key) or []
        if not isinstance(listed, list) or not isinstance(listed[0] if listed else "", str):
            raise self.refuse(key, "a list of words", listed)
        return str(listed[0]) if listed else None

    def has(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self.content.get(key) is not None

    def section(self, key: str) -> Config:
        """Return a nested object; an empty one when it is absent."""
        value = self.content.get(key) or {}
        if not isinstance(value, dict):
            raise self.refuse(key, "an object", value)
        return Config(value, self.file)

    def changed(self, **values: Any) -> Config:
        """Return a configuration with other values for some keys."""
        return replace(self, content={**self.content, **values})

    def with_defaults(self, values: Mapping[str, Any]) -> Config:
        """Return a configuration that says these values where it says nothing."""
        return self.changed(**{key: value for key, value in values.items() if not self.has(key)})

    def refuse(
        self, key: str, expected: object, found: object, why: str = "cannot be used", remedy: str | None = None
    ) -> InputError:
        """Return the error for a key."""
        short = shown(found) if isinstance(found, (list, dict, int)) else found
        return InputError(f"{key} {why}", file=self.file, expected=expected, found=short, remedy=remedy)

    def _get(self, key: str, default: Any, expected: str) -> Any:
        value = self.content.get(key)
        if value is not None:
            return value
        if default is None:
            raise self.refuse(key, expected, "nothing", "is missing")
        return default
