"""What the doctor says of a machine, of simulated GPUs, and of what Slurm answers."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from shardmark.config import Site
from shardmark.doctor import link_findings, place_findings, slurm_findings, software_findings
from shardmark.doctor.finding import Finding
from shardmark.doctor.gpu_findings import gpus
from shardmark.doctor.link_findings import all_reduce
from shardmark.doctor.place_findings import data_sets, writable
from shardmark.doctor.site_findings import surroundings
from shardmark.doctor.slurm_findings import on_nodes, requests
from shardmark.doctor.software_findings import python_and_packages, torch_build
from shardmark.errors import UserError
from shardmark.measurement.gpu_check import TorchCuda
from simulated_nvml import Gpu, simulate
from small_matrix import ROOT, matrix

DOCTOR = ROOT / "workflow/scripts/doctor.py"
CUDA = {"cluster__device": "cuda", "cluster__gpus_per_node": 2}
Usage = namedtuple("Usage", "total used free")


def levels(findings: Iterable[Finding]) -> list[tuple[str, str]]:
    return [(one.level, one.what) for one in findings]


def test_a_finding_is_one_line_with_what_to_do() -> None:
    finding = Finding("warn", "data", "is not\n  there", "make fetch")
    assert str(finding) == "warn  data            is not there -> make fetch"


def test_what_is_installed_is_held_against_the_project(tmp_path: Path) -> None:
    good = list(python_and_packages(ROOT / "pyproject.toml"))
    assert levels(good) == [("ok", "python"), ("ok", "packages")]
    project = tmp_path / "pyproject.toml"
    wanted = '["snakemake>=99", "no-such-package", "psutil"]'
    project.write_text(f'[project]\nrequires-python = ">=4"\ndependencies = {wanted}\n')
    python, packages = python_and_packages(project)
    assert (python.level, packages.level) == ("FAIL", "FAIL")
    assert "the project needs >=4" in python.advice
    assert "is not >=99; no-such-package is missing" in packages.found
    assert "psutil" not in packages.found


def test_what_surrounds_a_cell_is_tried(tmp_path: Path) -> None:
    assert list(surroundings(Site())) == [], "there is nothing to try"
    good = Site(setup="export HERE=1", scratch=str(tmp_path / "local"))
    assert levels(surroundings(good)) == [("ok", "site"), ("ok", "site.scratch")]
    for bad, words in (
        (Site(setup="false"), "site.setup: failed with exit code 1"),
        (Site(scratch="$NO_SUCH_DISK/x"), "names a variable that is not set"),
        (Site(container="no.sif", setup="PATH=/bin"), "there is no apptainer"),
    ):
        (finding,) = surroundings(bad)
        assert finding.level == "FAIL"
        assert words in finding.found


@pytest.mark.parametrize(
    ("torch", "needed", "level", "words"),
    [
        (TorchCuda(version="2.15.0", cuda="13.0", count=8, error=None), 8, "ok", "sees 8 GPU(s)"),
        (TorchCuda(version="2.15.0", cuda="13.0", count=8, error=None), 0, "ok", "CUDA 13.0"),
        (TorchCuda(version="2.15.0", cuda="13.0", count=4, error=None), 8, "FAIL", "needs 8"),
        (TorchCuda(version="2", cuda=None, hip="7", count=8, error=None), 8, "FAIL", "ROCm 7"),
        ("ImportError: libcudart", 0, "FAIL", "torch cannot be imported (ImportError: libcudart)"),
    ],
)
def test_torch(
    torch: TorchCuda | str, needed: int, level: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(software_findings, "ask_torch", lambda: torch)
    monkeypatch.setattr(software_findings, "has_driver", lambda: True)
    first = next(iter(torch_build(needed)))
    assert first.level == level
    assert words in first.found


def test_a_torchvision_of_another_torch_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torchvision.py").write_text("raise ImportError('undefined symbol')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    said = TorchCuda(version="2", cuda="13.0", count=1, error=None)
    monkeypatch.setattr(software_findings, "ask_torch", lambda: said)
    _, found = torch_build(0)
    assert found.level == "FAIL"
    assert "cannot be imported (ImportError: undefined symbol)" in found.found


def test_a_folder_that_cannot_be_written_to_fails(tmp_path: Path) -> None:
    assert levels(writable("results", tmp_path / "new/results")) == [("ok", "results")]
    (tmp_path / "file").touch()
    (found,) = writable("results", tmp_path / "file/results")
    assert found.level == "FAIL"
    assert "Not a directory" in found.found


@pytest.mark.parametrize(("gib", "level"), [(20, "ok"), (5, "warn"), (0.5, "FAIL")])
def test_a_full_disk(
    gib: float, level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, gib * 2**30))
    (found,) = writable("results", tmp_path)
    assert found.level == level


def test_a_file_system_whose_clock_is_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = place_findings.time.time
    monkeypatch.setattr(place_findings.time, "time", lambda: now() - 60)
    _, clock = writable("results", tmp_path)
    assert clock.level == "warn"
    assert "+60 s off this machine's clock" in clock.found


@pytest.mark.parametrize(("download", "level"), [(True, "warn"), (False, "FAIL")])
def test_data_that_are_not_there(download: bool, level: str) -> None:
    changes = {"name": "cifar10", "train_images": 64, "test_images": 16}
    config = matrix(workloads__small__dataset=changes, data__download=download)
    (found,) = data_sets(config, ROOT)
    assert found.level == level
    assert found.found == f"cifar10 is not in {ROOT / 'config'}"
    assert "make fetch" in found.advice
    assert levels(data_sets(matrix(), ROOT)) == [("ok", "data")]


def found_with(
    monkeypatch: pytest.MonkeyPatch, *simulated: Gpu, needed: int | None = None
) -> list[Finding]:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    simulate(monkeypatch, list(simulated))
    return list(gpus(needed or len(simulated)))


def test_gpus_that_are_as_they_should_be(monkeypatch: pytest.MonkeyPatch) -> None:
    found = found_with(monkeypatch, Gpu(), Gpu(), Gpu())
    assert {one.level for one in found} == {"ok"}
    assert [one.found for one in found] == ["580.65", "3 x NVIDIA H200", "3 pairs by NVLink"]


GPUS: dict[str, tuple[list[Gpu], int, str, str]] = {
    "too few": ([Gpu()], 2, "FAIL", "1 x NVIDIA H200, and the largest cell needs 2 here"),
    "sliced": ([Gpu(mig=True)], 1, "FAIL", "GPU-0 is a GPU in MIG mode"),
    "of two models": ([Gpu(), Gpu(name="A100")], 2, "warn", "1 x NVIDIA H200, 1 x A100"),
    "linked differently": (
        [Gpu(), Gpu(), Gpu(nvlink=False)],
        3,
        "warn",
        "2 pairs by PCIe, system, 1 pairs by NVLink",
    ),
    "held down": ([Gpu(power_limit_w=500)], 1, "warn", "held at 500 W, of its own 700 W"),
    "hot": ([Gpu(throttle_mask=0x40)], 1, "warn", "slowed down by hw_thermal_slowdown"),
    "hot, by an older driver": (
        [Gpu(throttle_mask=0x40, older_driver=True)],
        1,
        "warn",
        "slowed down by hw_thermal_slowdown",
    ),
    "silent": (
        [Gpu(ecc=False)],
        1,
        "warn",
        "GPU-0: the driver does not tell its memory errors (no ECC?)",
    ),
    "faulty": ([Gpu(ecc_errors=3)], 1, "warn", "has 3 uncorrected memory errors"),
    "in use": ([Gpu(memory_used=2**30)], 1, "warn", "has 1024 MiB in use by something else"),
    "clocked down": ([Gpu(clock_mhz=1200)], 1, "warn", "SM clock set to 1200 MHz"),
}


@pytest.mark.parametrize("how", GPUS)
def test_gpus_that_are_not(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    simulated, needed, level, words = GPUS[how]
    found = found_with(monkeypatch, *simulated, needed=needed)
    (one,) = [one for one in found if one.level != "ok"]
    assert one.level == level
    assert words in one.found


def test_the_ranks_of_a_cell_reduce(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (found,) = all_reduce(matrix(), 2)
    assert found.level == "ok", found
    assert "GB/s of bus over 2 ranks, gloo" in found.found
    assert list(Path("results/t").iterdir()) == []
    assert levels(all_reduce(matrix(), 1)) == [("ok", "all-reduce")]


def test_ranks_that_do_not_find_each_other_fail_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib9")
    (found,) = all_reduce(matrix(), 2)
    assert found.level == "FAIL"
    assert "ib9" in found.found
    assert "GLOO_SOCKET_IFNAME" in found.advice


@pytest.mark.parametrize(
    ("gpus", "via", "level"),
    [
        (2, ["P2P/CUMEM"], "ok"),
        (2, ["P2P/CUMEM", "SHM/direct"], "warn"),
        (4, ["NET/IB", "P2P/CUMEM"], "ok"),
        (4, ["NET/Socket", "P2P/CUMEM"], "warn"),
    ],
)
def test_what_nccl_goes_over(
    gpus: int, via: list[str], level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = {"backend": "nccl", "gb_per_s": 234.5, "via": via}
    monkeypatch.setattr(link_findings, "measure", lambda cell, result: measured)
    (found,) = all_reduce(matrix(matrix__gpus=[1, 2, 4], **CUDA), gpus)
    assert found.level == level
    assert f"234 GB/s of bus over {gpus} ranks, nccl via {' and '.join(via)}" in found.found


def test_nccls_own_log_tells_its_transport() -> None:
    log = """
