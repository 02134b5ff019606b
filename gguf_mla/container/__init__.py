"""GGUF files: typed values, a bounds-checked reader, a layout computed before writing."""
