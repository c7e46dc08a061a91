"""What is left of a cell when something goes wrong: a result or none, and never a process.

All that is killed from outside is killed here, in one process of pytest: the kernel's count of
those it killed for memory is one for the machine, and tells nobody which.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

import run_cell
from parity_cases import ROOT, case_of
from processes_that_end import command_line
from saved_cells import cell_arguments
from shardmark.cells import Cell
from shardmark.errors import UserError
from shardmark.launching.endings import Interrupted
from shardmark.metrics import Metrics, read_metrics
from start_up import stall_s

pytestmark = pytest.mark.slow

SCRIPT = ROOT / "tests/failing/train_misbehaves.py"
RUN_CELL = ROOT / "workflow/scripts/run_cell.py"


def cell_of(gpus: int = 2, **measure: float) -> Cell:
    """A cell of seconds."""
    cell = case_of("ddp", gpus, dataset={"name": "synthetic", "train_images": 256}).cell
    short = {"steady_min_s": 0.2, "steady_max_s": 0.2, "warmup_min_steps": 2, "warmup_max_steps": 4}
    return cell.model_copy(update={"measure": cell.measure.model_copy(update=short | measure)})


def misbehaving(
    how: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **limits: float
) -> Metrics:
    """The result of a cell whose last rank misbehaves."""
    monkeypatch.setenv("MISBEHAVIOUR", how)
    return run_cell.run_cell(cell_of(), folder, script=SCRIPT, **limits)


def test_a_hung_rank_is_found_by_its_silence_and_ends_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_s = stall_s()
    begin = time.monotonic()
    metrics = misbehaving("hang", tmp_path, monkeypatch, stall_s=limit_s)
    assert time.monotonic() - begin < 5 * limit_s, "gloo itself would wait for 30 minutes"
    assert metrics.status == "failed"
    assert metrics.failure is not None
    assert metrics.failure.exception.startswith("hung: no rank got further; rank 1 in training")
    assert metrics.failure.rank == 1
    assert any("misbehave" in line for line in metrics.failure.log_tail), "where it stood"


@pytest.mark.parametrize(
    ("how", "words"), [("crash", "died of SIGSEGV"), ("exit", "exit code 3 and left no exception")]
)
def test_a_rank_that_ends_without_an_exception_is_a_failure(
    how: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = misbehaving(how, tmp_path, monkeypatch)
    assert metrics.status == "failed"
    assert metrics.failure is not None
    assert metrics.failure.rank == 1
    assert words in metrics.failure.exception


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("exit without a word", "ended with exit code 0 before the training was over"),
        ("sys.exit", "SystemExit: 0"),
    ],
)
def test_a_training_that_ends_its_own_process_is_a_failure(
    how: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MISBEHAVIOUR", how)
    metrics = run_cell.run_cell(cell_of(gpus=1), tmp_path, script=SCRIPT)
    assert metrics.status == "failed"
    assert metrics.failure is not None
    assert words in metrics.failure.exception


def test_a_rank_that_is_killed_leaves_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Interrupted, match="something else killed rank 1"):
        misbehaving("killed", tmp_path, monkeypatch)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT", "SIGXCPU"])
def test_a_rank_that_is_asked_to_end_leaves_no_result(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Interrupted, match=f"something else ended rank 1 .{name}"):
        misbehaving(name, tmp_path, monkeypatch)


def test_a_rank_that_dies_of_a_full_shared_memory_leaves_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The signal of a write to mapped memory for which the disk has no room.
    with pytest.raises(Interrupted, match=r"rank 1 died of SIGBUS: /dev/shm .* run it again"):
        misbehaving("SIGBUS", tmp_path, monkeypatch)


def test_a_scratch_folder_that_is_removed_leaves_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCRATCH_FOLDER", str(tmp_path / "run"))
    with pytest.raises(UserError, match=r"run was removed while the cell ran. This is no result"):
        misbehaving("lose the folder", tmp_path / "run", monkeypatch)


def test_a_library_that_is_missing_is_no_result(tmp_path: Path) -> None:
    script = tmp_path / "train_without.py"
    script.write_text("import no_such_library\n")
    with pytest.raises(Interrupted, match="imported its libraries: ModuleNotFoundError"):
        run_cell.run_cell(cell_of(gpus=1), tmp_path, script=script)


def test_a_process_that_is_killed_alone_leaves_no_result(tmp_path: Path) -> None:
    script = tmp_path / "train_killed.py"
    script.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    with pytest.raises(Interrupted, match="something else killed rank 0"):
        run_cell.run_cell(cell_of(gpus=1), tmp_path, script=script)


@contextlib.contextmanager
def started(folder: Path, cell: Cell) -> Iterator[subprocess.Popen[str]]:
    """run_cell.py as the workflow calls it, come as far as its training."""
    output = folder / "metrics.json"
    command = [sys.executable, str(RUN_CELL), *cell_arguments(cell)]
    process = subprocess.Popen(
        [*command, "--output", str(output)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if "epoch 1" in line:
                break
        yield process
    finally:
        process.kill()
        process.communicate()


def with_word(children: list[psutil.Process], word: str) -> psutil.Process:
    return next(child for child in children if word in " ".join(command_line(child)))


VICTIMS: dict[str, Callable[[list[psutil.Process]], psutil.Process]] = {
    "a rank": lambda family: with_word(family[1:], "train_ddp.py"),
    "torchrun": lambda family: with_word(family[1:], "shardmark.launching.agent"),
    "the node's part": lambda family: with_word(family[1:], "shardmark.launching.node"),
    "the launcher": lambda family: family[0],
}


@pytest.mark.parametrize("victim", VICTIMS)
def test_a_kill_at_any_level_leaves_no_result_no_half_and_no_process(
    victim: str, tmp_path: Path
) -> None:
    with started(tmp_path, cell_of(steady_min_s=600)) as process:
        launcher = psutil.Process(process.pid)
        family = [launcher, *launcher.children(recursive=True)]
        assert len(family) >= 6, "launcher, node's part, sampler, torchrun, two ranks"
        VICTIMS[victim](family).kill()
        assert process.wait(timeout=20) != 0
        _, living = psutil.wait_procs(family, timeout=20)
        assert living == []
    assert not (tmp_path / "metrics.json").exists()
    assert [path.name for path in tmp_path.iterdir() if "run" not in path.name] == []


def test_a_cell_whose_launcher_was_killed_starts_anew(tmp_path: Path) -> None:
    with started(tmp_path, cell_of(gpus=1, steady_min_s=600)) as process:
        process.kill()
        process.wait()
    assert (tmp_path / ".metrics.run").is_dir()
    command = [sys.executable, str(RUN_CELL), "--output", str(tmp_path / "metrics.json")]
    command += cell_arguments(cell_of(gpus=1))
    subprocess.run(command, check=True, capture_output=True)
    assert read_metrics(tmp_path / "metrics.json").status == "ok"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "metrics.json",
        "steps.csv",
        "telemetry.csv",
    ]


def test_a_cell_that_runs_is_not_started_a_second_time(tmp_path: Path) -> None:
    with started(tmp_path, cell_of(gpus=1, steady_min_s=600)) as process:
        command = [sys.executable, str(RUN_CELL), "--output", str(tmp_path / "metrics.json")]
        command += cell_arguments(cell_of(gpus=1))
        second = subprocess.run(command, capture_output=True, text=True)
        assert process.poll() is None, "the first runs on"
        assert second.returncode == 1
        assert f"process {process.pid} of this machine runs it" in second.stderr
        assert "Traceback" not in second.stderr


MEMORY = Path("/sys/fs/cgroup/memory")


@pytest.mark.skipif(
    os.geteuid() != 0 or not (MEMORY / "memory.limit_in_bytes").exists(),
    reason="limiting memory needs root and version 1 control groups",
)
def test_the_kernels_out_of_memory_killer_is_a_result(tmp_path: Path) -> None:
    group = MEMORY / f"shardmark-{os.getpid()}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text("2500M")
        script = (
            "import sys, os; from pathlib import Path; import run_cell; from shardmark.cells "
            f"import Cell; Path({str(group / 'cgroup.procs')!r}).write_text(str(os.getpid()));"
            "cell = Cell.model_validate_json(sys.argv[1]);"
            f"done = run_cell.run_cell(cell, Path(sys.argv[2]), script=Path({str(SCRIPT)!r}));"
            "Path(sys.argv[2], 'metrics.json').write_text(done.model_dump_json(by_alias=True))"
        )
        command = [sys.executable, "-c", script, cell_of().model_dump_json(by_alias=True)]
        env = os.environ | {"PYTHONPATH": str(RUN_CELL.parent), "MISBEHAVIOUR": "eat memory"}
        done = subprocess.run([*command, str(tmp_path)], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    finally:
        group.rmdir()
    metrics = read_metrics(tmp_path / "metrics.json")
    assert metrics.status == "oom"
    assert metrics.failure is not None
    assert "out-of-memory killer" in metrics.failure.exception
    assert json.loads((tmp_path / "node0.json").read_text())["oom_kills"] >= 1
