"""The one training loop, what a strategy is to it, and the proof that all train the same model."""
