"""The marks that other tools leave in a checkpoint, a module each: found, said in a sentence, and undone.

A recogniser has `recognise(reading)`, which returns what it was given where its mark is not there. It looks at names,
shapes and a few bytes, never at whole tensors, unless two have to be compared. Which files hold the weights is decided
before (shards), and so is what is not a model at all (adapter, other_forms).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf_mla.sources.recognise import (
    adapter,
    architecture,
    attention_bias,
    double,
    fused,
    hash_table,
    leftovers,
    prefix,
    published,
    quantization,
    routing_bias,
    shared_experts,
    tied_head,
    unit_dimensions,
    wrappers,
)

if TYPE_CHECKING:
    from gguf_mla.sources.recognise.reading import Reading

# Names first, so that what comes later meets those that a model has alone; stacks before dimensions of one, which the
# scales of a stack may have.
RECOGNISERS = (
    architecture,
    adapter,
    wrappers,
    published,
    prefix,
    leftovers,
    attention_bias,
    quantization,
    fused,
    unit_dimensions,
    hash_table,
    routing_bias,
    double,
    shared_experts,
    tied_head,
)


def recognised(reading: Reading) -> Reading:
    """Return a reading after every recogniser; InputError for what cannot be read, or in more than one way."""
    for recogniser in RECOGNISERS:
        reading = recogniser.recognise(reading)
    return reading
