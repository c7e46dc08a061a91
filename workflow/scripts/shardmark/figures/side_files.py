"""What stands beside a cell's metrics.json: each step's time, and its devices over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from shardmark.metrics import Windows, read_metrics

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
        samples: telemetry.csv: ``device`` and QUANTITIES, with ``at_s``, seconds since the steady
            window began.
        windows: the moments that the samples can be cut to.
    """

    gpus: int
    seed: int
    samples: pd.DataFrame
    windows: Windows


class DamagedFiles(Exception):
    """Which files beside a result cannot be used, and why."""


def _read(path: Path, numbers: Sequence[str], text: str) -> pd.DataFrame:
    """The named columns of a CSV file.

    Raises:
        DamagedFiles: if it is not one, or lacks a column, or has text where a number belongs.
    """
    try:
        table = pd.read_csv(path, usecols=[*numbers, text], dtype=dict.fromkeys(numbers, float))
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        reason = str(error).splitlines()[0]
        raise DamagedFiles(
            f"{path} is damaged ({reason}); run its cell again, or delete the file"
        ) from None
    return table


def steps_of(cells: pd.DataFrame, root: Path = Path()) -> pd.DataFrame:
    """Every step of the steady windows of the cells.

    Args:
        cells: rows of cells.csv, all ok.
        root: where the paths in it begin.

    Returns:
        Columns strategy, gpus, seed, step_ms: of the slowest rank, the one whose steps took longest
        together, as ``steady_state.summarise_steps`` has it. A cell without steps.csv has no rows.

    Raises:
        DamagedFiles: naming every file that is damaged, or has other steps than its cell.
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


def timelines_of(cells: pd.DataFrame, root: Path = Path()) -> Mapping[str, Timeline]:
    """The devices over time in one run of each strategy: its first seed that was sampled.

    All are of one GPU count, the one at which most strategies have such a run; of several, the
    largest.

    Args:
        cells: rows of cells.csv, all ok.
        root: where the paths in it begin.

    Raises:
        DamagedFiles: naming the first file of samples that is damaged.
    """
    ok = cells.sort_values("seed")
    best: dict[str, Timeline] = {}
    for count in sorted({int(count) for count in ok.gpus}, reverse=True):
        found: dict[str, Timeline] = {}
        for row in ok[ok.gpus == count].to_dict("records"):
            if row["strategy"] not in found:
                timeline = _timeline(root / row["path"], row["gpus"], row["seed"])
                if timeline is not None:
                    found[row["strategy"]] = timeline
        if len(found) > len(best):
            best = found
    return best


def _timeline(path: Path, gpus: int, seed: int) -> Timeline | None:
    # Of several nodes each has its own file, and its own clock; rank 0 is on the first.
    files = [path.with_name(name) for name in ("telemetry.csv", "telemetry.node0.csv")]
    sampled = [file for file in files if file.exists()]
    windows = read_metrics(path).windows if sampled else None
    if windows is None:
        return None
    samples = _read(sampled[0], ("monotonic_s", *QUANTITIES), "device")
    # The sampler's end may cut its last row off.
    samples = samples.dropna(subset=["monotonic_s", "device"])
    samples["at_s"] = samples.monotonic_s - windows.steady_monotonic_s[0]
    return Timeline(gpus, seed, samples[["at_s", "device", *QUANTITIES]], windows)
