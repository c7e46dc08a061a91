"""Parity cases that share a machine's GPUs: which they take, and who fills them next."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

import make_oracle
import run_parity
from parity_cases import DEVICE, ROOT, STRATEGIES, case_of, launched
from shardmark.cells import Cell
from shardmark.measurement.clocks import Phases
from shardmark.measurement.gpu_check import count_gate_ranks
from shardmark.metrics import Failure
from shardmark.parity import gate as parity_gate
from shardmark.parity import gpu_turn
from shardmark.parity.oracle import Trajectory
from shardmark.parity.side_by_side import ALONE_VARIABLE, TURN_VARIABLE, is_taken, take
from shardmark.processes.gpu_sharing import SHARED_DEVICE
from shardmark.training.runtime import Runtime
from shardmark.training.strategy import Task
from simulated_nvml import Gpu, simulate
from test_language_gate import GPT
from train_ddp import Ddp


def cell_of(strategy: str, ranks: int) -> Cell:
    return case_of(strategy, ranks).cell.model_copy(update={"device": "cuda"})


def test_cases_of_one_rank_spread_over_the_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    simulate(monkeypatch, [Gpu() for _ in range(4)])
    taken = [
        run_parity.gpu_variables(cell_of(strategy, 1), tmp_path)["CUDA_VISIBLE_DEVICES"]
        for strategy in STRATEGIES
    ]
    assert len(set(taken)) > 2
    pair = run_parity.gpu_variables(cell_of("ddp", 2), tmp_path)["CUDA_VISIBLE_DEVICES"]
    assert len(set(pair.split(","))) == 2


def test_only_the_gpus_of_the_job_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    simulate(monkeypatch, [Gpu() for _ in range(4)])
    given = run_parity.gpu_variables(cell_of("ddp", 2), tmp_path)
    assert set(given["CUDA_VISIBLE_DEVICES"].split(",")) == {"1", "3"}
    assert SHARED_DEVICE not in given
    fewer = run_parity.gpu_variables(cell_of("ddp", 4), tmp_path)
    assert fewer[SHARED_DEVICE] == "1"
    assert Path(fewer[TURN_VARIABLE]).parent == tmp_path


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    """A process group of one, on the CPU in the place of a GPU."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Runtime(0, 1, range(1), torch.device("cpu"), "gloo", shared_device=False)
    dist.destroy_process_group()


HOLDS = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); print(1)"
HOLDS += "; sys.stdout.flush(); sys.stdin.read()"


