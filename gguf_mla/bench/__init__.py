"""`gguf-mla bench`: what this machine does, measured."""
