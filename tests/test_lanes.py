"""The lane of a variant."""

from __future__ import annotations

from typing import Any

import pytest

from shardmark.lanes import Lane, lane_of
from shardmark.strategies import STRATEGIES


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_strategy_without_options_computes_as_the_others(strategy: str) -> None:
    assert lane_of(STRATEGIES[strategy].options().model_dump()) == "same_arithmetic"


@pytest.mark.parametrize(
    ("base", "options", "lane"),
    [
        ("fsdp2", {"param_dtype": "bf16"}, "as_recommended"),
        ("fsdp2", {"param_dtype": "bf16", "reduce_dtype": "bf16"}, "other_arithmetic"),
        ("fsdp", {"sharding": "shard_grad_op"}, "same_arithmetic"),
        ("deepspeed_zero3", {"low_precision_communication": True}, "as_recommended"),
        ("deepspeed_zero2", {"param_dtype": "bf16"}, "as_recommended"),
        ("deepspeed_zero1", {"gradient_clipping": None}, "other_arithmetic"),
        ("deepspeed_zero3", {"memory_efficient_linear": True}, "other_arithmetic"),
        ("ddp", {"comm_hook": "bf16_compress"}, "other_arithmetic"),
        ("ddp", {"compile": "model"}, "as_recommended"),
        ("ddp", {"zero_redundancy": True}, "same_arithmetic"),
        ("fsdp2", {"shard_size": 2, "offload": "all"}, "same_arithmetic"),
        ("fsdp2", {"shard_size": "node", "param_dtype": "bf16"}, "as_recommended"),
        ("deepspeed_zero3", {"reshard_after_forward": 2, "offload": "all"}, "same_arithmetic"),
    ],
)
def test_options_that_change_the_arithmetic_change_the_lane(
    base: str, options: dict[str, Any], lane: Lane
) -> None:
    assert lane_of(STRATEGIES[base].options(**options).model_dump()) == lane
