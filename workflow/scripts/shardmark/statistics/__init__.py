"""What the runs show: exact tests, intervals, equivalence, scaling, the verdict."""
