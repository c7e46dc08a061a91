"""What the garbage collector or the sampler costs a strategy: windows with and without, in turns.

    export PYTHONPATH=workflow/scripts
    torchrun --nproc-per-node=2 benchmarks/paired_windows.py --strategy fsdp2 --vary collector

All windows are of one training, so that two neighbours differ in nothing else. The order within a
pair is reversed from one to the next.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import statistics
import tempfile
from pathlib import Path

from resnet50 import resnet50_cell
from shardmark.measurement.clocks import Phases
from shardmark.measurement.telemetry import sampling, visible_gpus
from shardmark.strategies import STRATEGIES
from shardmark.training.loop import CellTraining
from shardmark.training.steady_window import Window, measure_window
from shardmark.training.strategy import Strategy


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


def window(training: CellTraining, vary: str, on: bool) -> Window:
    """A window with the collector or the sampler, or without it."""
    runtime, measure = training.runtime, training.cell.measure
    steps = training._endless_steps()
    settings = measure.model_copy(update={"collect_garbage": on and vary == "collector"})
    with contextlib.ExitStack() as stack:
        if on and vary == "sampler" and runtime.rank == 0:
            samples = Path(stack.enter_context(tempfile.TemporaryDirectory()), "telemetry.csv")
            gpus = visible_gpus(training.cell.gpus)
            stack.enter_context(sampling(samples, measure.sample_interval_s, gpus))
        return measure_window(
            runtime, settings, training.phases, lambda: training._step(next(steps))
        )


def main() -> None:
    """Print the pairs of the command line's strategy, and the mean of their differences."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--strategy", choices=STRATEGIES, required=True)
    parser.add_argument("--vary", choices=("collector", "sampler"), required=True)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each window")
    arguments = parser.parse_args()
    gpus = int(os.environ.get("WORLD_SIZE", "1"))
    measure = {"steady_s": arguments.seconds, "warmup_max_steps": 20}
    cell = resnet50_cell(arguments.strategy, gpus, measure)
    training = CellTraining(class_of(arguments.strategy), cell, Phases())
    changes = []
    for pair in range(arguments.pairs):
        speed = {}
        for on in (pair % 2 == 0, pair % 2 == 1):
            found = window(training, arguments.vary, on)
            speed[on] = 1000 * cell.global_batch_size / statistics.fmean(found.steady_ms)
            growth, peak = (
                sum(memory[key] for memory in found.torch_memory.values()) // 2**20
                for key in ("growth", "allocated")
            )
            state = "on" if on else "off"
            if training.runtime.rank == 0:
                print(
                    f"{arguments.strategy} pair {pair + 1}, {arguments.vary} {state}: "
                    f"{speed[on]:,.0f} images/s, {found.gc_collections} collections in "
                    f"{len(found.steady_ms)} steps, {growth} MiB more allocated, peak {peak} MiB",
                    flush=True,
                )
        changes.append(100 * (speed[True] / speed[False] - 1))
    if training.runtime.rank == 0:
        each = ", ".join(f"{change:+.1f}" for change in changes)
        print(
            f"{arguments.strategy} on {gpus} GPUs, {arguments.vary} on against off: {each} %; "
            f"mean {statistics.fmean(changes):+.1f} %",
            flush=True,
        )
    os._exit(0)  # some frameworks take seconds to leave


if __name__ == "__main__":
    main()
