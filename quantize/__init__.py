"""From a GGUF file to another one."""
