"""The figures there are, what each is called, and what a reader must know to read it."""

from __future__ import annotations

from pathlib import Path

from shardmark.results.cell_rows import QUANTITIES

REPORT = Path(__file__).resolve().parents[3] / "report"
PAGE_TEMPLATE = REPORT / "page.html.j2"

# In reading order. A figure is in results/<run>/figures/<workload>/<name>.svg, its caption in
# workflow/report/<name>.rst, for Snakemake's report and for ours.
FIGURES: dict[str, str] = {
    "trade_off": "Throughput, memory and energy against each other",
    **{quantity.figure: quantity.label for quantity in QUANTITIES.values()},
    "scaling": "Throughput against GPU count",
    "efficiency": "Parallel efficiency against GPU count",
    "step_time": "Step times",
    "step_split": "Where the time of a step goes",
    "wall_clock": "Where the time of a cell goes",
    "timeline": "Utilisation, power and memory over time",
    "loss": "Loss per epoch",
}
# The page links this one and shows its table instead.
OUTCOMES = "outcomes"
# These show what ``compare`` wrote; the others are drawn from what ``collect`` wrote.
COMPARED = ("trade_off", "efficiency")
# Beside the figures of a workload, as <name>.json and <name>_compared.json: why some of them could
# not be drawn.
NOT_DRAWN = "not_drawn"


def caption_file(name: str) -> Path:
    """The file with the caption of a figure or table."""
    return REPORT / f"{name}.rst"


def caption(name: str) -> str:
    """What a reader must know of a figure or table, in one paragraph.

    Raises:
        FileNotFoundError: if there is none.
    """
    return " ".join(caption_file(name).read_text(encoding="utf-8").split())
