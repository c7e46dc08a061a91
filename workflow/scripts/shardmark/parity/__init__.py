"""The gate: proof that a strategy trains the oracle's model."""
