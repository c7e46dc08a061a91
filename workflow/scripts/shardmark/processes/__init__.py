"""Tools for a single process of a cell: how it ends, and how it shows that it is alive."""
