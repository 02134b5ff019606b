"""A model computed layer by layer, read without the converter's tables."""
