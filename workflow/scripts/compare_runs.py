"""Compare two result sets: what changed, and what got faster or slower.

    python workflow/scripts/compare_runs.py results/before results/after

Writes the comparison (Markdown, CSV, LaTeX), its figure (SVG, PDF, PNG), changes.csv and
failures.csv, and prints the Markdown. The exit status is for a machine to act on: 0 no regression;
1 a strategy is slower by more than the margin, or fails now and did not fail before; 2 not
comparable, or too few runs to decide; 3 the comparison itself failed.
"""

from __future__ import annotations

import argparse
import math
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from shardmark.cells import key_title
from shardmark.disk import disk_errors_explained
from shardmark.errors import UserError
from shardmark.escaping import csv_text, for_markdown
from shardmark.figures.drawing import save, signed_tick
from shardmark.files import write_text
from shardmark.quantities import percent
from shardmark.report.contents import FIGURE_KINDS
from shardmark.report.sentences import explain, ratio_text
from shardmark.report.table import Table, to_latex
from shardmark.results.result_set import read_result_set
from shardmark.statistics.comparison_rows import NOT_COMPARABLE
from shardmark.statistics.comparisons import MARGIN, PRIMARY
from shardmark.statistics.eligibility import GROUP
from shardmark.statistics.family import FEWEST_ESTABLISHED, FEWEST_LIKELY
from shardmark.statistics.set_comparison import EXIT_CODES, SetComparison, compare_sets

# The exit status where there is no comparison to act on.
NO_COMPARISON = 3
HEADLINES = {
    "no regression": "No regression: no strategy is slower than before by the margin or more.",
    "regression": "Regression:",
    "inconclusive": "Inconclusive: a regression is neither shown nor ruled out.",
}
# Okabe & Ito's colours, which colour-blind readers can distinguish; the markers repeat them.
LOOKS = {
    "faster": ("#0072B2", "^"),
    "slower": ("#D55E00", "v"),
    "equivalent": ("#009E73", "s"),
}
OPEN_LOOK = ("#555555", "o")


def markdown_table(table: pd.DataFrame) -> str:
    """Return a table in Markdown; a missing value is an empty cell."""
    rows = [list(table.columns), ["---"] * len(table.columns)]
    rows += [["" if value != value else str(value) for value in row] for row in table.to_numpy()]
    return "\n".join(f"| {' | '.join(map(for_markdown, row))} |" for row in rows)


