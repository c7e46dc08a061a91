"""Slurm: requests to it, questions about its queue, and patches of Snakemake's executor for it."""
