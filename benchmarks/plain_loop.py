"""The bare loop a cell is held against: a framework's own recipe, and nothing of shardmark.

One strategy, ResNet-50 with the CIFAR stem in bf16 autocast, images from a uint8 tensor on the
device with a random crop and flip. Prints images/s of the steps after a warm-up, and the seconds
from the launch to the end of the first step.

    python benchmarks/plain_loop.py --strategy ddp --batch 512 --seconds 10
    torchrun --nproc-per-node=2 benchmarks/plain_loop.py --strategy fsdp2 --batch 512
    python benchmarks/plain_loop.py --strategy dp --gpus 2        # DataParallel is one process
    python benchmarks/plain_loop.py --strategy dp --gpus 2 --search    # its trap; see train_dp.py
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
import torch.distributed as dist
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

DEVICE = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
Step = Callable[[Tensor, Tensor], None]


def resnet50() -> nn.Module:
    """ResNet-50 with the CIFAR stem, on the CPU."""
    model: nn.Module = torchvision.models.resnet50(num_classes=10)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


def autocast_step(model: nn.Module) -> Step:
    """Forward, backward and SGD under bf16 autocast."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)

    def step(images: Tensor, labels: Tensor) -> None:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


class AutocastInside(nn.Module):
    """DataParallel hands an outer autocast on without its dtype."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *inputs: Tensor) -> Tensor:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            output: Tensor = self.inner(*inputs)
        return output


def build_dp(gpus: int) -> Step:
    """DataParallel over the first GPUs."""
    model = AutocastInside(resnet50().to(DEVICE))
    return autocast_step(nn.DataParallel(model, device_ids=list(range(gpus))))


def build_ddp() -> Step:
    """DistributedDataParallel."""
    model = resnet50().to(DEVICE)
    return autocast_step(
        nn.parallel.DistributedDataParallel(
            model, device_ids=[DEVICE], gradient_as_bucket_view=True
        )
    )


def build_fsdp() -> Step:
    """FSDP1, one unit a bottleneck."""
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    return autocast_step(
        FullyShardedDataParallel(
            resnet50(),
            auto_wrap_policy=ModuleWrapPolicy({Bottleneck}),
            device_id=DEVICE,
            use_orig_params=True,
        )
    )


def build_fsdp2() -> Step:
    """FSDP2, one unit a bottleneck."""
    from torch.distributed.fsdp import fully_shard

    model = resnet50().to(DEVICE)
    for module in model.modules():
        if isinstance(module, Bottleneck):
            fully_shard(module)
    fully_shard(model)
    return autocast_step(model)


def build_fairscale_fsdp() -> Step:
    """FairScale's FSDP, one unit a bottleneck."""
    from fairscale.nn import FullyShardedDataParallel, enable_wrap, wrap

    model = resnet50().to(DEVICE)
    with enable_wrap(wrapper_cls=FullyShardedDataParallel):
        for name in ("layer1", "layer2", "layer3", "layer4"):
            stage = cast(nn.Sequential, model.get_submodule(name))
            for index, block in enumerate(stage):
                stage[index] = cast(Any, wrap)(block)
        return autocast_step(cast(Any, wrap)(model))


def build_zero(stage: int) -> Step:
    """DeepSpeed with autocast in the engine and float32 communication."""
    import deepspeed

    model = resnet50()
    engine, _, _, _ = deepspeed.initialize(
        model=model.to(DEVICE) if stage < 3 else model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4),
        dist_init_required=False,
        config={
            "train_micro_batch_size_per_gpu": 1,
            "zero_optimization": {"stage": stage},
            "zero_allow_untested_optimizer": True,
            "gradient_clipping": 0.0,
            "torch_autocast": {
                "enabled": True,
                "dtype": "bfloat16",
                "lower_precision_safe_modules": [],
            },
        },
    )

    def step(images: Tensor, labels: Tensor) -> None:
        loss = nn.functional.cross_entropy(engine(images).float(), labels)
        engine.backward(loss)
        engine.step()

    return step


BUILDERS: dict[str, Callable[[], Step]] = {
    "ddp": build_ddp,
    "fsdp": build_fsdp,
    "fsdp2": build_fsdp2,
    "fairscale_fsdp": build_fairscale_fsdp,
    "deepspeed_zero1": lambda: build_zero(1),
    "deepspeed_zero2": lambda: build_zero(2),
    "deepspeed_zero3": lambda: build_zero(3),
}


