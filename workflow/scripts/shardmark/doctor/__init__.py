"""Check whether a matrix can run here, before it costs anything."""
