"""A cell's timed window beside windows that differ in one thing, in turns and in one training.

    export PYTHONPATH=workflow/scripts:benchmarks
    torchrun --nproc-per-node=2 benchmarks/paired_windows.py --strategy fsdp2 --against loop
    torchrun --nproc-per-node=2 benchmarks/paired_windows.py --strategy fsdp2_bf16 \
        --model gpt_1b4 --against loop
    torchrun --nproc-per-node=1 benchmarks/paired_windows.py --strategy dp --gpus 2 --against loop

All windows are of the same processes, and each follows another within a second or two, so that
neither another start nor another moment of the machine comes between the two of a pair. Where a
step waits for its host, two windows of one kind half a minute apart differ by up to 40 %. The order
is reversed from one pair to the next. The cell trains, evaluates, is inspected and profiled first.
What differs from the cell's window:

    loop         the steps are those of benchmarks/plain_loop.py or plain_gpt.py
    no_sampler   nothing samples the GPUs
    collector    Python's garbage collector runs
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import plain_gpt
import plain_loop
from gpt import VARIANTS, gpt_cell
from resnet50 import resnet50_cell
from shardmark.measurement.clocks import Phases
from shardmark.measurement.garbage import collector_paused
from shardmark.measurement.telemetry import sampling, visible_gpus
from shardmark.strategies import STRATEGIES
from shardmark.training.loop import CellTraining
from shardmark.training.steady_window import measure_window
from shardmark.training.strategy import Strategy

CELL = "cell"
WARM_UP_STEPS = 5


def class_of(strategy: str) -> type[Strategy]:
    """The class in a strategy's training script."""
    module = importlib.import_module(STRATEGIES[strategy].script.removesuffix(".py"))
    return next(
        kind
        for kind in vars(module).values()
        if isinstance(kind, type)
        and issubclass(kind, Strategy)
        and kind.__module__ == module.__name__
    )


def cell_window(training: CellTraining, *, sampler: bool = True, collector: bool = False) -> float:
    """Images or tokens/s of a window as the cell measures it."""
    runtime, cell = training.runtime, training.cell
    steps = training._endless_steps()
    settings = cell.measure.model_copy(update={"collect_garbage": collector})
    with contextlib.ExitStack() as stack:
        if sampler and runtime.rank == 0:
            samples = Path(stack.enter_context(tempfile.TemporaryDirectory()), "telemetry.csv")
            gpus = visible_gpus(cell.gpus)
            # Returns once the sampler is at work.
            stack.enter_context(sampling(samples, settings.sample_interval_s, gpus, idle_s=0.1))
        window = measure_window(
            runtime, settings, training.phases, lambda: training._step(next(steps))
        )
    return 1000 * cell.items_per_step / statistics.fmean(window.steady_ms)


def loop_window(training: CellTraining, run: Callable[[int], float]) -> float:
    """Images or tokens/s of the plain loop."""
    with collector_paused():
        step_s = plain_loop.seconds_per_step(run, training.cell.measure.steady_min_s, WARM_UP_STEPS)
    return training.cell.items_per_step / step_s


def windows_of(
    training: CellTraining, model: str, kinds: list[str], *, checkpoints: bool
) -> dict[str, Callable[[], float]]:
    """What measures a window of each kind, the cell's own among them."""
    known: dict[str, Callable[[], float]] = {
        CELL: lambda: cell_window(training),
        "no_sampler": lambda: cell_window(training, sampler=False),
        "collector": lambda: cell_window(training, collector=True),
    }
    if "loop" in kinds:
        cell = training.cell
        batch = cell.per_gpu_batch_size * len(training.runtime.replicas)
        if model == "resnet50":
            run = plain_loop.make_timer(plain_loop.build(cell.strategy, cell.gpus), batch)
        else:
            step = plain_gpt.build(cell.strategy, cell.gpus, model, checkpoints=checkpoints)
            run = plain_gpt.make_timer(step, batch)
        run(WARM_UP_STEPS)
        known["loop"] = lambda: loop_window(training, run)
    return {kind: known[kind] for kind in (CELL, *kinds)}


def main() -> None:
    """Print the windows of the command line's strategy, and how the cell's compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--strategy", choices=[*STRATEGIES, *VARIANTS], required=True)
    parser.add_argument("--model", choices=("resnet50", *plain_gpt.PRESETS), default="resnet50")
    parser.add_argument(
        "--checkpoint", action="store_true", help="a language model computes its blocks again"
    )
    parser.add_argument(
        "--against", choices=("loop", "no_sampler", "collector"), nargs="+", required=True
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each window")
    parser.add_argument("--gpus", type=int, help="of dp, which is one process")
    arguments = parser.parse_args()
    gpus = arguments.gpus or int(os.environ.get("WORLD_SIZE", "1"))
    measure = {
        "steady_min_s": arguments.seconds,
        "steady_max_s": arguments.seconds,
        "warmup_min_steps": WARM_UP_STEPS,
        "warmup_max_steps": 2 * WARM_UP_STEPS,
    }
    model, checkpoints = arguments.model, arguments.checkpoint
    if model == "resnet50":
        cell = resnet50_cell(arguments.strategy, gpus, measure)
    else:
        cell = gpt_cell(arguments.strategy, gpus, measure, model, checkpoint=checkpoints)
    training = CellTraining(class_of(cell.base), cell, Phases())
    result = training.run()
    windows = windows_of(training, model, arguments.against, checkpoints=checkpoints)
    speeds: dict[str, list[float]] = defaultdict(list)
    ratios: dict[str, list[float]] = defaultdict(list)
    for number in range(arguments.rounds):
        for kind in arguments.against:
            pair = (CELL, kind) if number % 2 == 0 else (kind, CELL)
            found = {one: windows[one]() for one in pair}
            ratios[kind].append(found[CELL] / found[kind])
            for one in pair:
                speeds[one].append(found[one])
            if result is not None:
                said = ", ".join(f"{one} {found[one]:,.0f}" for one in pair)
                print(f"pair {number + 1}, items/s: {said}", flush=True)
    if result is None:  # rank 0 has it
        os._exit(0)
    print("A traced step, ms:", [rank.profile for rank in result.ranks])
    print("The host in the first window:", [rank.host for rank in result.ranks])
    for kind in arguments.against:
        print(
            f"{arguments.strategy} on {gpus} GPUs: cell {statistics.median(speeds[CELL]):,.0f}, "
            f"{kind} {statistics.median(speeds[kind]):,.0f} items/s; cell/{kind} "
            f"{' '.join(f'{ratio:.3f}' for ratio in ratios[kind])}, "
            f"median {statistics.median(ratios[kind]):.3f}",
            flush=True,
        )
    os._exit(0)  # some frameworks take seconds to leave


if __name__ == "__main__":
    main()
