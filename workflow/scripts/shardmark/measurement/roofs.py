"""Compare a cell's speed with what its devices can do, by the roofline model.

Williams et al., "Roofline: An Insightful Visual Performance Model for Multicore Architectures"
(CACM 2009). The roofs come from the cell's own probe of its devices. This module does not import
torch.
"""

from __future__ import annotations

from collections.abc import Sequence

from shardmark.metrics import Bound, Probe, Roofs


def compute_roofs(
    probes: Sequence[Probe],
    flops_per_item: int | None,
    hardware_flops_per_item: int | None,
    bytes_per_item: int | None,
    items_per_s_per_gpu: float,
    unit: str,
    why_uncounted: str | None = None,
) -> Roofs:
    """Return the figures and roofs of the slowest GPU, which sets the pace.

    Args:
        probes: one for every device of the cell.
        flops_per_item: FLOPs of forward and backward pass; None if they could not be counted.
        hardware_flops_per_item: the same with what activation checkpointing computes again.
        bytes_per_item: bytes that operations read and write, each operand once and nothing cached
            or fused; None if not all operations could be observed.
        items_per_s_per_gpu: throughput in steady state.
        unit: what an item is.
        why_uncounted: why the FLOPs could not be counted.
    """
    peak = min(one.matmul_tflops for one in probes)
    bandwidth = min(one.copy_gb_per_s for one in probes)
    achieved = _per_s(flops_per_item, items_per_s_per_gpu, 1e12)
    executed = _per_s(hardware_flops_per_item, items_per_s_per_gpu, 1e12)
    moved = _per_s(bytes_per_item, items_per_s_per_gpu, 1e9)
    compute_roof = peak * 1e12 / flops_per_item if flops_per_item else None
    memory_roof = bandwidth * 1e9 / bytes_per_item if bytes_per_item else None
    statement = None
    bound: Bound | None = None
    if compute_roof is not None and memory_roof is not None:
        bound, statement = _bound(compute_roof, memory_roof, items_per_s_per_gpu, unit)
    return Roofs(
        flops_per_item=flops_per_item,
        hardware_flops_per_item=hardware_flops_per_item,
        why_uncounted=why_uncounted,
        bytes_per_item=bytes_per_item,
        peak_tflops=peak,
        bandwidth_gb_per_s=bandwidth,
        achieved_tflops=achieved,
        peak_share_pct=_share_pct(achieved, peak),
        hardware_share_pct=_share_pct(executed, peak),
        achieved_gb_per_s=moved,
        bandwidth_share_pct=_share_pct(moved, bandwidth),
        compute_roof_items_per_s=compute_roof,
        memory_roof_items_per_s=memory_roof,
        bound=bound,
        statement=statement,
    )


def _per_s(per_item: int | None, items_per_s: float, unit: float) -> float | None:
    return per_item * items_per_s / unit if per_item else None


def _share_pct(achieved: float | None, peak: float) -> float | None:
    return None if achieved is None else 100 * achieved / peak


def _bound(compute: float, memory: float, measured: float, unit: str) -> tuple[Bound, str]:
    bound: Bound = "memory" if memory < compute else "compute"
    roof, other = sorted((compute, memory))
    return bound, (
        f"{bound}-bound: {bound} allows {roof:,.0f} {unit}/s a GPU, where the other roof is at "
        f"{other:,.0f}; measured {measured:,.0f}, {100 * measured / roof:.0f} % of the lower"
    )
