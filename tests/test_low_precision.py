"""What a framework's own mixed precision casts, and what it cannot take."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from shardmark.workload.precision import cast_floats
from train_deepspeed import _refuse_batchnorm


class Keywords(nn.Module):
    def forward(self, tokens: Tensor, *, images: dict[str, Tensor], name: str) -> list[torch.dtype]:
        assert name == "as it was"
        return [tokens.dtype, images["pixels"].dtype, images["mask"].dtype]


def test_floats_are_cast_wherever_they_are_among_the_inputs() -> None:
    model = Keywords()
    model.register_forward_pre_hook(partial(cast_floats, torch.bfloat16), with_kwargs=True)
    images = {"pixels": torch.ones(2), "mask": torch.ones(2, dtype=torch.bool)}
    dtypes = model(torch.ones(2, dtype=torch.long), images=images, name="as it was")
    assert dtypes == [torch.int64, torch.bfloat16, torch.bool]
    assert images["pixels"].dtype == torch.float32


def test_a_users_network_with_batchnorm_is_refused_by_deepspeeds_bf16_mode() -> None:
    with pytest.raises(NotImplementedError, match="use low_precision_communication"):
        _refuse_batchnorm(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    _refuse_batchnorm(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))