@pytest.fixture
def another_case(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has the turn until its input is closed."""
    command = [sys.executable, "-c", HOLDS, str(tmp_path / "turn")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_where_memory_is_ample_nobody_waits(
    runtime: Runtime,
    another_case: subprocess.Popen[bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpu_turn, "_free_bytes", lambda runtime: 800)
    with contextlib.ExitStack() as turn:
        gpu_turn._wait_for_room(runtime, 100, tmp_path / "turn", turn, pytest.fail)


def test_a_case_waits_for_its_turn_and_then_for_room(
    runtime: Runtime,
    another_case: subprocess.Popen[bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free, waited = [150], []

    def pass_time() -> None:
        waited.append(free[0])
        if len(waited) == 2:  # the other case has taken its memory, and leaves the turn
            assert another_case.stdin is not None
            another_case.stdin.close()
            another_case.wait()
            free[0] = 50
        if len(waited) == 4:  # a third one has ended
            free[0] = 120

    monkeypatch.setattr(gpu_turn, "_free_bytes", lambda runtime: free[0])
    monkeypatch.setattr(gpu_turn, "POLL_S", 0.01)
    with contextlib.ExitStack() as turn:
        gpu_turn._wait_for_room(runtime, 100, tmp_path / "turn", turn, pass_time)
        assert waited == [150, 150, 50, 50]
        with contextlib.ExitStack() as mine:
            assert not take(tmp_path / "turn", mine), "it has the turn until it is done"
    with contextlib.ExitStack() as mine:
        assert take(tmp_path / "turn", mine)


def test_a_case_does_not_wait_for_ever(
    runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_turn, "_free_bytes", lambda runtime: 0)
    monkeypatch.setattr(gpu_turn, "POLL_S", 0.01)
    monkeypatch.setattr(gpu_turn, "LONGEST_WAIT_S", 0.1)
    waited: list[int] = []
    with contextlib.ExitStack() as turn:
        gpu_turn._wait_for_room(runtime, 1, tmp_path / "turn", turn, lambda: waited.append(1))
    assert waited


@pytest.mark.skipif(DEVICE != "cuda", reason="on a CPU no case runs again")
@pytest.mark.parametrize(("alone", "status"), [("passes", "passed"), ("fails, too", "error")])
def test_a_case_that_ran_out_of_memory_runs_again_alone(
    alone: str, status: str, oracles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALONE_IT", alone)
    script = ROOT / "tests/failing/train_runs_out_of_memory.py"
    parity = launched(case_of("ddp", 1), oracles, script)
    assert parity.status == status
    assert ("OutOfMemoryError" in (parity.reason or "")) == (status == "error")


@pytest.mark.parametrize(("nodes", "attempts"), [(1, [None, "1"]), (2, [None])])
def test_only_a_case_on_one_node_of_gpus_runs_again(
    nodes: int,
    attempts: list[str | None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    simulate(monkeypatch, [Gpu() for _ in range(4)])
    launches: list[str | None] = []

    def launch(*_: object, extra_env: dict[str, str], **__: object) -> None:
        launches.append(extra_env.get(ALONE_VARIABLE))

    monkeypatch.setattr(run_parity, "launch", launch)
    monkeypatch.setattr(run_parity, "require_whole", lambda oracle: None)
    out_of_memory = ("oom", Failure.plain("out of memory"))
    monkeypatch.setattr(run_parity, "find_failure", lambda *_: out_of_memory)
    case = case_of("ddp", 4)
    changes = {"device": "cuda", "gpus_per_node": 4 // nodes, "nodes": nodes}
    again = case.model_copy(update={"cell": case.cell.model_copy(update=changes)})
    oracle, result = tmp_path / "oracle.pt", tmp_path / "gate/w/ddp/ranks4.json"
    assert run_parity.run_parity(again, oracle, result).status == "error"
    assert launches == attempts
    assert capsys.readouterr().out.count("out of memory: runs again") == len(attempts) - 1


@pytest.fixture
def free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Free memory of simulated GPUs, GiB; the last number is today's."""
    free = [80]
    monkeypatch.setattr(gpu_turn, "_turn_file", lambda runtime: tmp_path / ".turn.node")
    monkeypatch.setattr(gpu_turn, "_free_bytes", lambda runtime: free[-1] * 2**30)
    monkeypatch.setattr(gpu_turn, "_needed_bytes", lambda _, parameters: parameters or 48 * 2**30)
    monkeypatch.setattr(gpu_turn, "POLL_S", 0.01)
    return free


def test_while_a_case_runs_alone_no_other_starts(
    runtime: Runtime, free: list[int], tmp_path: Path
) -> None:
    command = [sys.executable, "-c", HOLDS, str(tmp_path / ".alone.node")]
    alone = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert alone.stdout is not None
    alone.stdout.readline()
    waited: list[int] = []

    def pass_time() -> None:
        waited.append(1)
        if len(waited) == 3:
            alone.communicate(b"")

    # Also a small model, for which there would be room.
    with gpu_turn.room_for(runtime, 0, pass_time):
        assert len(waited) == 3


def test_a_case_that_runs_alone_waits_for_memory_and_keeps_others_out(
    runtime: Runtime, free: list[int], tmp_path: Path
) -> None:
    free[:] = [20]
    waited: list[bool] = []

    def pass_time() -> None:
        waited.append(is_taken(tmp_path / ".alone.node"))
        if len(waited) == 2:
            free.append(50)

    with gpu_turn.alone_on_gpus(runtime, pass_time):
        assert waited == [True, True]
        assert is_taken(tmp_path / ".alone.node")
        assert is_taken(tmp_path / ".turn.node")
    assert not is_taken(tmp_path / ".alone.node")


@pytest.fixture
def run_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, runtime: Runtime
) -> Callable[..., None]:
    """Runs a case of the gate with stand-ins for parts of it."""

    def run(**stand_ins: Any) -> None:
        always = {"start_runtime": lambda cell: runtime, "left_out_by": lambda oracle: None}
        for name, stand_in in (always | stand_ins).items():
            monkeypatch.setattr(parity_gate, name, stand_in)
        case = case_of("ddp", 1, **GPT)
        parity_gate.run_case(Ddp, case, tmp_path / "oracle.pt", tmp_path, Phases())

    return run


def entering(name: str, seen: list[str]) -> Callable[..., AbstractContextManager[Any]]:
    """A context that notes when it is entered and left."""

    @contextlib.contextmanager
    def enter(*_: object) -> Iterator[Callable[[], object]]:
        seen.append(name)
        yield lambda: None
        seen.append(f"left {name}")

    return enter


