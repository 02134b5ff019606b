"""One plan, many workers: what has to be written is cut into jobs that any machine does, and one of them finishes."""
