"""What the runs allow to say: exact tests, intervals, equivalence, scaling, the verdict."""
