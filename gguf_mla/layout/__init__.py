"""How MLA tensors are laid out: the halves of kv_b_proj, and what a file holds."""