def build(strategy: str, gpus: int) -> Step:
    """The training step of a strategy; ``gpus`` are those of dp's one process."""
    return build_dp(gpus) if strategy == "dp" else BUILDERS[strategy]()


def make_timer(step: Step, batch: int) -> Callable[[int], float]:
    """A function that takes so many steps and returns the seconds of one.

    Args:
        step: of a strategy.
        batch: images per step of this process.
    """
    pixels = torch.randint(0, 256, (50_000, 40, 40, 3), dtype=torch.uint8, device=DEVICE)
    labels = torch.randint(0, 10, (50_000,), device=DEVICE)
    window = torch.arange(32, device=DEVICE)

    def run(steps: int) -> float:
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(steps):
            pick = torch.randint(0, 50_000, (batch,), device=DEVICE)
            rows = torch.randint(0, 9, (batch, 1), device=DEVICE) + window
            flip = torch.rand(batch, 1, device=DEVICE) < 0.5
            columns = torch.where(flip, window.flip(0), window)
            crop = pixels[pick[:, None, None], rows[:, :, None], columns[:, None, :]]
            images = crop.permute(0, 3, 1, 2).float().div_(128).sub_(1)
            step(images, labels[pick])
        torch.cuda.synchronize()
        return (time.perf_counter() - begin) / steps

    return run


def seconds_per_step(run: Callable[[int], float], seconds: float, warmup: int) -> float:
    """The mean over a window of so many seconds, after ``warmup`` steps; a collective."""
    # The same number on every rank: each step is a collective.
    per_step = torch.tensor(run(warmup), device=DEVICE)
    dist.broadcast(per_step, 0)
    return run(max(10, int(seconds / float(per_step))))


def join_process_group() -> None:
    """Join torchrun's process group, or make one of this process alone."""
    single = "RANK" not in os.environ
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed takes its device from it
    dist.init_process_group(
        "nccl",
        store=dist.HashStore() if single else None,  # type: ignore[attr-defined]
        rank=0 if single else -1,
        world_size=1 if single else -1,
        device_id=DEVICE,
    )


def pause_collector() -> None:
    """Pause Python's garbage collector as a cell does, because no strategy causes its cost."""
    gc.collect()
    gc.freeze()
    gc.disable()


def print_and_leave(launched: float, marks: Mapping[str, float], measured: dict[str, Any]) -> None:
    """Print a line of JSON on rank 0, and leave; some frameworks would take seconds.

    Args:
        launched: when the process was launched, s since the epoch.
        marks: when each phase ended.
        measured: the strategy and its speed.
    """
    if dist.get_rank() == 0:
        times = [launched, *marks.values()]
        phases = {
            name: round(end - begin, 3)
            for name, begin, end in zip(marks, times, times[1:], strict=False)
        }
        startup = {"phases_s": phases, "startup_s": marks["first step"] - launched}
        print(json.dumps(measured | startup), flush=True)
    os._exit(0)


def main() -> None:
    """Time the strategy of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--strategy", choices=["dp", *sorted(BUILDERS)], required=True)
    parser.add_argument("--batch", type=int, default=512, help="images per GPU per step")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the timed window")
    parser.add_argument("--gpus", type=int, default=1, help="GPUs of dp")
    parser.add_argument("--search", action="store_true", help="dp: let cuDNN search on many GPUs")
    arguments = parser.parse_args()
    marks = {"imports": time.time()}
    launched = float(os.environ.get("LAUNCHED", marks["imports"]))
    torch.cuda.set_device(DEVICE)
    # See train_dp.py: with several GPUs DataParallel would search in every step.
    torch.backends.cudnn.benchmark = arguments.gpus == 1 or arguments.search
    join_process_group()
    marks["process group"] = time.time()
    step = build(arguments.strategy, arguments.gpus)
    torch.cuda.synchronize()
    marks["build"] = time.time()
    batch = arguments.batch * arguments.gpus
    run = make_timer(step, batch)
    run(1)
    marks["first step"] = time.time()
    run(20)
    pause_collector()
    speed = batch * dist.get_world_size() / seconds_per_step(run, arguments.seconds, warmup=20)
    print_and_leave(launched, marks, {"strategy": arguments.strategy, "items_per_s": speed})


if __name__ == "__main__":
    main()