def test_a_case_runs_alone_from_its_first_training_to_its_last(
    monkeypatch: pytest.MonkeyPatch, run_with: Callable[..., None]
) -> None:
    seen: list[str] = []

    def train(_: object, task: Task, *__: object) -> Trajectory:
        seen.append("surrogate" if task.surrogate else "real")
        return Trajectory([], {}, {}, {})

    monkeypatch.setenv(ALONE_VARIABLE, "1")
    run_with(alone_on_gpus=entering("alone", seen), room_for=pytest.fail, _train=train)
    assert seen == ["alone", "surrogate", "real", "left alone"]


def test_a_model_that_takes_long_to_build_is_built_before_its_turn_on_the_gpus(
    run_with: Callable[..., None],
) -> None:
    seen: list[str] = []
    real_task = parity_gate.make_task

    def make_task(cell: Cell, runtime: Runtime, workload: Any, **surrogate: bool) -> Task:
        task = real_task(cell, runtime, workload, **surrogate)
        return task if surrogate else replace(task, build_outline=build, fill=None)

    def build() -> nn.Module:
        seen.append("built")
        return nn.Linear(1, 1)

    def train(_: object, task: Task, *__: object) -> Trajectory:
        if not task.surrogate:
            seen.append("trains")
            first, again = task.build_outline(), task.build_outline()
            assert first is not again
        return Trajectory([], {}, {}, {})

    on_host, on_gpus = entering("on the host", seen), entering("on the GPUs", seen)
    run_with(room_on_host=on_host, room_for=on_gpus, make_task=make_task, _train=train)
    assert seen[seen.index("on the host") :] == [
        "on the host",
        "built",
        "on the GPUs",
        "left on the host",
        "trains",
        "built",
        "left on the GPUs",
    ]


def test_no_more_models_are_built_than_the_host_has_memory_for(
    runtime: Runtime, free: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    available = [16 * 2**30]
    memory = SimpleNamespace(virtual_memory=lambda: SimpleNamespace(available=available[0]))
    monkeypatch.setattr(gpu_turn, "psutil", memory)
    waited: list[int] = []

    def pass_time() -> None:
        waited.append(1)
        if len(waited) == 2:  # what the others built is on their GPUs
            available[0] = 24 * 2**30

    with (
        gpu_turn.room_on_host(runtime, 2**30, pytest.fail),
        gpu_turn.room_on_host(runtime, 2**30, pytest.fail),
        gpu_turn.room_on_host(runtime, 2**30, pass_time),
    ):
        assert len(waited) == 2


def test_oracles_spread_over_the_gpus_and_never_share_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda gpu: None)
    monkeypatch.setattr(make_oracle.time, "sleep", pytest.fail)
    turn = tmp_path / ".turn.node"
    with contextlib.ExitStack() as first:
        device = make_oracle.take_gpu(turn, "gpt 2", first)
        names = (f"gpt {ranks}" for ranks in range(3, 30))
        others = {
            make_oracle.take_gpu(turn, name, contextlib.ExitStack())
            for name in names
            if zlib.crc32(name.encode()) % 4 != device.index
        }
        assert len(others) == 3
        waited: list[float] = []

        def pass_time(seconds: float) -> None:
            waited.append(seconds)
            first.close()

        monkeypatch.setattr(make_oracle.time, "sleep", pass_time)
        with contextlib.ExitStack() as again:
            assert make_oracle.take_gpu(turn, "gpt 2", again) == device
    assert waited == [1.0]


def test_no_case_waits_for_more_memory_than_there_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Runtime(0, 1, range(1), torch.device("cuda", 0), "nccl", shared_device=False)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 * 2**30, 80 * 2**30))
    most = 48 * 2**30
    assert gpu_turn._needed_bytes(runtime, None) == most
    assert gpu_turn._needed_bytes(runtime, 10**10) == most
    assert gpu_turn._needed_bytes(runtime, 10**9) == 24 * 10**9 + 3 * 2**30


@pytest.mark.parametrize(("target", "threads"), [("parity", 2), ("cell", 6)])
def test_on_a_gpu_machine_cases_share_the_cores_and_cells_do_not(
    target: str, threads: int, tmp_path: Path
) -> None:
    paths = {
        "parity": "results/checks/parity/loader/ddp/ranks2.json",
        "cell": "results/checks/loader/ddp/gpus2/seed0/metrics.json",
    }
    command = [sys.executable, "-m", "snakemake", "-n", "--nolock", paths[target]]
    command += ["--profile", "profiles/local", "--cores", "6", "--configfile", "config/checks.yaml"]
    plan = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=dict(os.environ))
    assert plan.returncode == 0, plan.stderr
    assert f"threads: {threads}" in plan.stdout + plan.stderr


def test_a_gpu_holds_as_many_ranks_of_the_gate_as_its_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    simulate(monkeypatch, [Gpu(), Gpu()])
    assert count_gate_ranks() == 2 * (141 // 2)