n1:7:9 [0] NCCL INFO Channel 00/16 : 0[0] -> 1[1] via P2P/CUMEM/read
n1:7:9 [0] NCCL INFO Channel 00/0 : 1[1] -> 2[0] [send] via NET/IB/0/GDRDMA
n1:7:9 [0] NCCL INFO Channel 01/0 : 0[0] -> 1[1] via SHM/direct/direct
n1:7:9 [0] NCCL INFO NET/Plugin: no plugin
"""
    assert link_findings._VIA.findall(log) == ["P2P/CUMEM", "NET/IB", "SHM/direct"]


class Slurm:
    """Stand-ins for Slurm's commands; what they are called with stays in a file."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.log = folder / "called"
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        self.command("sinfo", "echo gpu; echo long")
        self.command("sbatch", "echo 'sbatch: Job 9 to start at noon on n1' >&2")
        self.profile({"slurm_account": "lab", "slurm_partition": "gpu"})

    def command(self, name: str, script: str) -> None:
        path = self.folder / name
        path.write_text(f'#!/bin/bash\nprintf "%q " {name} "$@" >> {self.log}\n{script}\n')
        path.chmod(0o755)

    def profile(self, defaults: Any, **more: Any) -> None:
        folder = self.folder / "profile"
        folder.mkdir(exist_ok=True)
        content = {"default-resources": defaults, **more}
        (folder / "config.yaml").write_text(yaml.safe_dump(content))

    def asked(self) -> list[str]:
        return shlex.split(self.log.read_text().rsplit("sbatch ", 1)[1])


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    monkeypatch.chdir(tmp_path)
    return Slurm(tmp_path, monkeypatch)


