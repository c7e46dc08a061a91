"""What the makers' datasheets promise: dense matrix products, TFLOP/s. No torch import."""

from __future__ import annotations

import re

# By words of the device's name, the first that fit. NVIDIA's datasheets of A100, H100, H200 and
# V100, without sparsity; V100 has no bf16. Some H100 call themselves by their memory: HBM3 is the
# SXM module.
_PEAK_TFLOPS: dict[str, dict[str, float]] = {
    "H200": {"bf16": 989.0, "fp16": 989.0, "tf32": 494.0, "fp32": 67.0},
    "H100 PCIe": {"bf16": 756.0, "fp16": 756.0, "tf32": 378.0, "fp32": 51.0},
    "H100 80GB HBM3": {"bf16": 989.0, "fp16": 989.0, "tf32": 494.0, "fp32": 67.0},
    "A100": {"bf16": 312.0, "fp16": 312.0, "tf32": 156.0, "fp32": 19.5},
    "V100": {"fp16": 125.0, "fp32": 15.7},
}


def datasheet_tflops(device: str, precision: str) -> float | None:
    """Return the promised peak of a device; None where we do not know it."""
    for words, peaks in _PEAK_TFLOPS.items():
        if re.search(rf"\b{words}\b", device):
            return peaks.get(precision)
    return None
