"""The training loop, the strategy interface, and the measurement and inspection of a cell."""