def requested(fake: Slurm, **values: Any) -> list[Finding]:
    return list(requests(matrix(**CUDA | values), fake.folder / "profile"))


def test_the_largest_cells_own_request_is_tried(fake: Slurm) -> None:
    fake.profile(
        ["slurm_account=lab", "slurm_partition=gpu", "runtime=30"],
        **{"set-resources": ["train:constraint=h200"]},
    )
    found = requested(fake, matrix__gpus=[1, 4], cluster__time_limit_minutes=50)
    assert levels(found) == [("ok", "partition"), ("ok", "request")]
    assert "4 GPUs would be given: Job 9 to start at noon on n1" in found[1].found
    asked = fake.asked()
    assert {"--test-only", "--nodes=2", "--gres=gpu:2", "--exclusive"} <= set(asked)
    assert {"--account=lab", "--partition=gpu"} <= set(asked)
    assert " ".join(asked).count("-t 55") == 1
    assert "-C h200" in " ".join(asked)


def test_a_partition_that_is_not_there(fake: Slurm) -> None:
    fake.profile({"slurm_partition": "gpus"})
    (found,) = requested(fake)
    assert (found.level, found.found) == ("FAIL", "there is no gpus")
    assert "one of: gpu, long" in found.advice


def test_a_request_that_slurm_refuses(fake: Slurm) -> None:
    fake.command("sbatch", "echo 'sbatch: error: Node count is impossible' >&2; exit 1")
    found = requested(fake)
    assert levels(found) == [("ok", "partition"), ("FAIL", "request")]
    assert "Node count is impossible" in found[1].found
    assert "--gpus=2" in found[1].found


