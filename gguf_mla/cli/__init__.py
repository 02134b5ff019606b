"""The command line: all that knows a terminal."""
