"""The cells of a matrix together: how far they are, what became of them, which results count."""
