"""Model families as data, one module each, found by the class that config.json names."""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING

from gguf_mla import discovery
from gguf_mla.errors import InputError
from gguf_mla.families.refused import REASONS

if TYPE_CHECKING:
    from gguf_mla.families.base import Family
    from gguf_mla.sources.config import Config


def family_of(config: Config) -> Family:
    """Return the family of a checkpoint's configuration; InputError names the known classes, or says why not it."""
    classes = config.content.get("architectures")
    name = classes[0] if isinstance(classes, list) and classes else None
    text = name if isinstance(name, str) else None
    known = {}
    for family in families():
        if text in family.classes:
            return family
        known.update(dict.fromkeys(sorted(family.classes)))
    if text in REASONS:
        raise InputError(f"{text} is not converted: {REASONS[text]}", file=config.file)
    raise InputError("the architecture is not supported", file=config.file, expected=" or ".join(known), found=name)


@functools.cache
def families() -> tuple[Family, ...]:
    """Every family, in the order of the modules' names."""
    modules = map(importlib.import_module, discovery.modules(__name__, __path__))
    return tuple(module.FAMILY for module in modules if hasattr(module, "FAMILY"))