def readable_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return the comparisons with headings and texts for people."""
    rows = table.to_dict("records")
    return pd.DataFrame(
        {
            "workload": table["workload"],
            "GPUs": table["gpus"],
            "strategy": table["strategy"],
            "metric": table["metric"],
            "after / before": [signed_percent(value) for value in table["ratio"]],
            "95 % interval": [
                f"{signed_percent(low)} to {signed_percent(high)}"
                if not math.isnan(low + high)
                else "none at this n"
                for low, high in table[["ci_low", "ci_high"]].itertuples(index=False)
            ],
            "n": table["n"],
            "verdict": [describe_verdict(row) for row in rows],
            "regression": table["regression"],
            "why": [explain(row) for row in rows],
        }
    )


def describe_verdict(row: Mapping[Any, Any]) -> str:
    """Return the verdict, with its tier if it is established or likely."""
    has_tier = row["tier"] in ("established", "likely")
    return f"{row['verdict']} ({row['tier']})" if has_tier else str(row["verdict"])


def signed_percent(ratio: float) -> str:
    """Format a ratio as a signed difference in percent; a missing one as a dash."""
    return "–" if math.isnan(ratio) else percent(ratio)


def headline(comparison: SetComparison) -> str:
    """Return the outcome and the strategies that decided it."""
    slower = [
        f"{row_title(row)} is slower by more than the margin ({ratio_text(row)}; {row['tier']})"
        for _, row in comparison.table[comparison.table["regression"] == "yes"].iterrows()
    ]
    failing = [
        f"{row_title(row)} now ends as {row['status']} (seeds {row['seeds']})"
        for _, row in comparison.failures.iterrows()
    ]
    return f"{HEADLINES[comparison.outcome]} {'; '.join([*slower, *failing])}".strip()


def row_title(row: pd.Series[Any]) -> str:
    """Return the workload, strategy and GPU count of a row."""
    return key_title(row["workload"], row["strategy"], row["gpus"])


def runs_needed(table: pd.DataFrame) -> str:
    """Say how many runs can show a regression at all, and how many would decide the open ones."""
    primary = table[table["metric"] == PRIMARY.column]
    sentence = (
        f"A regression can be shown from {FEWEST_LIKELY} runs of each set on (likely: by a model "
        f"of normal noise), and from {FEWEST_ESTABLISHED} without that model (established)."
    )
    undecided = primary[(primary["regression"] == "open") & (primary["verdict"] != NOT_COMPARABLE)]
    wanted = undecided["seeds_to_decide"].dropna()
    if len(wanted):
        sentence += (
            f" About {wanted.max():.0f} runs of each set would decide what is open here, if further"
            " runs scatter like these."
        )
    return sentence


def markdown_report(comparison: SetComparison, names: tuple[str, str], margin: float) -> str:
    """Return the comparison in Markdown."""
    primary = comparison.table["metric"] == PRIMARY.column
    families = comparison.table[primary & comparison.table["ratio"].notna()].groupby(GROUP).ngroups
    parts = [
        f"# {names[1]} against {names[0]}",
        headline(comparison),
        f"Ratios are of {names[1]} (after) to {names[0]} (before). The margin is "
        f"{100 * margin:g} %, the level 5 %, corrected for the strategies of one workload and GPU "
        "count."
        + (
            f" There are {families} such families; the chance of a false alarm in one of them "
            f"is up to {100 * (1 - 0.95**families):.0f} %."
            if families > 1
            else ""
        ),
        runs_needed(comparison.table),
        "## Throughput",
        markdown_table(readable_table(comparison.table[primary])),
    ]
    for title, groups in (
        ("only before", comparison.only_before),
        ("only after", comparison.only_after),
    ):
        if groups:
            parts.append(f"Measured {title}, and so not compared: {', '.join(groups)}.")
    if len(comparison.failures):
        parts += ["## Failures that are new", markdown_table(comparison.failures)]
    parts += [
        "## What changed around it",
        markdown_table(comparison.changes)
        if len(comparison.changes)
        else "No setting, version or device.",
        "## Memory, energy and time (exploratory: not corrected, and no part of the outcome)",
        markdown_table(readable_table(comparison.table[~primary]).drop(columns="regression")),
    ]
    return "\n\n".join(parts) + "\n"


def latex_table(comparison: SetComparison, names: tuple[str, str], margin: float) -> Table:
    """Return the comparisons as a LaTeX table, with a caption that explains them."""
    table = readable_table(comparison.table)
    return Table(
        caption=f"{names[1]} (after) against {names[0]} (before); margin of equivalence "
        f"{100 * margin:g} %; throughput corrected for several comparisons, the rest exploratory",
        headings=list(table.columns),
        rows=[["" if value != value else str(value) for value in row] for row in table.to_numpy()],
        notes=[],
    )


def draw(comparison: SetComparison, names: tuple[str, str], margin: float) -> Figure:
    """Draw every throughput ratio with its interval, in front of a band for the margin."""
    rows = comparison.table[
        (comparison.table["metric"] == PRIMARY.column) & comparison.table["ratio"].notna()
    ]
    figure = Figure(figsize=(7.2, 1.3 + 0.28 * max(1, len(rows))), layout="constrained")
    axes = figure.subplots()
    axes.axvspan(100 / (1 + margin) - 100, 100 * margin, color="#e6e6e6", lw=0)
    axes.axvline(0, color="#333333", lw=0.8)
    labels = []
    for place, (_, row) in enumerate(rows.iterrows()):
        color, marker = LOOKS.get(row["verdict"], OPEN_LOOK)
        value = 100 * (row["ratio"] - 1)
        ends = [100 * (row[end] - 1) for end in ("ci_low", "ci_high")]
        if not math.isnan(sum(ends)):
            axes.plot(ends, [place, place], color=color, lw=1.6, solid_capstyle="butt")
        axes.plot(value, place, marker, color=color, ms=6)
        axes.annotate(
            f"{describe_verdict(row.to_dict())}, n = {row['n']}",
            (1.01, place),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8,
            color=color,
        )
        labels.append(
            f"{row['workload']}, {row['gpus']} GPU{'s' * (row['gpus'] > 1)}, {row['strategy']}"
        )
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set_ylim(max(1, len(labels)) - 0.5, -0.5)
    axes.xaxis.set_major_formatter(FuncFormatter(signed_tick))
    axes.set_xlabel(
        f"throughput of {names[1]} against {names[0]}, %, with 95 % intervals; "
        f"band: the margin of {100 * margin:g} %",
        fontsize=8,
    )
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8)
    return figure


def compare_folders(arguments: argparse.Namespace) -> int:
    """Write and print the comparison, and return the exit status of its outcome.

    Raises:
        UserError: if a set cannot be read, or the output cannot be written.
    """
    names = (arguments.before.resolve().name, arguments.after.resolve().name)
    output = arguments.output or arguments.after / f"compared-with-{names[0]}"
    before, after = (read_result_set(folder) for folder in (arguments.before, arguments.after))
    try:
        comparison = compare_sets(
            before, after, margin=arguments.margin, other_devices=arguments.other_devices
        )
    except UserError as error:
        print(f"shardmark: {error}", file=sys.stderr)
        return EXIT_CODES["inconclusive"]
    report = markdown_report(comparison, names, arguments.margin)
    write_text(output / "comparison.md", report)
    write_text(output / "comparison.csv", csv_text(comparison.table))
    write_text(output / "changes.csv", csv_text(comparison.changes))
    write_text(output / "failures.csv", csv_text(comparison.failures))
    table = latex_table(comparison, names, arguments.margin)
    write_text(output / "comparison.tex", to_latex([table]))
    figure = draw(comparison, names, arguments.margin)
    for kind in FIGURE_KINDS:
        save(figure, output / f"comparison.{kind}")
    print(report)
    return EXIT_CODES[comparison.outcome]


def parse_arguments() -> argparse.Namespace:
    """Return what to compare, and where to write it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path, help="folder of a run, results/<run>")
    parser.add_argument("after", type=Path, help="folder of another")
    parser.add_argument("--margin", type=float, default=MARGIN, help="share, by default 0.02")
    parser.add_argument(
        "--other-devices",
        action="store_true",
        help="compare strategies that ran on other devices than before; the difference of the "
        "devices is then part of the result",
    )
    parser.add_argument(
        "--output", type=Path, help="folder to write to, by default AFTER/compared-with-<before>"
    )
    try:
        arguments = parser.parse_args()
        if not 0 < arguments.margin < 1:
            parser.error(f"--margin: got {arguments.margin}; it is a share, such as 0.02")
    except SystemExit as stop:
        # argparse's own status is that of an inconclusive comparison.
        sys.exit(NO_COMPARISON if stop.code else 0)
    return arguments


def main() -> None:
    """Compare the result sets of the command line."""
    arguments = parse_arguments()
    try:
        with disk_errors_explained():
            status = compare_folders(arguments)
    except UserError as error:
        print(f"shardmark: {error}", file=sys.stderr)
        status = NO_COMPARISON
    except OSError as error:
        print(f"shardmark: {error.filename}: {error.strerror}", file=sys.stderr)
        status = NO_COMPARISON
    except Exception:
        # Python's own status is that of a regression.
        traceback.print_exc()
        status = NO_COMPARISON
    sys.exit(status)


if __name__ == "__main__":
    main()
