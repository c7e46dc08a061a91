"""Snakemake itself is killed, or asked to end, while a cell trains on this machine."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from parity_cases import ROOT
from shardmark.metrics import read_metrics

TARGET = "results/t/small/ddp/gpus1/seed0/metrics.json"
MATRIX = """
run: t
matrix: {{workloads: [small], strategies: [ddp], gpus: [1], seeds: [0]}}
workloads:
  small:
    model: {{name: resnet8}}
    dataset: {{name: synthetic, train_images: 64, test_images: 16}}
    batch: {{global: 16}}
    optimizer: {{name: sgd, learning_rate: 0.05}}
    precision: fp32
measure: {{steady_min_s: {0}, steady_max_s: {0}, warmup_min_steps: 2, warmup_max_steps: 4}}
cluster: {{device: cpu}}
"""
PATIENCE_S = 90
# In a process of its own, as it ends all that its process started.
END_CHILDREN = """
import signal, subprocess
from shardmark.controller.termination import end_children

obeys = subprocess.Popen(["sleep", "600"])
end_children(600)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
ignores = subprocess.Popen(["sleep", "600"])
end_children(1)
print(obeys.wait(), ignores.wait())
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in ("Snakefile", "config", "profiles", "workflow"):
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tmp_path / name)
    (tmp_path / "resources").mkdir()
    return tmp_path


def command(*arguments: str) -> list[str]:
    start = [sys.executable, "-m", "snakemake", TARGET, *arguments]
    return [*start, "--profile", "profiles/local", "--configfile", "matrix.yaml"]


def run(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        cwd=project,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_asked_to_end_it_ends_its_cell_says_so_and_leaves_no_lock(
    number: signal.Signals, project: Path
) -> None:
    shutil.copy(ROOT / "tests/stand_ins/run_cell.py", project / "workflow/scripts")
    with (project / "workflow/scripts/run_cell.py").open("a") as script:
        script.write("\narguments.output.unlink()\ntime.sleep(600)\n")
    (project / "matrix.yaml").write_text(MATRIX.format(0.2).replace("[0]", "[0, 1]"))
    other = TARGET.replace("seed0", "seed1")
    with subprocess.Popen(
        command(other),
        cwd=project,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=functools.partial(signal.signal, number, signal.SIG_DFL),
    ) as snakemake:
        try:
            deadline = time.monotonic() + PATIENCE_S
            while not (project / "ran.log").exists():
                assert time.monotonic() < deadline, "no cell"
                time.sleep(0.2)
            snakemake.send_signal(number)
            text, _ = snakemake.communicate(timeout=60)
        finally:
            snakemake.kill()
    assert snakemake.returncode == 1
    assert f"{number.name}: cells that run on this machine are ended, without a result" in text
    assert "Traceback" not in text
    assert len((project / "ran.log").read_text().splitlines()) == 1, "the other was not started"
    assert not (project / TARGET).exists()
    assert not (project / "results/t/.controller").exists()
    planned = run(project, "-n")
    assert planned.returncode == 0, "no lock is left"


def test_the_exit_code_of_a_process_that_was_ended_is_left_to_its_starter() -> None:
    done = subprocess.run(
        [sys.executable, "-c", END_CHILDREN],
        env=os.environ | {"PYTHONPATH": str(ROOT / "workflow/scripts")},
        stdout=subprocess.PIPE,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.stdout.split() == [str(-signal.SIGTERM), str(-signal.SIGKILL)]


@pytest.mark.slow
def test_its_cell_ends_with_it_and_runs_again_once_unlocked(project: Path) -> None:
    (project / "matrix.yaml").write_text(MATRIX.format(600))
    log = (project / TARGET).with_name("job.log")
    with subprocess.Popen(
        command(), cwd=project, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as snakemake:
        try:
            deadline = time.monotonic() + PATIENCE_S
            while not log.exists() or "epoch 1" not in log.read_text():
                assert time.monotonic() < deadline, "no training"
                time.sleep(0.2)
            family = psutil.Process(snakemake.pid).children(recursive=True)
        finally:
            snakemake.kill()
    assert len(family) >= 3, "launcher, node's part, rank"
    _, living = psutil.wait_procs(family, timeout=30)
    assert living == []
    assert not (project / TARGET).exists()
    locked = run(project)
    assert locked.returncode == 1
    assert "--unlock" in locked.stdout
    (project / "matrix.yaml").write_text(MATRIX.format(0.2))
    assert run(project, "--unlock").returncode == 0
    again = run(project)
    assert again.returncode == 0, again.stdout
    assert read_metrics(project / TARGET).status == "ok"
