"""Stands in for a script whose outputs are not looked at: writes each that is not there yet.

Snakemake removes the outputs of a job before it starts, so a file that exists is an input.
"""

import sys
from pathlib import Path

from shardmark.report.contents import exported_files

NAMED = (".csv", ".md", ".tex", ".txt", ".html", ".svg", ".pdf", ".png", ".pt", ".json")
# What a script writes into the folder that --tables names.
TABLES = {
    "summarise": [f"summary.{kind}" for kind in ("csv", "md", "tex", "txt")],
    "compare_strategies": ["comparisons.csv", "scaling.csv", "verdict.json"],
    "export_tables": exported_files(),
}

paths = [Path(argument) for argument in sys.argv[1:] if argument.startswith("results/")]
outputs = [path for path in paths if path.suffix in NAMED]
outputs += [paths[0] / name for name in TABLES.get(Path(sys.argv[0]).stem, [])]
for path in outputs:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
