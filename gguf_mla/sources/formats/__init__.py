"""The formats that checkpoints store tensors in, one file each."""
