"""What will be written, as plain data, decided before a byte of a tensor is read."""
