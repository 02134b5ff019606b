"""Importance matrices made from a model and a text, layer by layer, in bounded memory."""
