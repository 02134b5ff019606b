"""Proof that a GGUF file computes what its original does."""