def test_slurm_that_does_not_answer_and_a_profile_that_is_not_there(fake: Slurm) -> None:
    fake.command("sinfo", "echo 'no controller' >&2; exit 1")
    assert levels(requested(fake)) == [("FAIL", "Slurm")]
    (fake.folder / "profile/config.yaml").unlink()
    assert levels(requested(fake)) == [("FAIL", "profile")]


# What sbatch --wait does: the number at once, the job's output in its file, the job's exit code.
WAITS = """
echo 9; [[ "$*" =~ --output\\ ([^ ]+) ]]
wrapped="${!#}"; bash -c "${wrapped#--wrap=}" > "${BASH_REMATCH[1]}"
"""


def sent(fake: Slurm, command: str) -> list[str]:
    job = on_nodes(matrix(**CUDA), fake.folder / "profile", command, Path("doctor.log").absolute())
    return list(job)


def test_a_job_of_its_own_gives_its_lines(fake: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.command("sbatch", WAITS)
    lines = sent(fake, "echo ok; echo doctor: 0 FAIL")
    assert lines[0].startswith("job 9 is sent")
    assert lines[1:] == ["ok"]
    assert "--wait" in fake.asked()
    monkeypatch.setattr(slurm_findings, "LATENCY_S", 0.0)
    with pytest.raises(UserError, match=r"Slurm job 9 ended before the doctor had \(exit code 3\)"):
        sent(fake, "echo ok; exit 3")
    fake.command("sbatch", "echo 'sbatch: error: Invalid account' >&2; exit 1")
    with pytest.raises(UserError, match="was refused: sbatch: error: Invalid account"):
        sent(fake, "true")


def diagnosed(folder: Path, overlay: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "config").symlink_to(ROOT / "config")
    (folder / "resources").mkdir()
    (folder / "mine.yaml").write_text(overlay)
    return subprocess.run(
        [sys.executable, str(DOCTOR), "--configfile", "mine.yaml", *arguments],
        cwd=folder,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )


def test_the_command_on_a_machine_that_can_run_the_matrix(tmp_path: Path) -> None:
    done = diagnosed(tmp_path, (ROOT / "config/demo.yaml").read_text())
    assert done.returncode == 0, done.stdout + done.stderr
    *lines, last = done.stdout.splitlines()
    assert last == "nothing stands in the way"
    assert {line.split()[0] for line in lines} == {"ok"}
    whats = [line.split()[1] for line in lines]
    assert whats[:3] == ["python", "packages", "configuration"]
    assert whats[-1] == "all-reduce"


def test_the_command_on_one_that_cannot(tmp_path: Path) -> None:
    done = diagnosed(tmp_path, "cluster: {device: cuda}")
    assert done.returncode == 1
    assert "FAIL  torch" in done.stdout
    assert "not tried, since what it needs fails" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert "must be mended first" in done.stdout.splitlines()[-1]


def test_the_command_with_mistakes_in_the_configuration(tmp_path: Path) -> None:
    done = diagnosed(tmp_path, "matrix: {gpus: [0], seeds: []}")
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert "matrix.gpus[0]: got 0" in line
    assert "matrix.seeds: is empty" in line
    assert "Traceback" not in done.stdout + done.stderr
