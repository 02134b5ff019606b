"""A checkpoint's tokenizer as the metadata of a GGUF file."""
