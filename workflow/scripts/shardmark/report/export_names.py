"""Which tables of the report are exported, and into which files.

The Snakefile reads this, and each job of a cell reads the Snakefile twice: nothing heavy is
imported here.
"""

from __future__ import annotations

KINDS = ("csv", "md", "tex", "html")
# By the name of their files in results/<run>/tables/. Those of RAW have a CSV with every digit,
# which other rules write.
TABLES: dict[str, str] = {
    "summary": "Summary",
    "verdict": "Best by each objective",
    "comparisons": "Comparisons to the baseline",
    "scaling": "Speed-up and efficiency",
    "outcomes": "Outcomes",
    "failures": "Failures and suspects",
    "parity": "Parity",
    "certificate": "Effective settings",
}
RAW = ("summary", "comparisons", "scaling")


def exported_files() -> list[str]:
    """The files of all tables but the summary, which has a rule of its own."""
    return [
        f"{name}.{kind}"
        for name in TABLES
        if name != "summary"
        for kind in KINDS
        if not (kind == "csv" and name in RAW)
    ]
