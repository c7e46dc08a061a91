"""Run a cell's processes on one or several nodes, and turn however they end into one result."""
