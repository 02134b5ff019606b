"""Tensors by rows, wherever and in whatever format they lie."""
