"""Stands in for a script whose outputs are not looked at: writes each that is not there yet.

Snakemake removes the outputs of a job before it starts, so a file that exists is an input.
"""

import sys
from pathlib import Path

from shardmark.report.contents import exported_files
from shardmark.results.table_checksums import record_checksums
from shardmark.statistics.findings import FILES, WITH_EXCLUDED

NAMED = (".csv", ".md", ".tex", ".txt", ".html", ".svg", ".pdf", ".png", ".pt", ".json")
# By script, what it writes into the folder that --tables names: its tables, their checksums.
TABLES = {
    "summarise": ([f"summary.{kind}" for kind in ("csv", "md", "tex", "txt")], "summarise.sha256"),
    "compare_strategies": (
        [*FILES, *(f"{WITH_EXCLUDED}/{file}" for file in FILES)],
        "compare.sha256",
    ),
    "export_tables": (exported_files(), "export.sha256"),
}
PICTURE = "<svg xmlns='http://www.w3.org/2000/svg'/>"

paths = [Path(argument) for argument in sys.argv[1:] if argument.startswith("results/")]
names, checksums = TABLES.get(Path(sys.argv[0]).stem, ([], ""))
tables = [paths[0] / name for name in names]
for folder in paths:
    if "figures" in folder.parts and not folder.suffix:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "loss.svg").write_text(PICTURE)
for path in [*(path for path in paths if path.suffix in NAMED), *tables]:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(PICTURE)
for parent in {table.parent for table in tables}:
    record_checksums([table for table in tables if table.parent == parent], parent / checksums)
