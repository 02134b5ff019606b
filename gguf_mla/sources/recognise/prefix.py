"""A language model whose tensors' names begin otherwise than with "model.": it was part of something when it was saved.

The norm of MLA's latent row shows where a language model begins. Its output matrix lies in the model or beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf_mla.errors import InputError
from gguf_mla.files.bounds import shown
from gguf_mla.sources.recognise.reading import examples

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from gguf_mla.sources.recognise.reading import Reading

BODY, HEAD = "model.", "lm_head."
MARK = ".self_attn.kv_a_layernorm.weight"
PARTS = ("layers.", "embed_tokens.", "norm.")  # of a body
PUBLISHED = "language_model.model."  # so Kimi-VL and Kimi-K2.5 are published: nothing to be told of


def recognise(reading: Reading) -> Reading:
    """Return the reading with the names that the language model would have alone; InputError where there are two."""
    chosen = reading.choices.prefix
    bodies = sorted(set(_bodies((*reading.stored, *reading.absent))))
    if chosen is not None:
        reading, bodies = _only(reading, chosen, bodies), [chosen]
    if len(bodies) > 1:
        raise InputError(
            "the weights hold more than one language model",
            file=reading.folder.path,
            found=f"names that begin with {examples(map(repr, bodies))}",
            remedy="Name the one that is wanted with --prefix",
        )
    if not bodies or bodies == [BODY]:
        return reading
    [body] = bodies
    found = reading.renamed(lambda name: _alone(name, body))
    said = f'begins with "{shown(body)}"' if body else 'begins without "model."'
    return found if body == PUBLISHED else found.noted(f'prefix: every name of the model {said}; read as "{BODY}".')


def _bodies(names: Iterable[str]) -> Iterator[str]:
    """Yield what comes before the layers of every language model; multi-token prediction beside one does not count."""
    for name in names:
        if name.endswith(MARK):
            before, found, number = name.removesuffix(MARK).rpartition("layers.")
            if found and number.isdecimal() and "mtp." not in before and (not before or before.endswith(".")):
                yield before


def _alone(name: str, body: str) -> str:
    if name.startswith(tuple(body + part for part in PARTS)):
        return BODY + name.removeprefix(body)
    if any(name.startswith(outer + HEAD) for outer in _outer(body)):
        return name[name.index(HEAD) :]
    return name


def _outer(body: str) -> Iterator[str]:
    """Yield the body's prefix and those of all that it lies in: "a.b.", "a.", ""."""
    parts = body.split(".")[:-1]
    for count in range(len(parts), -1, -1):
        yield "".join(part + "." for part in parts[:count])


def _only(reading: Reading, chosen: str, bodies: list[str]) -> Reading:
    if chosen not in bodies:
        found = examples(map(repr, bodies)) or "none"
        raise InputError(f"--prefix {chosen!r:.80} is not where a language model's names begin", found=found)
    others = tuple(body for body in bodies if body != chosen)
    why = f"belongs to another model than that of --prefix {chosen!r:.80}"
    mine = tuple(chosen + part for part in PARTS)
    names = (*reading.stored, *reading.absent)
    heads = [outer + HEAD for outer in _outer(chosen)]
    nearest = next((head for head in heads if any(name.startswith(head) for name in names)), None)
    parts = tuple(body + part for body in others for part in (*PARTS, HEAD))
    outside = tuple(outer + HEAD for body in others for outer in _outer(body) if outer + HEAD != nearest)
    return reading.without(
        {name: why for name in names if name.startswith((*parts, *outside)) and not name.startswith(mine)}
    )
