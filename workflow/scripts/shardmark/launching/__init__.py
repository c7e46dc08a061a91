"""Run a cell's processes on one or several nodes, and make one result of every kind of end."""
