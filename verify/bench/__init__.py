"""Measuring attention."""
