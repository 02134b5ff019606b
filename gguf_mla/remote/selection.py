"""Which GGUF files of a repository are meant: a tag picks a model, whole or in parts."""

from __future__ import annotations

import re

from gguf_mla.errors import InputError
from gguf_mla.files.bounds import named

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-\d{5}\.gguf", re.DOTALL)
_ASIDE = re.compile(r"(^|/)mmproj|imatrix", re.IGNORECASE)  # beside a model: a vision tower, an importance matrix


def gguf(names: list[str], tag: str, asked: str) -> str:
    """Return the file, or the first part, of the one model that a tag picks; without a tag there has to be only one.

    A tag is a file's name, or words in it: Q4_K is not in Q4_K_M. `asked` is for errors.
    """
    if tag in names:
        return tag
    models = [name for name in names if name.endswith(".gguf") and not _ASIDE.search(name) and _is_first(name)]
    found = [name for name in models if _has(name, tag)]
    exact = [name for name in found if _last(name).lower() == tag.lower()]
    found = exact if len(exact) == 1 else found
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} models fit" if found else "holds no such GGUF file"
    raise InputError(
        what,
        file=asked,
        found=named(found or models, 12) or "no GGUF file",
        remedy="Name one: OWNER/NAME:TAG, where TAG is a part of its name, or the file",
    )


def _is_first(name: str) -> bool:
    part = _PART.fullmatch(name)
    return part is None or int(part["number"]) == 1


def _has(name: str, tag: str) -> bool:
    """Whether a name has a tag in it as a whole word, or words."""
    return not tag or re.search(rf"(?<![A-Za-z0-9_]){re.escape(tag)}(?![A-Za-z0-9_])", name, re.IGNORECASE) is not None


def _last(name: str) -> str:
    """Return the words of a name that say its types, as files are mostly named: MODEL-UD-Q4_K_M.gguf."""
    part = _PART.fullmatch(name)
    stem = part["stem"] if part else name.removesuffix(".gguf")
    words = re.split(r"[-.]", stem.rpartition("/")[2])
    return "-".join(words[-2:]) if len(words) > 1 and words[-2].upper() == "UD" else words[-1]
