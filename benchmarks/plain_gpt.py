"""The bare loop that a cell of a language model is compared with, with nothing of shardmark.

A decoder-only transformer on random tokens, 1,024 to a sequence, with torch's fused AdamW, the
gradient clipped, under bf16 autocast or in the framework's own mixed precision. Prints tokens/s of
the steps after a warm-up, the memory peak, and the seconds from the launch to the end of the first
step.

    torchrun --nproc-per-node=2 benchmarks/plain_gpt.py --strategy ddp --preset gpt_1b4
    torchrun --nproc-per-node=2 benchmarks/plain_gpt.py --strategy fsdp2_bf16 --preset gpt_3b9 \
        --checkpoint
    python benchmarks/plain_gpt.py --strategy dp --gpus 2     # DataParallel is one process
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from plain_loop import (
    DEVICE,
    AutocastInside,
    Step,
    join_process_group,
    pause_collector,
    print_and_leave,
    seconds_per_step,
)

CONTEXT, VOCABULARY = 1024, 50_304
# Layers, width, heads.
PRESETS = {
    "gpt_1b4": (24, 2048, 16),
    "gpt_3b9": (32, 3072, 24),
    "gpt_5b1": (36, 3328, 26),
    "gpt_8b5": (40, 4096, 32),
}


class Block(nn.Module):
    """Pre-norm attention and feed-forward network."""

    def __init__(self, width: int, heads: int, checkpoints: bool) -> None:
        super().__init__()
        self.heads, self.checkpoints = heads, checkpoints
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (batch, tokens, width) to the same shape."""
        if self.checkpoints and torch.is_grad_enabled():
            again: Tensor = checkpoint(
                self.compute, x, use_reentrant=False, preserve_rng_state=False
            )
            return again
        return self.compute(x)

    def compute(self, x: Tensor) -> Tensor:
        """The block itself."""
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))
        down: Tensor = x + self.down(gelu(self.up(self.norm2(x))))
        return down


