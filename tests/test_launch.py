"""How cells end: real processes, and none of them left behind."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import run_cell
from processes_that_end import lives
from saved_cells import cell_arguments
from shardmark.cells import Cell
from shardmark.errors import UserError
from shardmark.launching import launch as launching
from shardmark.launching.agent import agent_command
from shardmark.launching.launch import LOG_TAIL_LINES, Ended, launch
from shardmark.launching.rank import is_out_of_memory
from shardmark.launching.scratch import CONTROLLER_STARTED
from shardmark.metrics import Metrics, read_metrics
from shardmark.slurm import allocation
from small_matrix import ROOT, cell_at

pytestmark = pytest.mark.timeout(120)
FAILING = ROOT / "tests/failing"
SCRIPTS = ROOT / "workflow/scripts"


def train(script: Path, cell: Cell, folder: Path, named: Cell | None = None, **env: str) -> Ended:
    """Launch a cell's training script; ``named`` is the name that its ranks get."""
    (folder / "cell.json").write_text((named or cell).model_dump_json(by_alias=True))
    arguments = ["--cell", str(folder / "cell.json"), "--scratch", str(folder)]
    return launch(script, arguments, cell, folder, extra_env=env)


def pids_in(text: str) -> list[int]:
    """The processes that a sleeping cell has named."""
    return [int(pid) for pid in re.findall(r"is (\d+)", text)]


def assert_gone(pids: list[int]) -> None:
    def living() -> list[int]:
        return [pid for pid in pids if lives(pid)]

    end = time.monotonic() + 5
    while living() and time.monotonic() < end:
        time.sleep(0.05)
    left = living()
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == [], f"{len(left)} of {len(pids)} processes lived on"


@pytest.mark.slow
def test_a_rank_that_raises_is_a_failure_with_its_phase_rank_and_exception(tmp_path: Path) -> None:
    cell = cell_at(gpus=2)
    ended = train(FAILING / "train_raises.py", cell, tmp_path, FAILURE="error")
    assert ended.exit_code != 0
    assert [node.ended_by for node in ended.nodes] == [None]
    status, failure = run_cell.find_failure(cell, ended) or ("", None)
    assert status == "failed"
    assert failure is not None
    assert failure.phase == "training"
    assert failure.rank == 1
    assert failure.exception == "ArithmeticError: the wheels came off"
    assert 0 < len(failure.log_tail) <= LOG_TAIL_LINES


@pytest.mark.parametrize(
    ("memory", "words"),
    [("memory", "can't allocate memory"), ("device memory", "CUDA out of memory")],
)
def test_running_out_of_memory_is_an_outcome_of_its_own(
    memory: str, words: str, tmp_path: Path
) -> None:
    cell = cell_at()
    ended = train(FAILING / "train_raises.py", cell, tmp_path, FAILURE=memory)
    status, failure = run_cell.find_failure(cell, ended) or ("", None)
    assert status == "oom", failure
    assert failure is not None
    assert failure.rank == 0
    assert words in failure.exception


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("NCCL error: Cuda failure 2 'out of memory'"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (ValueError("the wheels are out of memory"), False),
    ],
)
def test_memory_runs_out_in_several_ways(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) == expected


