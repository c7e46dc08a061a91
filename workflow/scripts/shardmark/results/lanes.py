"""The lane of a row: whether its variant computes what every strategy computes.

A row of "same_arithmetic" holds parameters, gradients, gradient reduction and optimizer state in
float32. A row of "as_recommended" uses its framework's own mixed precision. Any other change of the
arithmetic is "other_arithmetic".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Lane = Literal["same_arithmetic", "as_recommended", "other_arithmetic"]
_MIXED_PRECISION = {"mixed_precision": "none", "low_precision_communication": False}
_OTHER = {"comm_hook": "none", "gradient_clipping": 0.0}


def lane_of(options: Mapping[str, Any]) -> Lane:
    """Return the lane that a strategy's options put it in."""
    if _differs(options, _OTHER):
        return "other_arithmetic"
    return "as_recommended" if _differs(options, _MIXED_PRECISION) else "same_arithmetic"


def _differs(options: Mapping[str, Any], usual: Mapping[str, Any]) -> bool:
    return any(options.get(name, value) != value for name, value in usual.items())
