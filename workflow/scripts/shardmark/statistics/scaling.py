"""Speed-up and scaling efficiency of each strategy over its own smallest GPU count.

Only throughput is compared. With local batch-norm each GPU count trains a different model, so a
ratio of losses, or of times to a loss, would compare two trainings. Strong and weak scaling have
separate rows, because they mean different things: with a fixed global batch the same work is shared
among more GPUs; with a fixed batch per GPU the work grows with them (Gustafson's scaled speed-up).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from shardmark.results.csv_tables import to_frame
from shardmark.results.same_code import SameCode
from shardmark.statistics.comparison_rows import ScalingRow
from shardmark.statistics.comparisons import PRIMARY
from shardmark.statistics.eligibility import (
    SETTINGS,
    check_table,
    devices_of,
    identify,
    usable_cells,
    why_mixed,
)
from shardmark.statistics.family import FEWEST_LIKELY
from shardmark.statistics.sign_flips import FloatArray
from shardmark.statistics.t_tests import quantile

# What may differ between two GPU counts: the batch that the regime does not fix.
FREE: Mapping[str, tuple[str, ...]] = {
    "strong": ("per_gpu_batch_size", "nodes"),
    "weak": ("global_batch_size", "nodes"),
}


def scaling_of(cells: pd.DataFrame) -> pd.DataFrame:
    """Return speed-up and efficiency of each strategy at every GPU count.

    Args:
        cells: columns as ``cell_rows.CellRow``.

    Returns:
        Columns as ``ScalingRow``.

    Raises:
        UserError: if a cell is in the table twice.
    """
    check_table(cells)
    return to_frame(ScalingRow, _rows(usable_cells(cells, PRIMARY.column), SameCode(cells)))


def _rows(usable: pd.DataFrame, same_code: SameCode) -> Iterator[ScalingRow]:
    for (workload, scaling, strategy), runs in usable.groupby(["workload", "scaling", "strategy"]):
        smallest = int(runs["gpus"].min())
        reference = runs[runs["gpus"] == smallest]
        for gpus, side in runs.groupby("gpus"):
            known = {
                "workload": workload,
                "scaling": scaling,
                "strategy": strategy,
                "gpus": gpus,
                "reference_gpus": smallest,
                "unit": side["unit"].iloc[0],
                "items_per_s": side[PRIMARY.column].median(),
                "n": len(side),
                "n_reference": len(reference),
            }
            more = int(side["gpus"].iloc[0]) / smallest
            known |= _ratio(side, reference, same_code, more)
            yield ScalingRow.model_validate(dict.fromkeys(ScalingRow.model_fields) | known)


def _ratio(
    side: pd.DataFrame, reference: pd.DataFrame, same_code: SameCode, more: float
) -> dict[str, Any]:
    if more == 1:
        return {"speedup": 1.0, "efficiency": 1.0, "reason": "reference"}
    same = [name for name in SETTINGS if name not in FREE[side["scaling"].iloc[0]]]
    mixed = why_mixed(identify(pd.concat([side, reference]), same_code), same)
    if mixed:
        return {"reason": mixed.reason, "reason_values": mixed.values}
    logs = [np.log(runs[PRIMARY.column].to_numpy(float)) for runs in (side, reference)]
    estimate = float(logs[0].mean() - logs[1].mean())
    estimates = {"speedup": math.exp(estimate), "efficiency": math.exp(estimate) / more}
    if min(len(side), len(reference)) < FEWEST_LIKELY:
        return estimates | {"reason": "few_runs"}
    devices = [devices_of(runs) for runs in (side, reference)]
    if reference["device"].iloc[0] == "cuda" and devices[1].nunique() == 1:
        return estimates | {"reason": "one_reference_device"}
    half = _half_width(*(_variance(*known) for known in zip(logs, devices, strict=True)))
    if math.isnan(half):
        return estimates | {"reason": "few_runs"}
    low, high = math.exp(estimate - half), math.exp(estimate + half)
    return estimates | {
        "speedup_low": low,
        "speedup_high": high,
        "efficiency_low": low / more,
        "efficiency_high": high / more,
    }


def _variance(logs: FloatArray, devices: pd.Series) -> tuple[float, int]:
    """Return the variance of a mean, and its degrees of freedom.

    Runs on the same devices share the properties of these devices. So if there are several sets of
    devices, each set counts as one observation. Fewer than FEWEST_LIKELY have no known variance.
    """
    one_each = pd.Series(range(len(logs)), index=devices.index)
    runs = pd.Series(logs - logs.mean(), index=devices.index)
    units = runs.groupby(devices if devices.nunique() > 1 else one_each).sum() / len(logs)
    freedom = len(units) - 1
    if len(units) < FEWEST_LIKELY:
        return math.nan, freedom
    return float((units**2).sum()) * (freedom + 1) / freedom, freedom


def _half_width(*sides: tuple[float, int]) -> float:
    """Return the half-width of Welch's 95 % interval of a difference of means; NaN if unknown."""
    variance = sum(own for own, _ in sides)
    if variance == 0 or math.isnan(variance):
        return variance
    degrees = variance**2 / sum(own**2 / freedom for own, freedom in sides)
    return float(quantile(np.asarray(degrees), 1)) * math.sqrt(variance)
