"""The bare loop that a cell of a language model is compared with, with nothing of shardmark.

A decoder-only transformer on random tokens, 1,024 to a sequence, with torch's fused AdamW: DDP
under bf16 autocast, or FSDP2 with bf16 parameters and float32 reduction. Prints tokens/s of the
steps after a warm-up, the memory peak, and the seconds from the launch to the end of the first
step.

    torchrun --nproc-per-node=2 benchmarks/plain_gpt.py --strategy ddp --preset gpt_1b4
    torchrun --nproc-per-node=2 benchmarks/plain_gpt.py --strategy fsdp2_bf16 --preset gpt_3b9 \
        --checkpoint
"""

from __future__ import annotations

import argparse
import os
import time

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from plain_loop import (
    DEVICE,
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

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (batch, tokens, vocabulary)."""
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


def build(strategy: str, preset: str, checkpoints: bool) -> Step:
    """The training step of a strategy."""
    with DEVICE:
        model: nn.Module = Gpt(*PRESETS[preset], checkpoints)
    autocasts = strategy == "ddp"
    if autocasts:
        model = nn.parallel.DistributedDataParallel(
            model, device_ids=[DEVICE], gradient_as_bucket_view=True
        )
    else:
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        for module in model.modules():
            if isinstance(module, Block):
                fully_shard(module, mp_policy=policy)
        fully_shard(model, mp_policy=policy, reshard_after_forward=False)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )

    def step(tokens: Tensor, targets: Tensor) -> None:
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=autocasts):
            logits = model(tokens).flatten(0, 1)
            loss = cross_entropy(logits.float(), targets.flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    """Time the strategy of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--strategy", choices=["ddp", "fsdp2_bf16"], required=True)
    parser.add_argument("--preset", choices=PRESETS, default="gpt_1b4")
    parser.add_argument("--batch", type=int, default=4, help="sequences per GPU per step")
    parser.add_argument("--checkpoint", action="store_true", help="compute the blocks again")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the timed window")
    arguments = parser.parse_args()
    marks = {"imports": time.time()}
    launched = float(os.environ.get("LAUNCHED", marks["imports"]))
    torch.cuda.set_device(DEVICE)
    join_process_group()
    marks["process group"] = time.time()
    step = build(arguments.strategy, arguments.preset, arguments.checkpoint)
    torch.cuda.synchronize()
    marks["build"] = time.time()

    def run(steps: int) -> float:
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(steps):
            sequences = torch.randint(VOCABULARY, (arguments.batch, CONTEXT + 1), device=DEVICE)
            step(sequences[:, :-1], sequences[:, 1:])
        torch.cuda.synchronize()
        return (time.perf_counter() - begin) / steps

    run(1)
    marks["first step"] = time.time()
    run(3)
    pause_collector()
    step_s = seconds_per_step(run, arguments.seconds, warmup=3)
    measured = {
        "strategy": arguments.strategy,
        "items_per_s": arguments.batch * CONTEXT * dist.get_world_size() / step_s,
        "memory_gib": round(torch.cuda.max_memory_reserved() / 2**30, 1),
    }
    print_and_leave(launched, marks, measured)


if __name__ == "__main__":
    main()
