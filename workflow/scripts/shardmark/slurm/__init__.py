"""Slurm: what it is asked for and what it says, and Snakemake's executor for it."""
