"""Each strategy's cell beside the plain loop of its framework, one after the other: one table.

    export PYTHONPATH=workflow/scripts
    python benchmarks/against_plain_loops.py --gpus 1 2 --output results/bench
    python benchmarks/against_plain_loops.py --gpus 2 --model gpt_1b4

The same training in both: ResNet-50 with the CIFAR stem, bf16 autocast, 512 images per GPU,
synthetic images on the device; or a language model, also in the frameworks' own mixed precision. A
cell below 0.95 of its plain loop is marked. Where a step waits
for its host, moments of one machine differ by 10 to 20 %: more rounds tell noise from a cause. The
order within a round is reversed from one to the next.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from gpt import VARIANTS, gpt_cell
from plain_gpt import PRESETS
from resnet50 import ROOT, resnet50_cell, run_in
from shardmark.cells import Cell
from shardmark.errors import UserError
from shardmark.measurement.labels import host_wait_pct, slowest_host
from shardmark.measurement.telemetry import visible_gpus
from shardmark.metrics import Metrics
from shardmark.strategies import STRATEGIES

LOWEST_RATIO = 0.95
# Seconds; a plain loop that takes longer hangs.
LOOP_LIMIT_S = 300.0
HEAD = "Times of phases: cell/plain loop, s. Parts of a step: of a traced one, ms.\n"
# The phases of a cell that a plain loop has too, by the loop's name.
PHASES = {
    "imports": ("imports_s",),
    "process group": ("process_group_s", "probe_s"),
    "build": ("data_s", "build_s"),
    "first step": ("first_step_s",),
}


class Bench(NamedTuple):
    """What is timed.

    Attributes:
        model: resnet50, or the size of a language model.
        checkpoint: whether a language model computes its blocks again.
        seconds: length of each timed window.
        rounds: pairs of cell and plain loop.
        output: folder for the results.
    """

    model: str
    checkpoint: bool
    seconds: float
    rounds: int
    output: Path

    def cell(self, strategy: str, gpus: int) -> Cell:
        """The cell of a strategy."""
        measure = {
            "steady_min_s": self.seconds,
            "steady_max_s": self.seconds,
            "idle_s": 0.0,
            "warmup_max_steps": 60 if self.model == "resnet50" else 10,
            "warmup_min_steps": 3,
        }
        if self.model == "resnet50":
            return resnet50_cell(strategy, gpus, measure)
        return gpt_cell(strategy, gpus, measure, self.model, checkpoint=self.checkpoint)

    def loop(self, cell: Cell) -> dict[str, Any]:
        """What the plain loop of a cell printed."""
        if self.model == "resnet50":
            return plain_loop("plain_loop.py", cell, self.seconds)
        options = ["--preset", self.model, *(["--checkpoint"] if self.checkpoint else [])]
        return plain_loop("plain_gpt.py", cell, self.seconds, *options)


def plain_loop(name: str, cell: Cell, seconds: float, *options: str) -> dict[str, Any]:
    """What a plain loop printed.

    Args:
        name: its file beside this one.
        cell: has the strategy and the GPU count.
        seconds: length of its timed window.
        options: further ones of its command line.

    Raises:
        UserError: if it did not end well.
    """
    strategy, gpus = cell.strategy, cell.gpus
    script = [str(ROOT / "benchmarks" / name), "--strategy", strategy]
    script += ["--seconds", str(seconds), *options]
    command = [sys.executable]
    if STRATEGIES[cell.base].one_process:
        script += ["--gpus", str(gpus)]
    elif gpus > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}"]
    process = subprocess.Popen(
        [*command, *script],
        env=os.environ | {"LAUNCHED": str(time.time())},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=LOOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said = f"it hung for {LOOP_LIMIT_S:.0f} s\n{process.communicate()[0]}"
    lines = [line for line in said.splitlines() if line.startswith('{"strategy"')]
    if not lines:
        raise UserError(f"the plain loop of {strategy} on {gpus} GPUs failed:\n{said}")
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def startup_of(metrics: Metrics) -> dict[str, float]:
    """Seconds of a cell from the launch of its ranks to the end of its first step, by phase."""
    times = metrics.time_s
    assert times is not None
    return {
        phase: sum(getattr(times, name) or 0.0 for name in names) for phase, names in PHASES.items()
    }


def pairs(bench: Bench, strategy: str, gpus: int) -> Iterator[tuple[Metrics, dict[str, Any]]]:
    """Cell and plain loop, as often as there are rounds."""
    cell = bench.cell(strategy, gpus)
    for number in range(bench.rounds):
        folder = bench.output / f"{bench.model}-{strategy}-gpus{gpus}-{number}"
        cell_first = number % 2 == 0
        loop = None if cell_first else bench.loop(cell)
        with contextlib.redirect_stdout(io.StringIO()) as log:
            metrics = run_in(folder, cell)
        (folder / "job.log").write_text(log.getvalue())
        if metrics.status != "ok":
            assert metrics.failure is not None
            raise UserError(f"{cell.title}: {metrics.status}: {metrics.failure.exception}")
        yield metrics, loop or bench.loop(cell)


def row_of(found: Sequence[tuple[Metrics, dict[str, Any]]]) -> dict[str, Any]:
    """One line of the table, from the rounds of one strategy at one GPU count."""
    first = found[0][0]
    speeds = [one.throughput.items_per_s for one, _ in found if one.throughput]
    ratios = [speed / loop["items_per_s"] for speed, (_, loop) in zip(speeds, found, strict=True)]
    cells = [startup_of(one) for one, _ in found]
    loops = [loop["phases_s"] for _, loop in found]
    startup, bare = (_median(sum(each.values()) for each in many) for many in (cells, loops))
    splits = [split for one, _ in found if (split := slowest_host(one.profile))]
    parts = {
        part: _median(getattr(one, f"{part}_ms") for one in splits)
        for part in ("step", "compute", "exposed_communication", "data", "host_gap")
    }
    return {
        "strategy": first.cell.strategy,
        "GPUs": first.cell.gpus,
        "cell items/s": round(_median(speeds)),
        "loop items/s": round(_median(loop["items_per_s"] for _, loop in found)),
        "cell/loop": round(_median(ratios), 3),
        "ratios": " ".join(f"{ratio:.2f}" for ratio in ratios),
        "mark": "LOW" if _median(ratios) < LOWEST_RATIO else "",
        "util %": _rounded(first.efficiency.utilization_pct if first.efficiency else None),
        "step ms": round(_median(o.throughput.step_ms_mean for o, _ in found if o.throughput), 1),
        "traced": round(parts["step"], 1),
        "compute": round(parts["compute"], 1),
        "comm": round(parts["exposed_communication"], 1),
        "data": round(parts["data"], 1),
        "host": round(parts["host_gap"], 1),
        "host %": _rounded(host_wait_pct(first)),
        "launch CPU %": _rounded(max(use.launching_cpu_pct for use in first.host)),
        "start-up s": round(startup, 1),
        "bare s": round(bare, 1),
        "s/s": round(startup / bare, 2),
        **{
            phase: f"{_median(c[phase] for c in cells):.1f}/{_median(b[phase] for b in loops):.1f}"
            for phase in PHASES
        },
    }


def _median(values: Any) -> float:
    return float(statistics.median(list(values)))


def _rounded(value: float | None) -> int | None:
    return None if value is None else round(value)


def trap(gpus: int, seconds: float, output: Path) -> str:
    """DataParallel's cell and its plain loop with cuDNN's search on, in words."""
    variant = {"dp_search": {"base": "dp", "cudnn_benchmark": True}}
    measure = {
        "steady_min_s": seconds,
        "steady_max_s": seconds,
        "idle_s": 0.0,
        "warmup_max_steps": 12,
        "warmup_min_steps": 3,
    }
    cell = resnet50_cell("dp_search", gpus, measure, variants=variant)
    with contextlib.redirect_stdout(io.StringIO()):
        metrics = run_in(output / "dp_search", cell)
    speed = f"{metrics.throughput.items_per_s:,.0f}" if metrics.throughput else metrics.status
    loop = plain_loop("plain_loop.py", cell, seconds, "--search")["items_per_s"]
    return (
        f"The trap: dp on {gpus} GPUs with cuDNN's search on (cudnn_benchmark: true): cell {speed} "
        f"images/s, plain loop {loop:,.0f}"
    )


def main() -> None:
    """Print the table of the command line's strategies and GPU counts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpus", nargs="+", type=int, help="counts; default: 1 and all there are")
    parser.add_argument("--model", choices=("resnet50", *PRESETS), default="resnet50")
    parser.add_argument(
        "--checkpoint", action="store_true", help="a language model computes its blocks again"
    )
    parser.add_argument("--strategies", nargs="+", help="default: all that have a plain loop")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of each timed window")
    parser.add_argument("--rounds", type=int, default=1, help="pairs of cell and plain loop")
    parser.add_argument("--output", type=Path, default=Path("results/bench"))
    arguments = parser.parse_args()
    known = [*STRATEGIES, *(() if arguments.model == "resnet50" else VARIANTS)]
    strategies = arguments.strategies or known
    bench = Bench(
        arguments.model,
        arguments.checkpoint,
        arguments.seconds,
        arguments.rounds,
        arguments.output,
    )
    try:
        if unknown := set(strategies) - set(known):
            raise UserError(f"--strategies {' '.join(unknown)}: allowed: {', '.join(known)}")
        there = len(visible_gpus())
        counts = arguments.gpus or sorted({1, there})
        if not there or max(counts) > there:
            raise UserError(f"--gpus {' '.join(map(str, counts))}: this machine has {there} GPUs")
    except UserError as error:
        sys.exit(f"shardmark: {error}")
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    arguments.output.mkdir(parents=True, exist_ok=True)

    def report() -> str:
        """All so far, also left in a file: a bench that is broken off has what it measured."""
        text = "\n".join([HEAD, pd.DataFrame(rows).fillna("").to_markdown(index=False), *notes])
        (arguments.output / "bench.md").write_text(text + "\n")
        return text

    # The first process of a machine reads its libraries from the disk: this one counts for nothing.
    with contextlib.suppress(UserError):
        bench._replace(seconds=1.0).loop(bench.cell("ddp", max(counts)))
    for gpus in sorted(counts, reverse=True):
        for strategy in strategies:
            begin = time.monotonic()
            try:
                rows.append(row_of(list(pairs(bench, strategy, gpus))))
            except UserError as error:
                rows.append({"strategy": strategy, "GPUs": gpus, "mark": "FAILED"})
                notes.append(str(error))
            report()
            print(f"{strategy} on {gpus} GPUs: {time.monotonic() - begin:.0f} s", flush=True)
    if "dp" in strategies and max(counts) > 1:
        notes.append(trap(max(counts), 2.0, arguments.output))
    print(report())


if __name__ == "__main__":
    main()
