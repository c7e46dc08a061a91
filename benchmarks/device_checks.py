"""What the measurement claims of itself, shown on one GPU: run it, read the tables it prints last.

    export PYTHONPATH=workflow/scripts
    python benchmarks/device_checks.py --output /tmp/checks --data-dir resources
    python benchmarks/device_checks.py --output /tmp/checks --parts rules sabotage

ResNet-50 on CIFAR-10 in bf16, 512 images a step. The parts, with their time on one H200:

    sampler     the sampler on against off in five pairs of cells, and with it the spread of the
                same cell run five times (3 min)
    strategies  each strategy: energy by counter and by integral, phases against the wall clock,
                the profile's split, the roofs, the fairness certificate (3 min)
    rules       a shared GPU and a cell that its input limits, as the rules name them (1 min)
    sabotage    settings that the certificate must flag (1 min)
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from resnet50 import ROOT, resnet50_cell, run_in
from shardmark.cells import Cell
from shardmark.measurement.rules import Peers
from shardmark.measurement.validity import judge
from shardmark.metrics import Metrics
from shardmark.report.page_tables import settings_table
from shardmark.report.table import to_markdown
from shardmark.results.certificate import certify
from shardmark.strategies import STRATEGIES

PARTS = ("sampler", "strategies", "rules", "sabotage")
VARIANTS = {
    "zero1_default_clipping": {"base": "deepspeed_zero1", "gradient_clipping": None},
    "zero1_bf16_communication": {"base": "deepspeed_zero1", "low_precision_communication": True},
}
PARTS_OF_OTHERS = {"first_step_s", "warmup_s", "steady_s", "total_s", "epochs_s"}
# Keeps one GPU busy until it is ended.
BUSY = """
import torch
x = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
while True:
    for _ in range(200):
        x @ x
    torch.cuda.synchronize()
