"""The controller, the Snakemake that runs a matrix: its record, its progress, how it stops."""
