"""The library that the workflow's scripts share. It lies beside them, so nothing is installed."""