"""


class Checks:
    """Runs cells and remembers the lines to print.

    Args:
        output: folder for the results.
        dataset: the images of the cells.
        data_dir: where they are.
    """

    def __init__(self, output: Path, dataset: str, data_dir: str) -> None:
        self.output, self.dataset, self.data_dir = output, dataset, data_dir
        self.begin = time.monotonic()
        self.lines: list[str] = []

    def cell(
        self,
        strategy: str,
        measure: dict[str, Any],
        dataset: dict[str, Any] | None = None,
        **changes: Any,
    ) -> Cell:
        """A cell on one GPU; ``changes`` to its workload."""
        images = {"name": self.dataset, "classes": None} | (dataset or {})
        return resnet50_cell(
            strategy,
            1,
            measure,
            dataset=images,
            variants=VARIANTS,
            data_dir=self.data_dir,
            **changes,
        )

    def run(self, cell: Cell, name: str, script: Path | None = None) -> Metrics:
        """The cell's result, left in a folder of that name."""
        metrics = run_in(self.output / name, cell, script)
        why = f" ({metrics.failure.exception})" if metrics.failure else ""
        print(
            f"== {name}: {metrics.status}{why}, {time.monotonic() - self.begin:.0f} s", flush=True
        )
        return metrics

    def say(self, *lines: str) -> None:
        """Lines of the tables that are printed last."""
        self.lines += lines

    def sampler(self) -> None:
        """Five pairs, each in the other order than the one before."""
        step_ms: dict[bool, list[float]] = {True: [], False: []}
        speeds = []
        for pair in range(5):
            for sampled in (pair % 2 == 0, pair % 2 == 1):
                measure = {
                    "steady_min_s": 3.0,
                    "steady_max_s": 3.0,
                    "idle_s": 0.0,
                    "sampler": sampled,
                }
                found = self.run(self.cell("ddp", measure), f"sampler-{pair}-{sampled}").throughput
                assert found is not None
                step_ms[sampled].append(found.step_ms_mean)
                if sampled:
                    speeds.append(found.items_per_s)
        costs = [
            100 * (on / off - 1) for on, off in zip(step_ms[True], step_ms[False], strict=True)
        ]
        mean, spread = statistics.fmean(speeds), statistics.stdev(speeds)
        self.say(
            "",
            "## Sampler on against off, five pairs: change of the mean step",
            ", ".join(f"{cost:+.2f} %" for cost in costs)
            + f"; mean {statistics.fmean(costs):+.2f} % (bound 1 %)",
            "## The same cell five times: images/s",
            ", ".join(f"{speed:,.0f}" for speed in speeds)
            + f"; standard deviation {100 * spread / mean:.2f} %, "
            + f"range {100 * (max(speeds) / min(speeds) - 1):.2f} %",
        )

    def strategies(self) -> None:
        """Every strategy once, profiled."""
        measure = {"steady_min_s": 5.0, "steady_max_s": 5.0, "idle_s": 3.0, "profile": True}
        results = [self.run(self.cell(name, measure), name) for name in STRATEGIES]
        done = [one for one in results if one.throughput is not None]
        self.say("", "## Strategies", *table(STRATEGY_HEAD, map(strategy_row, done)))
        self.say("", "## Profiled step, ms", *table(PROFILE_HEAD, map(profile_row, done)))
        self.say("", "## Memory of rank 0, MiB", *table(MEMORY_HEAD, map(memory_row, done)))
        self.say("", "## Where a GPU stands", *(f"{title(one)}: {roof(one)}" for one in done))
        certificate = certify(done, "ddp")
        self.say("", to_markdown([settings_table(certificate)]))
        self.say(f"{len(certificate.flagged)} differences that nothing explains (none expected)")

    def rules(self) -> None:
        """A GPU that another process shares, and a cell that waits for its images."""
        measure = {"steady_min_s": 3.0, "steady_max_s": 3.0, "idle_s": 3.0}
        with competitor():
            shared = self.run(self.cell("ddp", measure), "shared")
        small: dict[str, Any] = {"model": {"name": "resnet8"}}
        fed = {"name": "synthetic", "train_images": 10_240}
        prefetched = fed | {"loader": "dataloader", "loader_workers": 1}
        control = self.run(self.cell("ddp", measure, fed, **small), "control")
        slow = self.run(self.cell("ddp", measure, prefetched, **small), "prefetched")
        self.say("", "## Rules fired")
        for name, found in (("shared GPU", shared), ("input", judge(slow, Peers([control])))):
            self.say(f"{name}: {'; '.join([*found.device_faults, *found.labels])}")
        self.say(f"control: {'; '.join([*control.device_faults, *control.labels])}")

    def sabotage(self) -> None:
        """What the certificate must flag."""
        measure = {"steady_min_s": 0.5, "steady_max_s": 0.5, "idle_s": 0.0, "sampler": False}
        honest = self.run(self.cell("ddp", measure), "honest")
        scripts = ROOT / "tests/sabotage"
        self.say("", "## Sabotage, as the certificate flags it")
        for strategy, script in (
            ("zero1_default_clipping", None),
            ("zero1_bf16_communication", None),
            ("deepspeed_zero1", scripts / "train_outer_autocast.py"),
            ("ddp", scripts / "train_with_adam.py"),
            ("ddp", scripts / "train_with_tf32.py"),
        ):
            name = script.stem if script else strategy
            found = self.run(self.cell(strategy, measure), name, script)
            other = found.cell.model_copy(update={"strategy": "suspect"})
            certificate = certify([honest, found.model_copy(update={"cell": other})], "ddp")
            flags = [f"{row.setting}: {row.flagged['suspect']}" for row in certificate.flagged]
            self.say(f"{name}: {'; '.join(flags) or 'NOT CAUGHT'}")


@contextlib.contextmanager
def competitor() -> Iterator[None]:
    """Another process at work on the GPU."""
    process = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        time.sleep(10)
        yield
    finally:
        process.kill()
        process.wait()


