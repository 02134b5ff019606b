"""Checkpoints that nobody has trained: the shapes of the published models, whole or in small, and their weights."""
