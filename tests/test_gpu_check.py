"""Why torch does not see the GPUs that cells ask for, in words that say what to do."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path

import pytest
import torch

from run_cell import run_cell
from shardmark.errors import UserError
from shardmark.measurement import gpu_check
from shardmark.measurement.gpu_check import TorchCuda, ask_torch, why_no_gpus, why_too_few
from shardmark.measurement.telemetry import visible_gpus
from shardmark.training.runtime import start_runtime
from simulated_nvml import Gpu, simulate
from small_matrix import cell_at

CUDA = TorchCuda(version="2.15.0", cuda="13.0", count=0, error=None)


def torch_answer(**changes: object) -> TorchCuda:
    return CUDA.model_copy(update=changes)


def test_enough_gpus_need_no_reason() -> None:
    for count in (4, 8):
        assert why_too_few(4, torch_answer(count=count), driver=True, visible=None) == ""


def test_fewer_gpus_than_the_largest_cell_needs() -> None:
    reason = why_too_few(8, torch_answer(count=4), driver=True, visible=None)
    assert "torch sees 4 GPU(s), and the largest cell needs 8" in reason
    assert "matrix.gpus" in reason
    hidden = why_too_few(8, torch_answer(count=2), driver=True, visible="0,1")
    assert "CUDA_VISIBLE_DEVICES is '0,1'" in hidden


def test_a_build_for_cpus_only() -> None:
    reason = why_too_few(
        1, torch_answer(version="2.15.0+cpu", cuda=None), driver=True, visible=None
    )
    assert "torch 2.15.0+cpu is a build for CPUs only" in reason
    assert "make TORCH=site" in reason


def test_a_machine_without_a_driver() -> None:
    reason = why_too_few(
        1, torch_answer(error="Found no NVIDIA driver"), driver=False, visible=None
    )
    assert "no NVIDIA driver" in reason
    assert "built for CUDA 13.0" in reason
    assert "cluster.device to cpu" in reason


@pytest.mark.parametrize("visible", ["", "  "])
def test_every_gpu_hidden(visible: str) -> None:
    reason = why_too_few(1, torch_answer(error="No CUDA GPUs"), driver=True, visible=visible)
    assert "CUDA_VISIBLE_DEVICES is set and empty" in reason


def test_a_driver_too_old_for_the_build() -> None:
    error = "The NVIDIA driver on your system is too old (found version 12040)."
    reason = why_too_few(1, torch_answer(error=error), driver=True, visible=None)
    assert "the driver does not serve torch 2.15.0, which is built for CUDA 13.0" in reason
    assert error in reason


def test_a_driver_that_shows_no_gpu_and_says_nothing() -> None:
    reason = why_too_few(1, torch_answer(), driver=True, visible="7")
    assert reason.endswith("no GPU found")


def test_a_torch_that_cannot_be_imported() -> None:
    reason = why_too_few(1, "OSError: libcudart.so.13: cannot open", driver=True, visible=None)
    assert reason == "torch cannot be imported (OSError: libcudart.so.13: cannot open)"


def test_a_build_for_rocm_is_refused_though_it_sees_gpus() -> None:
    rocm = torch_answer(version="2.15.0+rocm7.1", cuda=None, hip="7.1", count=8)
    reason = why_too_few(1, rocm, driver=False, visible=None)
    assert reason.startswith("torch 2.15.0+rocm7.1 is a build for ROCm 7.1: energy, power")
    assert "run on NVIDIA GPUs" in reason


def test_a_rank_refuses_rocm_before_it_joins_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "7.1")
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"is a build for ROCm 7\.1"):
        start_runtime(cell_at(cluster__device="cuda"))


@pytest.mark.parametrize(
    ("visible", "count", "sliced"),
    [
        (None, 1, None),
        (None, 2, "GPU-1"),
        ("0", 2, None),
        ("1,0", 1, "GPU-1"),
        ("MIG-4d7c", 1, "MIG-4d7c"),
    ],
)
def test_a_gpu_in_mig_mode_is_refused(
    visible: str | None, count: int, sliced: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulate(monkeypatch, [Gpu(), Gpu(mig=True)])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    if sliced is None:
        assert visible_gpus(count) == ["GPU-0"]
        return
    with pytest.raises(UserError, match=f"{sliced} is a GPU in MIG mode.*ask for whole GPUs"):
        visible_gpus(count)


def test_the_planner_refuses_mig_where_torch_sees_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    simulate(monkeypatch, [Gpu(), Gpu(mig=True)])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setattr(gpu_check, "ask_torch", lambda: torch_answer(count=1))
    assert "GPU-1 is a GPU in MIG mode" in why_no_gpus(1)


def test_a_cell_that_finds_no_driver_says_so_and_starts_no_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if Path("/proc/driver/nvidia/version").exists():
        pytest.skip("this machine has a driver")
    with pytest.raises(UserError, match=r"no NVIDIA driver answers .*no GPU can be measured here"):
        run_cell(cell_at(cluster__device="cuda"), tmp_path)


def test_torch_is_asked_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    answer = ask_torch()
    assert isinstance(answer, TorchCuda)
    assert answer.version.split("+")[0] == metadata.version("torch").split("+")[0]
    assert answer.count == 0
    assert answer.error


def test_a_broken_torch_says_why_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text("print('noise')\nraise ImportError('libcudart is missing')")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", path)
    assert ask_torch() == "ImportError: libcudart is missing"
    assert why_no_gpus(1) == "torch cannot be imported (ImportError: libcudart is missing)"
