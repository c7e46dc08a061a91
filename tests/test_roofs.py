"""The roofline of a cell, the operand bytes it is made from, and the probe of the devices."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from parity_cases import DEVICE, ROOT
from real_cells import cell_named, metrics_of_run
from run_cell import run_cell
from shardmark.measurement.datasheet import datasheet_tflops
from shardmark.measurement.roofs import compute_roofs
from shardmark.metrics import Probe, Roofs
from shardmark.training.inspection import StepObserver


def probe_of(tflops: float, gb_per_s: float) -> Probe:
    return Probe(
        device=0,
        uuid=None,
        matmul_tflops=tflops,
        copy_gb_per_s=gb_per_s,
        all_reduce_gb_per_s=None,
    )


def test_a_memory_bound_cell_says_so_with_its_figures() -> None:
    roofs = compute_roofs(
        [probe_of(780, 4000)], 7_800_000_000, 10_400_000_000, 160_000_000, 15_000, "images"
    )
    assert roofs.achieved_tflops == pytest.approx(117)
    assert roofs.peak_share_pct == pytest.approx(15)
    assert roofs.hardware_share_pct == pytest.approx(20)
    assert roofs.achieved_gb_per_s == pytest.approx(2400)
    assert roofs.bandwidth_share_pct == pytest.approx(60)
    assert roofs.bound == "memory"
    assert roofs.statement == (
        "memory-bound: memory allows 25,000 images/s a GPU, where the other roof is at 100,000; "
        "measured 15,000, 60 % of the lower"
    )


def test_the_slowest_gpu_gives_the_roofs() -> None:
    roofs = compute_roofs(
        [probe_of(780, 4000), probe_of(600, 100)], 10**9, 10**9, 10**5, 1000, "images"
    )
    assert (roofs.peak_tflops, roofs.bandwidth_gb_per_s) == (600, 100)
    assert roofs.bound == "compute"


def test_without_all_operations_nothing_is_said_of_memory() -> None:
    roofs = compute_roofs([probe_of(780, 4000)], 10**9, 10**9, None, 1000, "images")
    assert (roofs.bound, roofs.memory_roof_items_per_s, roofs.statement) == (None, None, None)


@pytest.mark.parametrize(
    ("device", "precision", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", 312),
        ("NVIDIA A100 80GB PCIe", "fp16", 312),
        ("NVIDIA RTX A1000", "bf16", None),
        ("NVIDIA H200", "tf32", 494),
        ("Tesla V100-SXM2-32GB", "fp16", 125),
        ("Tesla V100-SXM2-32GB", "bf16", None),
    ],
)
def test_a_datasheets_peak_is_that_of_the_device_and_precision(
    device: str, precision: str, tflops: float | None
) -> None:
    assert datasheet_tflops(device, precision) == tflops


def test_operand_bytes_are_those_that_operations_read_and_write() -> None:
    observer = StepObserver("cpu")
    left, right = torch.ones(10, 20), torch.ones(20, 30)
    with observer.watching(nn.Identity()):
        product = left @ right
        product.view(-1).t()  # views move nothing
        torch.empty(1000)  # nor does an allocation
        product.add_(1.0)
    read_and_written = 10 * 20 + 20 * 30 + 10 * 30
    in_place = 2 * 10 * 30
    assert observer.operand_bytes == 4 * (read_and_written + in_place)


def test_a_real_cell_has_its_probes_and_roofs() -> None:
    metrics = metrics_of_run("ddp")
    assert len(metrics.probes) == 2
    assert all(one.all_reduce_gb_per_s and one.all_reduce_gb_per_s > 0 for one in metrics.probes)
    roofs = metrics.roofs
    print(metrics.probes, roofs)
    assert isinstance(roofs, Roofs)
    assert metrics.throughput is not None
    assert roofs.achieved_tflops == pytest.approx(
        roofs.flops_per_item * metrics.throughput.items_per_s_per_gpu / 1e12
    )
    assert 0 < roofs.peak_share_pct < 100
    # Every activation of ResNet-8 is read and written several times in bfloat16.
    assert 1_000_000 < (roofs.bytes_per_item or 0) < 20_000_000


@pytest.mark.skipif(DEVICE == "cpu", reason="on a CPU DataParallel makes no replicas")
def test_each_gpu_of_dataparallels_process_is_probed() -> None:
    first, second = metrics_of_run("dp").probes
    print(first, second)
    assert second.matmul_tflops == pytest.approx(first.matmul_tflops, rel=0.5)
    assert second.copy_gb_per_s == pytest.approx(first.copy_gb_per_s, rel=0.5)


def test_strategies_that_compute_alike_move_alike() -> None:
    one, other = (metrics_of_run(strategy).roofs for strategy in ("ddp", "fsdp2"))
    assert one is not None
    assert other is not None
    assert one.flops_per_item == other.flops_per_item
    assert one.bytes_per_item == pytest.approx(other.bytes_per_item, rel=0.25)


@pytest.mark.slow
def test_a_compiled_cell_has_no_roof_of_memory(tmp_path: Path) -> None:
    script = ROOT / "tests/compiling/train_compiled.py"
    metrics = run_cell(cell_named("fsdp2_compiled", 1), tmp_path, script=script)
    assert metrics.status == "ok", metrics.failure
    assert metrics.roofs is not None
    assert metrics.roofs.peak_share_pct > 0
    assert (metrics.roofs.bytes_per_item, metrics.roofs.bound) == (None, None)
