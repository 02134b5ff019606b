"""Values that count instead of those in config.json, because the user says so: `--set KEY=VALUE`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from gguf_mla.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def parse(texts: Iterable[str]) -> dict[str, Any]:
    """Return keys with values; a value is JSON, or else a word. InputError for a text without "=" or a key."""
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not all(key.split(".")):
            raise InputError(f"--set {text!r:.80} is not KEY=VALUE", remedy="For example: --set n_group=1")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


def changed(config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with other values; "a.b" is b in the object a, which is made where it is not there."""
    found = dict(config)
    for key, value in settings.items():
        first, _, rest = key.partition(".")
        inner = found.get(first)
        found[first] = changed(inner if isinstance(inner, dict) else {}, {rest: value}) if rest else value
    return found
