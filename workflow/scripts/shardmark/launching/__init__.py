"""A cell's processes on one node or several, and its one result, whatever becomes of them."""
