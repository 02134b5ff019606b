"""What every metadata key of a file must say: derived from the reference, or known, with the reason, not to matter."""
