"""Rules about a cell's validity, and the other results that they may use. No torch import."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from shardmark.metrics import Device, Metrics


class Peers:
    """The results that a cell's figures are compared with.

    Args:
        results: results of one matrix; the cell's own may be among them.
    """

    def __init__(self, results: Iterable[Metrics]) -> None:
        self._values: dict[Hashable, list[tuple[Metrics, Any]]] = defaultdict(list)
        for metrics in results:
            self._values["cells"].append((metrics, metrics))
            if (rate := probed_tflops(metrics)) is not None:
                self._values["probe", kind_of_gpu(metrics)].append((metrics, rate))
            for _, device in gpus_of(metrics):
                self._values["limit", device.name].append((metrics, device.power_limit_w))
                key = ("clock", device.name, same_work(metrics))
                self._values[key].append((metrics, device.sm_clock_mean_mhz))

    def others(self, metrics: Metrics) -> Iterator[Metrics]:
        """Yield the other results."""
        yield from self._of("cells", metrics)

    def probes(self, metrics: Metrics) -> list[float]:
        """Return the probed TFLOP/s of the other cells on GPUs of this kind."""
        return self._of(("probe", kind_of_gpu(metrics)), metrics)

    def limits_w(self, metrics: Metrics, device: Device) -> list[float]:
        """Return the power limits of the other cells' GPUs of this name."""
        return self._of(("limit", device.name), metrics)

    def clocks_mhz(self, metrics: Metrics, device: Device) -> list[float]:
        """Return the clocks of GPUs of this name in the other cells that do the same work."""
        return self._of(("clock", device.name, same_work(metrics)), metrics)

    def _of(self, key: Hashable, metrics: Metrics) -> list[Any]:
        known = self._values.get(key, [])
        return [value for other, value in known if other is not metrics and value is not None]


Others = Peers | None


@dataclass(frozen=True)
class Rule:
    """A rule that names a problem of a cell.

    Attributes:
        name: the problem that it detects.
        condition: when it applies, in words.
        reasons: yields why it applies to a cell; nothing if it does not.
        unknown: yields why it could not be evaluated; nothing if it could.

    The second argument of both functions is None for a cell that has just ended, because its peers
    are not known yet. A rule that needs peers then yields nothing.
    """

    name: str
    condition: str
    reasons: Callable[[Metrics, Others], Iterator[str]]
    unknown: Callable[[Metrics, Others], Iterator[str]]


def gpus_of(metrics: Metrics) -> Iterator[tuple[str, Device]]:
    """Yield each GPU of a cell with its title."""
    for device in metrics.devices:
        if device.kind == "gpu":
            yield device.title, device


def probed_tflops(metrics: Metrics) -> float | None:
    """Return the probed TFLOP/s of the slowest GPU; None on a CPU, whose probe says little."""
    if metrics.cell.device == "cpu" or not metrics.probes:
        return None
    return min(probe.matmul_tflops for probe in metrics.probes)


def kind_of_gpu(metrics: Metrics) -> Hashable:
    """Return the key of comparable probes: GPU names and precision."""
    return frozenset(device.name for device in metrics.devices), metrics.cell.definition.precision


def same_work(metrics: Metrics) -> Hashable:
    """Return the key of cells whose GPUs have the same load; the seed does not matter."""
    cell = metrics.cell
    return cell.workload, cell.strategy, cell.gpus


def never_unknown(metrics: Metrics, others: Others) -> Iterator[str]:
    """Yield nothing: the rule can always be evaluated."""
    yield from ()
