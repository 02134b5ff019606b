"""What several tensor types share: conversions, packing, and the searches for scales and grid points."""