def test_a_world_that_was_clipped_is_the_users_to_mend(tmp_path: Path) -> None:
    ended = train(SCRIPTS / "train_ddp.py", cell_at(), tmp_path, named=cell_at(gpus=2))
    with pytest.raises(UserError, match="1 processes were started where the cell has 2") as caught:
        run_cell.find_failure(cell_at(gpus=2), ended)
    assert "--resources" in str(caught.value)
    assert not any("Traceback" in line for line in ended.log_tail)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "scontrol", "starts"),
    [
        (
            "scontrol show job 4711 failed: slurm_load_jobs error: Invalid job id specified",
            "/usr/bin/scontrol",
            True,
        ),
        ("scontrol cannot be asked (timed out after 30 seconds)", "/usr/bin/scontrol", False),
        ("scontrol cannot be asked (No such file or directory)", None, True),
    ],
)
def test_an_inherited_job_number_that_slurm_does_not_know_stops_no_cell_of_one_node(
    answer: str,
    scontrol: str | None,
    starts: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ask(*command: str) -> str:
        raise UserError(answer)

    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setattr(allocation, "ask", ask)
    monkeypatch.setattr(launching.shutil, "which", lambda _: scontrol)
    script = FAILING / "train_raises.py"
    if starts:
        ended = train(script, cell_at(), tmp_path, FAILURE="wheels")
        assert ended.failures[0]["exception"] == "ArithmeticError: the wheels came off"
    for gpus in (8,) if starts else (8, 1):
        with pytest.raises(UserError, match=r"Invalid job id|cannot be asked"):
            train(script, cell_at(gpus=gpus), tmp_path)


def test_a_loss_that_becomes_no_number_is_divergence(tmp_path: Path) -> None:
    diverging = cell_at(
        workloads__small__optimizer__learning_rate=1.0e30,
        workloads__small__schedule__warmup_epochs=0,
    )
    metrics = run_cell.run_cell(diverging, tmp_path)
    assert metrics.status == "diverged"
    assert metrics.failure is not None
    assert re.fullmatch(
        r"the mean loss of epoch 1 is (nan|inf); first (on rank 0 )?at step \d+",
        metrics.failure.exception,
    )
    assert metrics.throughput is None
    assert metrics.loss is not None
    assert metrics.loss.final is None
    assert Metrics.model_validate_json(metrics.model_dump_json(by_alias=True)) == metrics


def test_the_time_limit_ends_every_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launching, "GRACE_S", 1.0)
    cell = cell_at()
    ended = launch(FAILING / "train_sleeps.py", [], cell, tmp_path, limit_s=3)
    pids = pids_in(capfd.readouterr().out)
    assert len(pids) == 2
    assert_gone(pids)
    assert [node.ended_by for node in ended.nodes] == ["time limit"]
    assert 3 <= ended.nodes[0].seconds < 6
    status, failure = run_cell.find_failure(cell, ended) or ("", None)
    assert status == "timeout"
    assert failure is not None
    assert "the time limit ended it" in failure.exception
    assert any("rank 0 is" in line for line in failure.log_tail)


LAUNCH = """
import sys
from pathlib import Path
from shardmark.launching import launch
from shardmark.cells import Cell
launch.GRACE_S = 3.0
cell = Cell.model_validate_json(sys.argv[2])
launch.launch(Path(sys.argv[1]), [], cell, Path(sys.argv[3]))
print("lived on")
"""


