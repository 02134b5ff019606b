"""A proof, for people."""
