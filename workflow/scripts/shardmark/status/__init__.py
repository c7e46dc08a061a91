"""The state of a matrix and what it costs, for a terminal."""