@contextlib.contextmanager
def started(command: list[str], pattern: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A launcher, and what it has printed when its cell has come to ``pattern``."""
    with subprocess.Popen(
        [sys.executable, *command],
        env=os.environ | {"PYTHONPATH": str(SCRIPTS)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            text = ""
            for line in process.stdout:
                text += line
                if re.search(pattern, text):
                    yield process, text
                    return
            raise AssertionError(f"{pattern!r} is not in {text!r}")
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


@pytest.mark.parametrize(
    ("number", "gpus"), [(signal.SIGTERM, 1), (signal.SIGINT, 1), (signal.SIGTERM, 2)]
)
def test_a_signal_to_the_launcher_ends_its_processes(
    number: int, gpus: int, tmp_path: Path
) -> None:
    cell = cell_at(gpus=gpus).model_dump_json(by_alias=True)
    command = ["-c", LAUNCH, str(FAILING / "train_sleeps.py"), cell, str(tmp_path)]
    every_rank = r"(?s)" + r"rank \d is.*\n.*" * gpus
    with started(command, every_rank) as (process, text):
        process.send_signal(number)
        time.sleep(0.2)
        process.send_signal(number)  # an impatient second one must not leave them behind
        rest, _ = process.communicate(timeout=30)  # ten times its grace
    assert len(pids_in(text)) == 2 * gpus
    assert_gone(pids_in(text))
    assert process.returncode == 128 + number
    assert "lived on" not in rest
    assert "Traceback" not in rest, rest


def test_two_signals_at_once_to_torchrun_print_no_fault(tmp_path: Path) -> None:
    script = tmp_path / "train_waits.py"
    script.write_text("import time\nprint('it is there', flush=True)\ntime.sleep(600)\n")
    options = ["--nproc-per-node=2", "--standalone"]
    _, *command = agent_command(tmp_path / "report", options, [str(script)])
    with started(command, r"(?s)(it is there.*){2}") as (process, _):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.0005)
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in rest, rest


def test_a_cell_that_is_ended_from_outside_leaves_no_result(tmp_path: Path) -> None:
    cell = cell_at(workloads__small__epochs=10_000)
    output = tmp_path / "metrics.json"
    arguments = [*cell_arguments(cell), "--output", str(output)]
    arguments += ["--time-limit-minutes", "10"]
    command = [str(SCRIPTS / "run_cell.py"), *arguments]
    with started(command, r"epoch 1: loss") as (process, _):
        children = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
        process.terminate()
        process.communicate(timeout=30)
    assert len(children) >= 2, "the rank and the sampler"
    assert process.returncode == 128 + signal.SIGTERM
    assert_gone(children)
    assert not output.exists()


def test_what_a_finished_cell_leaves_running_is_ended(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "train_leaves.py"
    script.write_text(
        "import subprocess, sys\n"
        "sleep = [sys.executable, '-c', 'import time; time.sleep(600)']\n"
        "left = subprocess.Popen(sleep, start_new_session=True, stdout=subprocess.DEVNULL)\n"
        "print(f'it is {left.pid}', flush=True)\n"
    )
    ended = launch(script, [], cell_at(), tmp_path)
    assert ended.exit_code == 0
    assert_gone(pids_in(capfd.readouterr().out))


def test_the_end_of_the_output_is_kept_and_all_of_it_is_passed_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "train_talks.py"
    script.write_text(
        "import sys\n"
        "for number in range(100): print('line', number)\n"
        "sys.stdout.buffer.write(b'caf\\xe9')\n"
    )
    ended = launch(script, [], cell_at(), tmp_path)
    assert ended.log_tail == [*(f"line {n}" for n in range(61, 100)), "caf�"]
    assert capfd.readouterr().out.splitlines()[:2] == ["line 0", "line 1"]


def test_the_earliest_failure_is_the_cause(tmp_path: Path) -> None:
    script = tmp_path / "train_fails.py"
    script.write_text(
        "import json\n"
        "for rank, time in ((0, 20.5), (1, 9.25)):\n"
        "    failure = dict(rank=rank, time=time, kind='failed', phase='build', exception='e')\n"
        f"    path = '{tmp_path}/failure.rank%d.json' % rank\n"
        "    open(path, 'w').write(json.dumps(failure))\n"
        "raise SystemExit(1)\n"
    )
    _, failure = run_cell.find_failure(cell_at(), launch(script, [], cell_at(), tmp_path)) or (
        "",
        None,
    )
    assert failure is not None
    assert failure.rank == 1


def result(cell: Cell, status: Any) -> Metrics:
    reason = run_cell.Failure.plain("the wheels came off")
    return run_cell.bare_metrics(cell, status, reason)


def test_a_failure_does_not_take_the_place_of_a_good_result(tmp_path: Path) -> None:
    cell, path = cell_at(), tmp_path / "metrics.json"
    run_cell.keep_good_result(path, result(cell, "oom"))
    path.write_text(result(cell, "ok").model_dump_json(by_alias=True))
    run_cell.keep_good_result(path, result(cell, "ok"))
    with pytest.raises(UserError, match=r"ended as oom .*wheels.*previous good result stays"):
        run_cell.keep_good_result(path, result(cell, "oom"))
    assert read_metrics(path).status == "ok"
    assert read_metrics(tmp_path / "metrics.failed.json").status == "oom"
    # Of another definition it is no result any more.
    run_cell.keep_good_result(path, result(cell_at(measure__steady_max_s=9), "oom"))


def test_only_a_result_that_ended_since_the_controller_started_was_made_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CONTROLLER_STARTED, str(datetime(2026, 1, 2, tzinfo=UTC).timestamp()))
    cell, path = cell_at(), tmp_path / "metrics.json"
    for day, meanwhile in ((1, False), (3, True)):
        ended = {"ended_at": datetime(2026, 1, day, tzinfo=UTC).isoformat()}
        made = result(cell, "ok").model_copy(update={"provenance": ended})
        # The file is young: Snakemake puts an old result back as a copy.
        path.write_text(made.model_dump_json(by_alias=True))
        assert run_cell.was_made_meanwhile(cell, path) == meanwhile


def test_a_cell_of_several_nodes_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="spans 2 nodes"):
        launch(tmp_path / "no such script", [], cell_at(gpus=8), tmp_path)


def test_an_unsupported_cell_starts_nothing(tmp_path: Path) -> None:
    metrics = run_cell.run_cell(cell_at("dp", gpus=2), tmp_path)
    assert metrics.status == "unsupported"
    assert list(tmp_path.iterdir()) == []
    assert json.loads(metrics.model_dump_json(by_alias=True))["throughput"] is None
