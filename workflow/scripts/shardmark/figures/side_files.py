"""What stands beside a cell's metrics.json: each step's time, and its devices over time."""

from __future__ import annotations

from collections.abc import Mapping
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


def steps_of(cells: pd.DataFrame, root: Path = Path()) -> pd.DataFrame:
    """Every step of the steady windows of the cells.

    Args:
        cells: rows of cells.csv, all ok.
        root: where the paths in it begin.

    Returns:
        Columns strategy, gpus, seed, step_ms: of the slowest rank, the one whose steps took longest
        together, as ``steady_state.summarise_steps`` has it. A cell without steps.csv has no rows.
    """
    tables = []
    for row in cells.to_dict("records"):
        path = (root / row["path"]).with_name("steps.csv")
        if not path.exists():
            continue
        steps = pd.read_csv(path)
        steady = steps[steps.phase == "steady"]
        if steady.empty:
            continue
        slowest = steady.groupby("rank").step_ms.sum().idxmax()
        mine = steady.loc[steady["rank"] == slowest, ["step_ms"]]
        tables.append(mine.assign(**{key: row[key] for key in ("strategy", "gpus", "seed")}))
    columns = ["strategy", "gpus", "seed", "step_ms"]
    return pd.concat(tables)[columns] if tables else pd.DataFrame(columns=columns)


def timelines_of(cells: pd.DataFrame, root: Path = Path()) -> Mapping[str, Timeline]:
    """The devices over time in one run of each strategy: its first seed that was sampled.

    All are of one GPU count, the one at which most strategies have such a run; of several, the
    largest.

    Args:
        cells: rows of cells.csv, all ok.
        root: where the paths in it begin.
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
    samples = pd.read_csv(sampled[0])
    samples["at_s"] = samples.monotonic_s - windows.steady_monotonic_s[0]
    return Timeline(gpus, seed, samples[["at_s", "device", *QUANTITIES]], windows)
