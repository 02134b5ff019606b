"""Test equipment: checkpoints made from a seed, independent readers, judges, one way to call the command."""
