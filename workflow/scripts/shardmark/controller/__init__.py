"""Snakemake's process while a matrix runs: its record, its progress, how it stops."""
