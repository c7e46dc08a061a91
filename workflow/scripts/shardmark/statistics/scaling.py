"""Speed-up and parallel efficiency of each strategy over its own smallest GPU count.

Of throughput alone: with local batch-norm each GPU count trains another model, so that a ratio of
losses, or of times to one, would compare two trainings. Strong and weak scaling are rows of their
own, and mean different things: with a fixed global batch the same work is shared among more GPUs;
with a fixed batch a GPU the work grows with them (Gustafson's scaled speed-up).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd

from shardmark.statistics.comparisons import PRIMARY
from shardmark.statistics.eligibility import SETTINGS, check_table, usable_cells, why_mixed
from shardmark.statistics.rank_sum import RankSum
from shardmark.statistics.shift import interval

FIGURES = (
    *("speedup", "speedup_low", "speedup_high"),
    *("efficiency", "efficiency_low", "efficiency_high"),
)
COLUMNS = [
    *("workload", "scaling", "strategy", "gpus", "reference_gpus", "images_per_s"),
    *FIGURES,
    *("n", "n_reference", "reason"),
]
# What may differ between two GPU counts: the batch that the regime does not fix.
FREE: Mapping[str, tuple[str, ...]] = {
    "strong": ("per_gpu_batch_size", "nodes"),
    "weak": ("global_batch_size", "nodes"),
}


def scaling_of(cells: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """Speed-up and efficiency at every GPU count beyond a strategy's smallest.

    Other GPU counts are other sets of devices, so the runs are groups and never pairs.

    Args:
        cells: the cells' table.
        level: confidence of the intervals.

    Returns:
        One row a workload, regime, strategy and GPU count: images_per_s (median), speedup = the
        Hodges-Lehmann ratio of images_per_s to that at reference_gpus, efficiency = speedup over
        gpus / reference_gpus, each with the interval that inverts the exact rank-sum test (empty
        where n is too small for one), n, n_reference, and the reason where there is no ratio.

    Raises:
        UserError: if a cell stands in the table twice.
    """
    check_table(cells)
    usable = usable_cells(cells, PRIMARY.column)
    rows = []
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
                "images_per_s": side[PRIMARY.column].median(),
                "n": len(side),
                "n_reference": len(reference),
            }
            rows.append(known | _ratio(side, reference, str(scaling), level))
    return pd.DataFrame(rows, columns=COLUMNS).astype(dict.fromkeys(FIGURES, "float64"))


def _ratio(
    side: pd.DataFrame, reference: pd.DataFrame, scaling: str, level: float
) -> dict[str, object]:
    more = side["gpus"].iloc[0] / reference["gpus"].iloc[0]
    if more == 1:
        return {"speedup": 1.0, "efficiency": 1.0, "reason": "the reference of this strategy"}
    same = [name for name in SETTINGS if name not in FREE[scaling]]
    mixed = why_mixed(pd.concat([side, reference]), same)
    if mixed:
        return {"reason": mixed}
    test = RankSum(*(runs[PRIMARY.column].map(math.log) for runs in (side, reference)))
    speedup = math.exp(test.estimate)
    low, high = (math.exp(end) if math.isfinite(end) else None for end in interval(test, level))
    return {
        "speedup": speedup,
        "speedup_low": low,
        "speedup_high": high,
        "efficiency": speedup / more,
        "efficiency_low": None if low is None else low / more,
        "efficiency_high": None if high is None else high / more,
        "reason": "" if low is not None else "too few runs for an interval",
    }
