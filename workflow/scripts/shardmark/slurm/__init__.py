"""Slurm: job requests, queries of its queue, and patches of Snakemake's executor."""
