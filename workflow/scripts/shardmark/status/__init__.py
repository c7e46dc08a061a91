"""Show the state of a matrix, and what the rest of it costs, in a terminal."""
