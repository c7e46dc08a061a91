"""The library the workflow's scripts share; imported from beside them, no install step."""
