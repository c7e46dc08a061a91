"""The lane of a row: whether its variant computes what every strategy computes (docs/method.md).

A row of "same_arithmetic" holds parameters, gradients, gradient reduction and optimizer state in
float32, and compiles what the workload says. A row of "as_recommended" uses its framework's own
mixed precision or compilation. Any other change of the arithmetic is "other_arithmetic".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Lane = Literal["same_arithmetic", "as_recommended", "other_arithmetic"]
# Each lane in the report.
LANES: dict[str, str] = {
    "same_arithmetic": "same arithmetic",
    "as_recommended": "as recommended",
    "other_arithmetic": "other arithmetic",
}
# What each lane means, where a table has rows of several.
LANE_MEANINGS: dict[str, str] = {
    LANES["same_arithmetic"]: "weights, gradients and their reduction in float32",
    LANES["as_recommended"]: "the framework's own mixed precision (native bf16) or compilation",
    LANES["other_arithmetic"]: "anything else that changes the arithmetic",
}
_RECOMMENDED = {"param_dtype": "fp32", "low_precision_communication": False, "compile": None}
_OTHER = {
    "comm_hook": "none",
    "gradient_clipping": 0.0,
    "reduce_dtype": "fp32",
    "memory_efficient_linear": False,
}


def lane_of(options: Mapping[str, Any]) -> Lane:
    """Return the lane that a strategy's options put it in; a user's own strategy names its lane."""
    if "lane" in options:
        lane: Lane = options["lane"]
        return lane
    if _differs(options, _OTHER):
        return "other_arithmetic"
    return "as_recommended" if _differs(options, _RECOMMENDED) else "same_arithmetic"


def _differs(options: Mapping[str, Any], usual: Mapping[str, Any]) -> bool:
    return any(options.get(name, value) != value for name, value in usual.items())
