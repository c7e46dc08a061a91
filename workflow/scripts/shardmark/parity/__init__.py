"""The parity gate: the proof that a strategy trains the same model as the oracle."""
