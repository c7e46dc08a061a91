"""The figures, one module per kind."""
