"""The report's tables beside the summary: comparisons, scaling, parity, settings, outcomes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from shardmark.quantities import describe_gpus, format_number, replicas_heading, replicas_noun
from shardmark.report.failures import locate, name_cell
from shardmark.report.sentences import explain, explain_mixture, join_names
from shardmark.report.table import Detailed, Table
from shardmark.results.cell_rows import QUANTITIES
from shardmark.results.certificate import Certificate, Row
from shardmark.results.outcome import Outcome
from shardmark.statistics.eligibility import counted
from shardmark.statistics.family import FEWEST_LIKELY
from shardmark.strategies import label_of

# The sign of a cell that matrix.only leaves out.
_NOT_PLANNED = "/"
_COMPARED = {name: quantity.label for name, quantity in QUANTITIES.items()} | {
    "epoch_s_mean": "Time per epoch",
    "total_s": "Time of the whole cell",
}


def outcome_table(cells: pd.DataFrame) -> Table:
    """Return the grid of outcomes: strategies down, GPU counts across, one sign per seed.

    Args:
        cells: rows of cells.csv of one workload.
    """
    counts, seeds = sorted(cells.gpus.unique()), cells.seed.unique()
    signs = cells.outcome.map({outcome.value: outcome.sign for outcome in Outcome})
    signs.index = pd.MultiIndex.from_frame(cells[["strategy", "gpus", "seed"]])

    def signs_at(strategy: str, count: int) -> str:
        return " ".join(signs.get((strategy, count, seed), _NOT_PLANNED) for seed in seeds)

    names = cells.strategy.unique()
    is_whole = len(cells) == len(names) * len(counts) * len(seeds)
    remark = "" if is_whole else f"; {_NOT_PLANNED} is not in the matrix"
    return Table(
        caption=f"{cells.workload.iloc[0]}: one sign per seed "
        f"({', '.join(map(str, seeds))}){remark}",
        headings=["Strategy", *(describe_gpus(cells.device.iloc[0], count) for count in counts)],
        rows=[[label_of(name), *(signs_at(name, count) for count in counts)] for name in names],
    )


def comparison_tables(comparisons: pd.DataFrame, device: str) -> Iterator[tuple[Table, Table]]:
    """Yield two tables of ratios to the baseline per GPU count: throughput, exploratory metrics.

    Args:
        comparisons: rows of comparisons.csv of one workload.
        device: cuda or cpu.
    """
    for _, group in comparisons.groupby(["scaling", "gpus"], sort=True):
        primary = group.family == "primary"
        yield (
            _comparison_table(group[primary], "", "p, corrected", device),
            _comparison_table(group[~primary], ", other metrics", "p, not corrected", device),
        )


def _comparison_table(group: pd.DataFrame, which: str, heading: str, device: str) -> Table:
    first = group.iloc[0]
    where = describe_gpus(device, first.gpus)
    return Table(
        caption=f"{first.workload} on {where}, {first.scaling} scaling: ratio to "
        f"{label_of(first.baseline)}{which}, margin of equivalence {100 * first.margin:g} %",
        headings=[
            *("Strategy", "Metric", "Ratio", "95 % interval", heading, "n"),
            *("Verdict", "Certainty", "Why"),
        ],
        rows=[
            [
                label_of(row["strategy"]),
                _COMPARED[row["metric"]],
                _fixed(row["ratio"], 3),
                _interval(row["ci_low"], row["ci_high"], 3),
                _p_value(row["p_adjusted"]),
                str(row["n"]),
                row["verdict"],
                row["tier"],
                explain(row),
            ]
            for row in group.to_dict("records")
        ],
        notes=_unpaired(group),
    )


def _p_value(value: float) -> str:
    return "< 0.0001" if value < 1e-4 else _fixed(value, 4)


def _unpaired(group: pd.DataFrame) -> list[str]:
    rows = group[group.ratio.notna() & ~group.paired.astype(bool)]
    if rows.empty:
        return []
    names = join_names(list(map(label_of, rows.strategy.unique())))
    return [f"Not compared in pairs, because most seeds used different devices: {names}."]


def scaling_table(scaling: pd.DataFrame, strategies: list[str], device: str) -> Table:
    """Speed-up and efficiency of each strategy; no rows if there is one GPU count only.

    Args:
        scaling: rows of scaling.csv of one workload.
        strategies: in the order of the rows.
        device: cuda, or cpu, where a replica runs in a process.
    """
    unit = scaling.unit.iloc[0] if len(scaling) else "items"
    alone = bool((scaling.gpus == scaling.reference_gpus).all())
    rows = sorted(scaling.to_dict("records"), key=lambda row: strategies.index(row["strategy"]))
    return Table(
        caption="Speed-up over the strategy's own smallest GPU count, with 95 % intervals that "
        "include the spread between devices",
        headings=[
            *("Strategy", "GPUs", "from", QUANTITIES["items_per_s"].of(unit).heading),
            *("Speed-up", "95 % interval", "Efficiency", "95 % interval", "n"),
        ],
        rows=[] if alone else [_scaling_row(row) for row in rows],
        notes=[f"No strategy has results at more than one {replicas_noun(device)} count."]
        if alone
        else list(_scaling_notes(rows)),
    )


# Why a speed-up has no interval, by its reason in scaling.csv.
_NO_INTERVAL = {
    "one_reference_device": "no two runs at the smaller count are known to have used different "
    "GPUs, so the spread between GPUs is unknown",
    "few_runs": f"at one of the two counts there are fewer than {FEWEST_LIKELY} runs, or fewer "
    f"than {FEWEST_LIKELY} sets of devices",
}


def _scaling_notes(rows: list[dict[Any, Any]]) -> Iterator[str]:
    """Say what is missing in the rows, and why."""
    strategies: dict[str, list[str]] = {}
    for row in rows:
        reason = row["reason"]
        if reason in _NO_INTERVAL:
            words = f"No interval, because {_NO_INTERVAL[reason]}"
        elif str(reason).startswith("mixed_"):
            words = f"No speed-up, because the runs are not alike ({explain_mixture(row)})"
        else:
            continue
        strategies.setdefault(words, []).append(label_of(row["strategy"]))
    for words, names in strategies.items():
        yield f"{words}: {join_names(list(dict.fromkeys(names)))}."


def _scaling_row(row: dict[Any, Any]) -> list[str]:
    return [
        label_of(row["strategy"]),
        str(row["gpus"]),
        str(row["reference_gpus"]),
        format_number(row["items_per_s"]),
        _fixed(row["speedup"], 2),
        _interval(row["speedup_low"], row["speedup_high"], 2),
        _fixed(row["efficiency"], 3),
        _interval(row["efficiency_low"], row["efficiency_high"], 3),
        str(row["n"]),
    ]


def _fixed(value: float, places: int) -> str:
    return "–" if pd.isna(value) else f"{value:.{places}f}"


def _interval(low: float, high: float, places: int) -> str:
    return "–" if pd.isna(low) else f"{_fixed(low, places)} to {_fixed(high, places)}"


def memory_table(cells: pd.DataFrame) -> Table:
    """Return each strategy's measured memory, ZeRO's prediction, and the capacity.

    Args:
        cells: rows of cells.csv of one workload.
    """
    columns = {
        "memory_used_peak_bytes": "Peak used",
        "torch_allocated_peak_bytes": "of which torch allocated",
        "state_bytes": "Model state per rank, measured",
        "state_predicted_bytes": "predicted",
        "memory_capacity_bytes": "Capacity",
    }
    if (cells.state_host_bytes > 0).any():
        columns["state_host_bytes"] = "Model state in host memory"
    return _medians(cells, "Memory (GiB), medians over runs", columns, 2**-30, [])


def step_table(cells: pd.DataFrame) -> Table:
    """Return the step times, the waits of the device, and the labels of the runs.

    Args:
        cells: rows of cells.csv of one workload.
    """
    columns = {
        "step_ms_mean": "Step (ms)",
        "half_width_pct": "Precision of the mean (± %)",
        "host_wait_pct": "Waits for its host (% of a step)",
        "exposed_communication_pct": "Exposed communication (% of a step)",
        "launching_cpu_pct": "Launching threads (% of a core)",
        "cpu_pressure_pct": "CPU pressure (%)",
    }
    # Two decimals at most: 0.002 % of a step is nothing.
    cells = cells.round({name: 2 for name in columns if name.endswith("_pct")})
    caption = "Steps, medians over runs; waits and communication of the rank that waits longest"
    return _medians(cells, caption, columns, 1.0, ["Labels"])


def _medians(
    cells: pd.DataFrame, caption: str, columns: dict[str, str], scale: float, more: list[str]
) -> Table:
    """Return one row per GPU count and strategy; ``more`` holds the heading of labels, if any."""
    runs = counted(cells)
    measured = {name: title for name, title in columns.items() if runs[name].notna().any()}
    rows = []
    for (count, name), part in runs.groupby(["gpus", "strategy"], sort=False):
        values = [format_number(part[column].median() * scale, 3) for column in measured]
        labels = [_labels(part)] if more else []
        rows.append([label_of(str(name)), str(count), *values, *labels])
    return Table(
        caption,
        ["Strategy", replicas_heading(cells.device.iloc[0]), *measured.values(), *more],
        rows,
    )


def _labels(runs: pd.DataFrame) -> str:
    """Return each kind of label once, with the number of runs that carry it."""
    kinds: dict[str, list[str]] = {}
    for label in (part for text in runs.label_reasons for part in text.split("; ") if part):
        kinds.setdefault(label.partition(":")[0], []).append(label)
    lines = []
    for kind, labels in kinds.items():
        count, first = f"{len(labels)} of {len(runs)}", labels[0]
        if len(set(labels)) == 1:
            lines.append(f"{first} ({count})")
        else:
            lines.append(f"{kind} ({count}), for example: {first.partition(': ')[2]}")
    return "; ".join(lines) or "–"


def parity_table(parity: pd.DataFrame) -> Table:
    """The gate's verdict on each strategy, replica count and precision, with its figures.

    Args:
        parity: rows of parity.csv of one workload.
    """
    cases = parity.drop_duplicates(["strategy", "gpus"])
    return Table(
        caption=f"{parity.workload.iloc[0]}: largest deviation from the oracle / the oracle's own "
        "noise / tolerance; relative",
        headings=["Strategy", "Ranks", "Verdict", "Precision", "Loss", "First update", "Weights"],
        rows=[_parity_row(row) for row in parity.to_dict("records")],
        notes=[
            f"{label_of(row['strategy'])}, ranks: {row['gpus']}: {row['reason']}."
            for row in cases[cases.reason != ""].to_dict("records")
        ],
    )


def _parity_row(row: dict[Any, Any]) -> list[str]:
    figures = [
        " / ".join(f"{row[f'{name}_{part}']:.1e}" for part in ("deviation", "noise", "tolerance"))
        if pd.notna(row[f"{name}_deviation"])
        else ""
        for name in ("loss", "first_update", "final_weights")
    ]
    verdict = row["verdict"]
    if row["model"]:
        verdict = "passed" if row["passed"] else "failed"
    real = ", first steps of the model itself" if row["model"] == "real" else ""
    return [
        label_of(row["strategy"]),
        str(row["gpus"]),
        verdict,
        row["precision"] + real,
        *figures,
    ]


def failures_table(failures: pd.DataFrame) -> Table:
    """Every cell without a good result, and why.

    Args:
        failures: failures.csv.
    """
    return Table(
        caption="Cells that did not end well, or have a device fault",
        headings=["Cell", "Outcome", "Where", "Reason"],
        rows=[
            [name_cell(row), row["outcome"], locate(row), row["reason"]]
            for row in failures.to_dict("records")
        ],
    )


def settings_table(certificate: Certificate) -> Table:
    """A certificate: unexplained differences first, then explained ones, then what is the same."""
    where = describe_replicas(certificate)
    return Table(
        caption=f"{certificate.workload}: {where}, read back from the live objects or recorded "
        "beside them",
        headings=["Setting", *map(label_of, certificate.strategies), "Why"],
        rows=[
            [
                row.setting,
                *[row.values[name] for name in certificate.strategies],
                "; ".join(f"not explained: {why}" for why in dict.fromkeys(row.flagged.values()))
                or row.reason
                or ("the same for all" if row.verdict == "same" else ""),
            ]
            for row in [*differing_settings(certificate), *same_settings(certificate)]
        ],
    )


def describe_replicas(certificate: Certificate) -> str:
    """Return the GPU count of a certificate in words."""
    return f"{certificate.gpus} replica{'' if certificate.gpus == 1 else 's'}"


def same_settings(certificate: Certificate) -> list[Row]:
    """Return the settings that are the same for all strategies."""
    return [row for row in certificate.rows if row.verdict == "same"]


def differing_settings(certificate: Certificate) -> list[Row]:
    """Return the settings that differ, unexplained ones first."""
    rows = [row for row in certificate.rows if row.verdict != "same"]
    return sorted(rows, key=lambda row: row.verdict != "flagged")


def strategies_by_value(row: Row, labels: Mapping[str, str]) -> Iterator[tuple[str, str, bool]]:
    """Yield each value of a setting, the strategies that have it, and whether they are flagged.

    A value that is right for some strategies and wrong for others comes twice.
    """
    groups: dict[tuple[str, bool], list[str]] = {}
    for name, value in row.values.items():
        groups.setdefault((value, name in row.flagged), []).append(labels[name])
    for (value, flagged), names in groups.items():
        yield value, join_names(names), flagged


_RAW = [
    "workload",
    "strategy",
    "gpus",
    "seed",
    "outcome",
    "excluded",
    "parity",
    "items_per_s",
    "step_ms_p50",
    "step_ms_p99",
    "final_loss",
    "final_accuracy",
    "final_test_loss",
    "training_s",
    "total_s",
    "memory_used_peak_bytes",
    "utilization_pct",
    "power_w",
    "energy_per_item_j",
    "hosts",
    "unknown",
    "labels",
]


def raw_table(cells: pd.DataFrame) -> Table:
    """Return all cells, with the columns that a reader looks for first.

    The column ``unknown`` has only names of rules and labels; cells.csv has the reasons. A
    strategy's label follows its name.
    """
    unknown = cells["unknown"].str.replace(";", ", ")
    names = [
        name if label_of(name) == name else Detailed(name, label_of(name))
        for name in cells.strategy
    ]
    table = cells[_RAW].assign(unknown=unknown, labels=cells.label_reasons)
    rows = [[_raw(value) for value in row] for row in table.itertuples(index=False)]
    for row, name in zip(rows, names, strict=True):
        row[_RAW.index("strategy")] = name
    return Table("All cells", list(_RAW), rows)


def _raw(value: object) -> str:
    if isinstance(value, float):
        return format_number(value)
    return str(value) or "–"
