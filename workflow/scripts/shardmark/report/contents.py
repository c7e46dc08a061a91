"""The figures and tables of the report, by name and title, and their captions."""

from __future__ import annotations

from pathlib import Path

from shardmark.results.cell_rows import QUANTITIES

REPORT = Path(__file__).resolve().parents[3] / "report"
PAGE_TEMPLATE = REPORT / "page.html.j2"
# Captions of figures with pale runs include it.
PALE_RUNS = REPORT / "pale_runs.rst"

# In reading order. A figure is in results/<run>/figures/<workload>/<group>/<name>.svg, its caption
# in workflow/report/<name>.rst, for Snakemake's report and for ours.
FIGURES: dict[str, str] = {
    "answer": "Against the baseline, and scaling",
    "trade_off": "Throughput, memory and energy against each other",
    **{quantity.figure: quantity.label for quantity in QUANTITIES.values()},
    "scaling": "Throughput against GPU count",
    "efficiency": "Scaling efficiency against GPU count",
    "step_time": "Step times",
    "step_split": "Where the time of a step goes",
    "wall_clock": "Where the time of a cell goes",
    "timeline": "Utilisation, power and memory over time",
    "loss": "Loss per epoch",
}
# The page has a table of outcomes instead of this figure.
OUTCOMES = "outcomes"


def figure_title(name: str, device: str) -> str:
    """Return the title of a figure on this device, ``cuda`` or ``cpu``."""
    labels = {quantity.figure: quantity.on(device).label for quantity in QUANTITIES.values()}
    titles: dict[str, str] = FIGURES | labels | {OUTCOMES: "Outcomes"}
    return titles[name]


# One job draws one group. ``report.margin`` changes only the compared figures, because they contain
# statistics.
_COMPARED = ("answer", "trade_off", "efficiency")
GROUPS: dict[str, tuple[str, ...]] = {
    "measured": tuple(name for name in (*FIGURES, OUTCOMES) if name not in _COMPARED),
    "compared": _COMPARED,
}
# The sections of the page and their figures. "answer" is on the first screen; all figures that are
# not here are in the section Details.
SECTIONS: dict[str, tuple[str, ...]] = {
    "scaling": ("scaling", "efficiency"),
    "memory": ("memory",),
    "steps": ("step_split",),
    "energy": ("energy", "power", "trade_off"),
}
# Name of the JSON file beside a group's figures. It has the reason for each figure that could not
# be drawn and so has no file.
NOT_DRAWN = "not_drawn"
FIGURE_KINDS = ("svg", "pdf", "png")

KINDS = ("md", "tex")
# The tables that export_tables.py writes to results/<run>/tables/; a rule of its own makes the
# summary.
EXPORTED_TABLES = (
    "comparisons",
    "scaling",
    "outcomes",
    "failures",
    "parity",
    "certificate",
    "largest_batches",
)
# The CSV files beside them, with every digit; docs/data_dictionary.md explains their columns.
CSV_TABLES = (
    "cells",
    "epochs",
    "summary",
    "comparisons",
    "scaling",
    "failures",
    "parity",
    "largest_batches",
)


def exported_files() -> list[str]:
    """The files of the exported tables."""
    return [f"{name}.{kind}" for name in EXPORTED_TABLES for kind in KINDS]


def caption_file(name: str) -> Path:
    """The file with the caption of a figure or table."""
    return REPORT / f"{name}.rst"


def caption(name: str) -> str:
    """Return the caption of a figure or table as one paragraph.

    Raises:
        FileNotFoundError: if there is none.
    """
    text = caption_file(name).read_text(encoding="utf-8")
    text = text.replace(f".. include:: {PALE_RUNS.name}", PALE_RUNS.read_text(encoding="utf-8"))
    return " ".join(text.split())