class Gpt(nn.Module):
    """The model, on torch's default device."""

    def __init__(self, layers: int, width: int, heads: int, checkpoints: bool) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.places = nn.Embedding(CONTEXT, width)
        self.blocks = nn.ModuleList(Block(width, heads, checkpoints) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of the targets (batch, tokens)."""
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of every strategy."""
    return torch.optim.AdamW(
        model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )


def torch_step(
    model: nn.Module,
    *,
    autocasts: bool = True,
    clip: Callable[[float], object] | None = None,
) -> Step:
    """Forward, backward, clipping and update with torch alone.

    Args:
        model: distributed already.
        autocasts: whether the forward pass runs under bf16 autocast.
        clip: the framework's own way to clip; else torch's.
    """
    optimizer = adamw(model)
    clip = clip or (lambda norm: nn.utils.clip_grad_norm_(model.parameters(), norm))

    def step(tokens: Tensor, targets: Tensor) -> None:
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=autocasts):
            loss = model(tokens, targets).mean()
        loss.backward()
        clip(1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def build_dp(model: Gpt, gpus: int) -> Step:
    """DataParallel over the first GPUs, each replica with its loss."""
    replicas = nn.DataParallel(AutocastInside(model.to(DEVICE)), device_ids=list(range(gpus)))
    return torch_step(replicas, autocasts=False)


def build_ddp(model: Gpt) -> Step:
    """DistributedDataParallel."""
    return torch_step(
        nn.parallel.DistributedDataParallel(
            model, device_ids=[DEVICE], gradient_as_bucket_view=True
        )
    )


def build_fsdp(model: Gpt, *, native: bool) -> Step:
    """FSDP1, one unit a block."""
    from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    own = MixedPrecision(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    sharded = FullyShardedDataParallel(
        model,
        auto_wrap_policy=ModuleWrapPolicy({Block}),
        mixed_precision=own if native else None,
        device_id=DEVICE,
        use_orig_params=True,
    )
    return torch_step(sharded, autocasts=not native, clip=sharded.clip_grad_norm_)


def build_fsdp2(model: Gpt, *, native: bool) -> Step:
    """FSDP2, one unit a block."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    own = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    policy = own if native else MixedPrecisionPolicy()
    for block in model.blocks:
        fully_shard(block, mp_policy=policy)
    fully_shard(model, mp_policy=policy, reshard_after_forward=False)
    return torch_step(model, autocasts=not native)


def build_fairscale_fsdp(model: Gpt) -> Step:
    """FairScale's FSDP, one unit a block."""
    from fairscale.nn import FullyShardedDataParallel, enable_wrap, wrap

    with enable_wrap(wrapper_cls=FullyShardedDataParallel):
        for index, block in enumerate(model.blocks):
            model.blocks[index] = cast(Any, wrap)(block)
        sharded = cast(Any, wrap)(model)
    return torch_step(sharded, clip=sharded.clip_grad_norm_)


def build_zero(stage: int, make: Callable[[], Gpt], *, native: bool) -> Step:
    """DeepSpeed in its bf16 mode if ``native``, else with autocast and float32 communication."""
    import deepspeed

    autocast = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": stage, "memory_efficient_linear": False},
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 1.0,
    } | ({"bf16": {"enabled": True}} if native else {"torch_autocast": autocast})
    with deepspeed.zero.Init(enabled=stage == 3, config_dict_or_path=config):
        model = make()
    engine, _, _, _ = deepspeed.initialize(
        model=model, optimizer=adamw(model), dist_init_required=False, config=config
    )

    def step(tokens: Tensor, targets: Tensor) -> None:
        engine.backward(engine(tokens, targets))
        engine.step()

    return step


BUILDERS: dict[str, Callable[[Callable[[], Gpt]], Step]] = {
    "ddp": lambda make: build_ddp(make()),
    "fsdp": lambda make: build_fsdp(make(), native=False),
    "fsdp2": lambda make: build_fsdp2(make(), native=False),
    "fairscale_fsdp": lambda make: build_fairscale_fsdp(make()),
    "deepspeed_zero1": lambda make: build_zero(1, make, native=False),
    "deepspeed_zero2": lambda make: build_zero(2, make, native=False),
    "deepspeed_zero3": lambda make: build_zero(3, make, native=False),
    "fsdp_bf16": lambda make: build_fsdp(make(), native=True),
    "fsdp2_bf16": lambda make: build_fsdp2(make(), native=True),
    "zero1_bf16": lambda make: build_zero(1, make, native=True),
    "zero2_bf16": lambda make: build_zero(2, make, native=True),
    "zero3_bf16": lambda make: build_zero(3, make, native=True),
}


def build(strategy: str, gpus: int, preset: str, *, checkpoints: bool) -> Step:
    """The training step of a strategy; ``gpus`` are those of dp's one process."""

    def make() -> Gpt:
        with DEVICE:
            return Gpt(*PRESETS[preset], checkpoints)

    return build_dp(make(), gpus) if strategy == "dp" else BUILDERS[strategy](make)


def make_timer(step: Step, batch: int) -> Callable[[int], float]:
    """A function that takes so many steps and returns the seconds of one.

    Args:
        step: of a strategy.
        batch: sequences per step of this process.
    """

    def run(steps: int) -> float:
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(steps):
            sequences = torch.randint(VOCABULARY, (batch, CONTEXT + 1), device=DEVICE)
            step(sequences[:, :-1], sequences[:, 1:])
        torch.cuda.synchronize()
        return (time.perf_counter() - begin) / steps

    return run


def main() -> None:
    """Time the strategy of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--strategy", choices=["dp", *BUILDERS], required=True)
    parser.add_argument("--preset", choices=PRESETS, default="gpt_1b4")
    parser.add_argument("--batch", type=int, default=4, help="sequences per GPU per step")
    parser.add_argument("--checkpoint", action="store_true", help="compute the blocks again")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the timed window")
    parser.add_argument("--gpus", type=int, default=1, help="GPUs of dp")
    arguments = parser.parse_args()
    marks = {"imports": time.time()}
    launched = float(os.environ.get("LAUNCHED", marks["imports"]))
    torch.cuda.set_device(DEVICE)
    join_process_group()
    marks["process group"] = time.time()
    step = build(
        arguments.strategy, arguments.gpus, arguments.preset, checkpoints=arguments.checkpoint
    )
    torch.cuda.synchronize()
    marks["build"] = time.time()
    batch = arguments.batch * arguments.gpus
    run = make_timer(step, batch)
    run(1)
    marks["first step"] = time.time()
    run(3)
    pause_collector()
    step_s = seconds_per_step(run, arguments.seconds, warmup=3)
    measured = {
        "strategy": arguments.strategy,
        "items_per_s": batch * CONTEXT * dist.get_world_size() / step_s,
        "memory_gib": round(torch.cuda.max_memory_reserved() / 2**30, 1),
    }
    print_and_leave(launched, marks, measured)


if __name__ == "__main__":
    main()
