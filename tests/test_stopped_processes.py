"""What is stopped, or hangs within a driver, holds no cell up: each wait has a limit."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import psutil
import pynvml
import pytest

from processes_that_end import command_line
from shardmark.doctor.gpu_findings import check_gpus, lowered_and_default_mhz, sample_gpus
from shardmark.doctor.limited_run import run_limited
from shardmark.errors import UserError
from shardmark.launching import launch as launching
from shardmark.launching import node
from shardmark.launching.launch import launch
from shardmark.launching.node import no_survivors
from shardmark.measurement import gpu_check, telemetry
from shardmark.measurement.environment import driver_and_topology
from shardmark.measurement.telemetry import gpu_facts, gpu_indices, sampling, visible_gpus
from shardmark.processes.ending import end
from simulated_nvml import Gpu, simulate
from small_matrix import cell_at

pytestmark = pytest.mark.timeout(100)
# A rank that stops the process of its node whose command holds a word.
STOP = """
import os, psutil, sys, time
above, running = os.getppid(), psutil.process_iter(["ppid", "cmdline"])
family = [one for one in running if above in (one.pid, one.info["ppid"]) and one.pid != os.getpid()]
(victim,) = [one for one in family if sys.argv[1] in (one.info["cmdline"] or ())]
victim.suspend()
time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def stop(tmp_path: Path) -> Path:
    script = tmp_path / "stop.py"
    script.write_text(STOP)
    return script


@contextmanager
def stopping(word: str) -> Iterator[None]:
    """Stop the child of this process whose command holds a word, as soon as it is there."""

    def watch() -> None:
        while not stopped and not over.is_set():
            for child in psutil.Process().children():
                if word in command_line(child):
                    child.suspend()
                    stopped.append(child.pid)

    stopped: list[int] = []
    over = Event()
    thread = Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert not psutil.pid_exists(stopped[0])


def test_a_stopped_sampler_holds_no_cell_up(stop: Path, tmp_path: Path) -> None:
    begin = time.monotonic()
    arguments = ["shardmark.measurement.telemetry", "0"]
    ended = launch(stop, arguments, cell_at(), tmp_path, telemetry=tmp_path / "telemetry.csv")
    assert ended.exit_code == 0
    assert time.monotonic() - begin < 40


def test_a_sampler_that_is_stopped_before_it_begins_is_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry, "BEGIN_S", 3.5)
    words = "the sampler of the devices has not begun within 4 s: it was stopped"
    with (
        stopping("shardmark.measurement.telemetry"),
        pytest.raises(UserError, match=words),
        sampling(tmp_path / "telemetry.csv", 0.1, None, idle_s=0.5),
    ):
        raise AssertionError("the cell began")


def test_a_stopped_watch_is_no_result(
    stop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "STOPPED_S", 2.0)
    monkeypatch.setattr(launching, "GRACE_S", 1.0)
    before = psutil.Process().children(recursive=True)
    words = "the process that watches over its ranks was stopped"
    with pytest.raises(UserError, match=words):
        launch(stop, ["shardmark.launching.node", "600"], cell_at(), tmp_path)
    _, left = psutil.wait_procs(psutil.Process().children(recursive=True), 5)
    assert set(left) <= set(before)


def test_a_node_that_cannot_leave_after_its_report_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "LEAVING_S", 2.0)
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, sys, time\n"
        "if 'shardmark.launching.node' in sys.orig_argv: atexit.register(time.sleep, 600)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    script = tmp_path / "leave.py"
    script.write_text("")
    assert launch(script, [], cell_at(), tmp_path).exit_code == 0


@pytest.mark.parametrize(
    "ask",
    [
        visible_gpus,
        lambda: gpu_facts("GPU-0"),
        lambda: gpu_indices(["GPU-0"]),
        driver_and_topology,
        lambda: sample_gpus(["GPU-0"]),
        lambda: lowered_and_default_mhz("GPU-0"),
    ],
)
def test_a_driver_that_does_not_answer_is_named(
    ask: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry, "ANSWER_S", 0.2)
    for name in ("nvmlInit", "nvmlDeviceGetHandleByUUID"):
        monkeypatch.setattr(pynvml, name, lambda *_: time.sleep(5))
    with pytest.raises(UserError, match=r"the NVIDIA driver has not answered for .*nvidia-smi"):
        ask()


def test_the_doctor_names_a_driver_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    simulate(monkeypatch, [Gpu()])
    monkeypatch.setattr(telemetry, "ANSWER_S", 0.2)
    monkeypatch.setattr(pynvml, "nvmlSystemGetDriverVersion", lambda: time.sleep(5))
    (finding,) = check_gpus(1)
    assert finding.level == "FAIL"
    assert "the NVIDIA driver has not answered" in finding.detail


def test_a_command_of_the_doctor_that_hangs_has_failed() -> None:
    done = run_limited(["sleep", "60"], "sbatch --test-only", 0.2)
    assert (done.returncode, done.stderr) == (1, "sbatch --test-only took more than 0 s")


def test_a_torch_whose_import_hangs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "ASK_S", 0.5)
    monkeypatch.setattr(gpu_check, "_ASK_TORCH", "import time; time.sleep(60)")
    answer = gpu_check.ask_torch()
    assert "it took more than" in gpu_check.why_too_few(1, answer, driver=True, visible=None)


def test_a_process_that_sigkill_does_not_end_is_named_and_left(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(node, "DEATH_S", 1.0)
    # As if it hung in a driver.
    with monkeypatch.context() as patch:
        patch.setattr(psutil.Process, "kill", lambda _: None)
        with no_survivors():
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        assert f"SIGKILL does not end process {child.pid}" in capfd.readouterr().out
    finally:
        end(child, 1.0)
