"""Bytes in and out, positioned and bounded; all that depends on the platform."""
