"""A cell's processes, one by one: how each ends, and how it shows that it lives."""