STRATEGY_HEAD = (
    "strategy", "images/s", "p50 ms", "p99 ms", "counter J/image", "integral off by %",
    "net J/image", "power W", "idle W", "phases off by %", "device faults",
)  # fmt: skip
PROFILE_HEAD = ("strategy", "step", "compute", "exposed comm.", "data", "host gaps", "sum - step")

MEMORY_HEAD = (
    "strategy", "state measured", "state predicted", "at rest", "allocated peak",
    "reserved peak", "NVML peak",
)  # fmt: skip


def strategy_row(metrics: Metrics) -> list[str]:
    """One line of the table of strategies."""
    speed, energy, times = metrics.throughput, metrics.efficiency, metrics.time_s
    assert speed is not None
    assert energy is not None
    assert times is not None
    shares = times.model_dump(exclude=PARTS_OF_OTHERS)
    total = times.total_s or 0.0
    off = sum(seconds or 0.0 for seconds in shares.values()) - total
    return [
        title(metrics),
        f"{speed.items_per_s:,.0f}",
        f"{speed.step_ms_p50:.2f}",
        f"{speed.step_ms_p99:.2f}",
        _number(energy.energy_per_item_j, 4),
        _number(energy.energy_disagreement_pct, 2),
        _number(energy.energy_net_per_item_j, 4),
        _number(energy.power_w, 0),
        _number(metrics.devices[0].idle_power_w, 0),
        f"{100 * off / total:.2f}",
        "; ".join(metrics.device_faults) or "none",
    ]


def profile_row(metrics: Metrics) -> list[str]:
    """One line of the table of profiles."""
    split = metrics.profile[0]
    parts = [
        split.compute_ms,
        split.exposed_communication_ms,
        split.data_ms,
        split.host_gap_ms,
    ]
    figures = [split.step_ms, *parts, sum(parts) - split.step_ms]
    return [title(metrics), *(f"{figure:.3f}" for figure in figures)]


def memory_row(metrics: Metrics) -> list[str]:
    """One line of the table of memory."""
    memory, device = metrics.memory, metrics.devices[0]
    assert memory is not None
    sizes = [sum(state.model_dump().values()) for state in (memory.measured[0], memory.predicted)]
    sizes += [memory.at_rest_bytes[0], device.torch_allocated_peak_bytes]
    sizes += [device.torch_reserved_peak_bytes, device.memory_used_peak_bytes]
    return [title(metrics), *(_number(size and size / 2**20, 0) for size in sizes)]


def roof(metrics: Metrics) -> str:
    """Its roofline in words."""
    roofs = metrics.roofs
    if roofs is None:
        return "unknown"
    return (
        f"{roofs.achieved_tflops:.0f} of {roofs.peak_tflops:.0f} TFLOP/s "
        f"({roofs.peak_share_pct:.0f} %); {roofs.statement}"
    )


def title(metrics: Metrics) -> str:
    """The strategy."""
    return metrics.cell.strategy


def _number(value: float | None, digits: int) -> str:
    return "none" if value is None else f"{value:.{digits}f}"


def table(head: Sequence[str], rows: Iterator[list[str]] | map[list[str]]) -> list[str]:
    """Rows of text in columns."""
    lines = [list(head), *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def main() -> None:
    """Run the parts of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the results")
    parser.add_argument("--dataset", choices=("cifar10", "synthetic"), default="cifar10")
    parser.add_argument("--data-dir", default="resources", help="folder of the data set")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    arguments = parser.parse_args()
    checks = Checks(arguments.output, arguments.dataset, arguments.data_dir)
    try:
        for part in arguments.parts:
            getattr(checks, part)()
    finally:
        report = "\n".join(checks.lines)
        arguments.output.mkdir(parents=True, exist_ok=True)
        (arguments.output / "report.md").write_text(report + "\n")
        print(report, flush=True)


if __name__ == "__main__":
    main()
