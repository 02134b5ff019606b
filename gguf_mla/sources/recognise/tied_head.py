"""An output matrix beside tied embeddings: a copy of them, or one that was trained while the flag stayed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf_mla.sources.recognise.compare import same

if TYPE_CHECKING:
    from gguf_mla.sources.recognise.reading import Reading

EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"
FLAG = "tie_word_embeddings"


def recognise(reading: Reading) -> Reading:
    """Return the reading as untied where the output matrix has values of its own."""
    embeddings, head = reading.stored.get(EMBEDDINGS), reading.stored.get(HEAD)
    if reading.config.get(FLAG) is not True or embeddings is None or head is None or same(embeddings, head):
        return reading
    return reading.configured(**{FLAG: False}).noted(
        f"tied head: {FLAG} is true, but {HEAD} has other values than the embeddings; it is kept."
    )
