"""The levels of a proof, cheap first: structure, weights, attention, logits."""
