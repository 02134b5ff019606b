"""Checkpoints as other tools leave them, and what becomes of them."""
