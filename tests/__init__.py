"""Tests; a package so that `tests.support` is this one wherever pytest runs."""
