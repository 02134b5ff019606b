"""The executor: a plan becomes files."""
