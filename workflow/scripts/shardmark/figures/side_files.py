"""Read the files beside a cell's metrics.json: each step's time, and its devices over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

QUANTITIES = {
    "utilization_pct": ("Utilisation (%)", 1.0),
    "power_w": ("Power (W)", 1.0),
    "memory_used_bytes": ("Memory (GiB)", 2**-30),
}


@dataclass(frozen=True)
class Timeline:
    """One run's devices over time, on the node of its rank 0.

    Attributes:
        gpus: the cell's GPU count.
        seed: the cell's seed.
        samples: rows of telemetry.csv: ``device``, QUANTITIES, and ``at_s``, seconds since the
            steady window began.
        steady_s: length of the steady window.
        evaluations_s: begin and end of each evaluation, seconds since the steady window began.
    """

    gpus: int
    seed: int
    samples: pd.DataFrame
    steady_s: float
    evaluations_s: list[tuple[float, float]]


class DamagedFiles(Exception):
    """Names the files beside a result that cannot be used, and says why."""


def _read(path: Path, numbers: Sequence[str], text: str) -> pd.DataFrame:
    """Read the named columns of a CSV file.

    Raises:
        DamagedFiles: if it is not a CSV file, lacks a column, or has text instead of a number.
    """
    try:
        table = pd.read_csv(path, usecols=[*numbers, text], dtype=dict.fromkeys(numbers, float))
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        reason = str(error).splitlines()[0]
        raise DamagedFiles(
            f"{path} is damaged ({reason}); run its cell again, or delete the file"
        ) from None
    return table


def read_steps(cells: pd.DataFrame, root: Path = Path()) -> pd.DataFrame:
    """Read every step of the cells' steady windows.

    Args:
        cells: rows of cells.csv, all ok.
        root: folder to which the paths in cells.csv are relative.

    Returns:
        Columns strategy, gpus, seed, step_ms. The steps are those of the slowest rank, the one with
        the longest total time, as in ``steady_state.summarise_steps``. A cell without steps.csv has
        no rows.

    Raises:
        DamagedFiles: naming every file that is damaged, or whose steps don't match its cell.
    """
    tables, damaged = [], []
    for row in cells.to_dict("records"):
        path = (root / row["path"]).with_name("steps.csv")
        if not path.exists():
            continue
        try:
            steps = _slowest_rank(path, row["steps"])
        except DamagedFiles as error:
            damaged.append(str(error))
            continue
        tables.append(steps.assign(**{key: row[key] for key in ("strategy", "gpus", "seed")}))
    if damaged:
        raise DamagedFiles("; ".join(damaged))
    columns = ["strategy", "gpus", "seed", "step_ms"]
    return pd.concat(tables)[columns] if tables else pd.DataFrame(columns=columns)


def _slowest_rank(path: Path, count: int) -> pd.DataFrame:
    steps = _read(path, ("rank", "step_ms"), "phase")
    steady = steps[steps.phase == "steady"]
    slowest = steady.groupby("rank").step_ms.sum().idxmax() if len(steady) else None
    mine = steady.loc[steady["rank"] == slowest, ["step_ms"]]
    if len(mine) != count or not mine.step_ms.gt(0).all():
        raise DamagedFiles(
            f"{path} is damaged (of {count:.0f} timed steps {len(mine)} are there); run its cell "
            "again, or delete the file"
        )
    return mine


def read_timelines(
    cells: pd.DataFrame, epochs: pd.DataFrame, root: Path = Path()
) -> Mapping[str, Timeline]:
    """Read the devices over time in one run of each strategy: its first seed with samples.

    All runs have the same GPU count: the one at which most strategies have such a run, the largest
    if several do.

    Args:
        cells: rows of cells.csv, all ok.
        epochs: rows of epochs.csv.
        root: folder to which the paths in cells.csv are relative.

    Raises:
        DamagedFiles: naming the first damaged file of samples.
    """
    sampled = cells[cells.steady_begin_monotonic_s.notna()].sort_values("seed")
    best: dict[str, Timeline] = {}
    for count in sorted({int(count) for count in sampled.gpus}, reverse=True):
        timelines: dict[str, Timeline] = {}
        for row in sampled[sampled.gpus == count].to_dict("records"):
            if row["strategy"] not in timelines:
                timeline = _timeline(row, epochs, root)
                if timeline is not None:
                    timelines[row["strategy"]] = timeline
        if len(timelines) > len(best):
            best = timelines
    return best


def _timeline(row: Mapping[Any, Any], epochs: pd.DataFrame, root: Path) -> Timeline | None:
    # With several nodes, each has its own file and its own clock; rank 0 is on the first.
    names = ("telemetry.csv", "telemetry.node0.csv")
    files = [(root / row["path"]).with_name(name) for name in names]
    existing = [file for file in files if file.exists()]
    if not existing:
        return None
    begin, end = row["steady_begin_monotonic_s"], row["steady_end_monotonic_s"]
    samples = _read(existing[0], ("monotonic_s", *QUANTITIES), "device")
    # The last row may be incomplete if the sampler was stopped while writing.
    samples = samples.dropna(subset=["monotonic_s", "device"])
    samples["at_s"] = samples.monotonic_s - begin
    key = ["workload", "strategy", "gpus", "seed"]
    own = epochs[(epochs[key] == [row[name] for name in key]).all(axis=1)]
    spans = own[["evaluation_begin_monotonic_s", "evaluation_end_monotonic_s"]].dropna() - begin
    return Timeline(
        gpus=row["gpus"],
        seed=row["seed"],
        samples=samples[["at_s", "device", *QUANTITIES]],
        steady_s=end - begin,
        evaluations_s=[(first, last) for first, last in spans.itertuples(index=False)],
    )
