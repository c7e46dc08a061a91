"""Workloads that train a language model."""
