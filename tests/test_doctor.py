"""What the doctor says of a machine, of simulated GPUs, and of what Slurm answers."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from torchvision.datasets import CIFAR10

from doctor import last_line, name_own_code, summarise_matrix
from shardmark.config.files import load_files
from shardmark.config.schema import Data, Site
from shardmark.doctor import (
    link_findings,
    place_findings,
    slurm_findings,
    slurm_setup,
    software_findings,
)
from shardmark.doctor.finding import Finding
from shardmark.doctor.gpu_findings import check_gpus
from shardmark.doctor.link_findings import check_all_reduce
from shardmark.doctor.place_findings import check_data_sets, check_folder, check_site
from shardmark.doctor.slurm_findings import check_requests, run_on_nodes
from shardmark.doctor.software_findings import check_packages, check_torch
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


def test_own_code_is_named_because_the_doctor_does_not_run_it() -> None:
    file = "docs/examples/one_all_reduce.py"
    own = {"strategies": {"mine": {"file": file}}}
    (finding,) = name_own_code(matrix(matrix__strategies=["ddp", "mine"], **own))
    assert finding.detail == f"{file}: not run here; a run checks it before its first job"
    assert not list(name_own_code(matrix()))


def test_what_is_installed_is_held_against_the_project(tmp_path: Path) -> None:
    good = list(check_packages(ROOT / "pyproject.toml"))
    assert levels(good) == [("ok", "python"), ("ok", "packages")]
    project = tmp_path / "pyproject.toml"
    wanted = '["snakemake>=99", "no-such-package", "psutil"]'
    project.write_text(f'[project]\nrequires-python = ">=4"\ndependencies = {wanted}\n')
    python, *packages = check_packages(project)
    assert "the project needs >=4" in python.advice
    assert levels(packages) == [("FAIL", "packages")] * 2
    assert "is not >=99" in packages[0].detail
    assert packages[1].detail == "no-such-package is missing"


def test_what_surrounds_a_cell_is_tried(tmp_path: Path) -> None:
    assert list(check_site(Site())) == [], "there is nothing to try"
    good = Site(setup="export HERE=1", scratch=str(tmp_path / "local"))
    assert levels(check_site(good)) == [("ok", "site"), ("ok", "site.scratch")]
    for bad, words in (
        (Site(setup="false"), "site.setup: failed with exit code 1"),
        (Site(scratch="$NO_SUCH_DISK/x"), "names a variable that is not set"),
        (Site(container="no.sif", setup="PATH=/bin"), "there is no apptainer"),
    ):
        (finding,) = check_site(bad)
        assert finding.level == "FAIL"
        assert words in finding.detail


def test_what_a_setup_leaves_running_is_named_and_ended(
    capfd: pytest.CaptureFixture[str],
) -> None:
    before = psutil.Process().children()
    site = Site(setup="(setsid sleep 60 &)\nexport HERE=1")
    assert levels(check_site(site)) == [("ok", "site")]
    # On a busy machine it may still be the shell that is about to become sleep.
    assert re.search(r"site\.setup: left running on .*: \w+ \(\d+\)\n", capfd.readouterr().err)
    assert psutil.Process().children() == before


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
    first = next(iter(check_torch(needed)))
    assert first.level == level
    assert words in first.detail


def test_a_torchvision_of_another_torch_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torchvision.py").write_text("raise ImportError('undefined symbol')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    torch = TorchCuda(version="2", cuda="13.0", count=1, error=None)
    monkeypatch.setattr(software_findings, "ask_torch", lambda: torch)
    _, finding = check_torch(0)
    assert finding.level == "FAIL"
    assert "cannot be imported (ImportError: undefined symbol)" in finding.detail


def test_a_folder_that_cannot_be_written_to_fails(tmp_path: Path) -> None:
    assert levels(check_folder("results", tmp_path / "new/results")) == [("ok", "results")]
    (tmp_path / "file").touch()
    (finding,) = check_folder("results", tmp_path / "file/results")
    assert finding.level == "FAIL"
    assert "Not a directory" in finding.detail


@pytest.mark.parametrize(("gib", "level"), [(20, "ok"), (5, "warn"), (0.5, "FAIL")])
def test_a_full_disk(
    gib: float, level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, gib * 2**30))
    (finding,) = check_folder("results", tmp_path)
    assert finding.level == level


def test_a_file_system_whose_clock_is_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = place_findings.time.time
    monkeypatch.setattr(place_findings.time, "time", lambda: now() - 60)
    _, clock = check_folder("results", tmp_path)
    assert clock.level == "warn"
    assert "+60 s off this machine's clock" in clock.detail


@pytest.mark.slow
@pytest.mark.parametrize(("download", "level"), [(True, "warn"), (False, "FAIL")])
def test_data_that_are_not_there(download: bool, level: str) -> None:
    changes = {"name": "cifar10", "train_images": 64, "test_images": 16}
    config = matrix(workloads__small__dataset=changes, data__download=download)
    (finding,) = check_data_sets(config, ROOT)
    assert finding.level == level
    assert finding.detail == f"cifar10 is not in {ROOT / 'config'}"
    assert "make fetch" in finding.advice
    assert levels(check_data_sets(matrix(), ROOT)) == [("ok", "data")]


def test_a_damaged_data_file_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "resources" / CIFAR10.base_folder
    folder.mkdir(parents=True)
    for name, _ in (*CIFAR10.train_list, *CIFAR10.test_list):
        (folder / name).write_bytes(b"cut short")
    (folder / CIFAR10.meta["filename"]).write_bytes(b"cut short")
    changes = {"name": "cifar10", "train_images": 64, "test_images": 16}
    config = matrix(workloads__small__dataset=changes)
    there = config.model_copy(update={"data": Data(dir="resources")})
    (finding,) = check_data_sets(there, tmp_path)
    assert finding.level == "warn"
    assert finding.detail.startswith(f"{folder / 'data_batch_1'} is damaged")
    assert "make fetch" in finding.advice


def gpu_findings(
    monkeypatch: pytest.MonkeyPatch, *simulated: Gpu, needed: int | None = None
) -> list[Finding]:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    simulate(monkeypatch, list(simulated))
    return list(check_gpus(needed or len(simulated)))


def test_gpus_that_are_as_they_should_be(monkeypatch: pytest.MonkeyPatch) -> None:
    findings = gpu_findings(monkeypatch, Gpu(), Gpu(), Gpu())
    assert {one.level for one in findings} == {"ok"}
    assert [one.detail for one in findings] == ["580.65", "3 x NVIDIA H200", "3 pairs by NVLink"]


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
    findings = gpu_findings(monkeypatch, *simulated, needed=needed)
    (finding,) = [finding for finding in findings if finding.level != "ok"]
    assert finding.level == level
    assert words in finding.detail


@pytest.mark.slow
def test_the_ranks_of_a_cell_reduce(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (finding,) = check_all_reduce(matrix(), 2)
    assert finding.level == "ok", finding
    assert "GB/s of bus over 2 ranks, gloo" in finding.detail
    assert list(Path("results/t").iterdir()) == []
    assert levels(check_all_reduce(matrix(), 1)) == [("ok", "all-reduce")]


def test_ranks_are_not_started_where_their_files_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").write_text("")
    (finding,) = check_all_reduce(matrix(), 2)
    assert (finding.level, finding.detail.count("results")) == ("FAIL", 1)


@pytest.mark.slow
def test_ranks_that_do_not_find_each_other_fail_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib9")
    (finding,) = check_all_reduce(matrix(), 2)
    assert finding.level == "FAIL"
    assert "ib9" in finding.detail
    assert "GLOO_SOCKET_IFNAME" in finding.advice


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
    monkeypatch.setattr(link_findings, "measure_all_reduce", lambda cell, result: measured)
    (finding,) = check_all_reduce(matrix(matrix__gpus=[1, 2, 4], **CUDA), gpus)
    assert finding.level == level
    assert f"234 GB/s of bus over {gpus} ranks, nccl via {' and '.join(via)}" in finding.detail


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
        self.command("sinfo", '[[ "$*" =~ %P ]] && echo "gpu* 1-00:00:00" || echo gpu long')
        self.command("scontrol", "echo 'MinJobAge = 300 sec'")
        self.command("sacct", "true")
        self.command("sacctmgr", '[[ "$*" =~ "list user" ]] && echo lab || true')
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

    def sbatch_calls(self) -> list[list[str]]:
        """Each call of sbatch."""
        words = shlex.split(self.log.read_text())
        starts = [place for place, word in enumerate(words) if word == "sbatch"]
        return [words[start:end] for start, end in zip(starts, [*starts[1:], None], strict=True)]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    monkeypatch.chdir(tmp_path)
    return Slurm(tmp_path, monkeypatch)


def request_findings(fake: Slurm, **values: Any) -> list[Finding]:
    return list(check_requests(matrix(**CUDA | values), fake.folder / "profile"))


def test_each_distinct_request_of_the_matrix_is_tried(fake: Slurm) -> None:
    fake.profile(
        ["slurm_account=lab", "slurm_partition=gpu", "runtime=30"],
        **{"set-resources": ["train:constraint=h200"], "slurm-qos": "night"},
    )
    findings = request_findings(fake, matrix__gpus=[1, 4], cluster__time_limit_minutes=50)
    assert levels(findings) == [
        *(("ok", what) for what in ("user", "partition", "job states")),
        *[("ok", "request")] * 4,
    ]
    assert findings[-4].detail == "4-GPU cells: Job 9 to start at noon on n1"
    assert findings[-1].detail == "1-rank parity, the oracle: Job 9 to start at noon on n1"
    cells, gate, small, _ = fake.sbatch_calls()
    same = {"--test-only", "--account=lab", "--partition=gpu", "--qos=night"}
    assert same | {"--nodes=2", "--gres=gpu:2", "--exclusive"} <= set(cells)
    assert "-t 55" in " ".join(cells)
    assert "-C h200" in " ".join(cells)
    assert same | {"--nodes=2", "--gres=gpu:2"} <= set(gate)
    assert not {"--exclusive", "h200"} & set(gate)
    assert same | {"--nodes=1", "--gpus=1", "--exclusive"} <= set(small)


def test_the_cells_of_a_group_need_their_time_together(fake: Slurm) -> None:
    fake.profile(
        {"slurm_partition": "gpu"},
        groups={"train": "gpus{gpus}"},
        **{"group-components": ["gpus{gpus}=3"]},
    )
    findings = request_findings(fake, matrix__gpus=[1], cluster__time_limit_minutes=500)
    (cells,) = (one for one in findings if one.level == "FAIL")
    words = "the time limit of 1515 min is above the partition's 1440 min: 1-GPU cells"
    assert cells.detail == words


def test_a_search_for_the_largest_batch_needs_the_longest_time(fake: Slurm) -> None:
    cells = {"matrix__gpus": [1], "cluster__expected_items_per_s": {"small": 10}}
    limit = {"cluster__time_limit_minutes": 1500}
    assert all(one.level == "ok" for one in request_findings(fake, **cells, **limit))
    wanted = {"largest_batch": {"workloads": ["small"]}}
    findings = request_findings(fake, **cells, **limit, **wanted)
    (search,) = (one for one in findings if one.level == "FAIL")
    words = "the time limit of 1505 min is above the partition's 1440 min: 1-GPU searches"
    assert search.detail == words


def test_a_partition_and_an_account_that_are_not_there(fake: Slurm) -> None:
    fake.profile({"slurm_partition": "gpus", "slurm_account": "labs"})
    partition, account = (one for one in request_findings(fake) if one.level == "FAIL")
    assert partition.detail == "there is no gpus"
    assert "one of: gpu, long" in partition.advice
    assert "The given account labs appears to be invalid" in account.detail


def test_requests_that_slurm_refuses_are_told_apart_by_its_words(fake: Slurm) -> None:
    refuse = 'case "$*" in *gpu:2*) why="no such node";; *) why="no such GPU";; esac; '
    fake.command("sbatch", f'{refuse} echo "sbatch: error: $why" >&2; exit 1')
    findings = request_findings(fake, matrix__gpus=[1, 4])
    nodes, gpus = (one for one in findings if one.level == "FAIL")
    assert nodes.detail.startswith("no such node: 4-GPU cells, 4-rank parity (--nodes=2 ")
    assert gpus.detail.startswith("no such GPU: 1-GPU cells, 1-rank parity, the oracle (--nodes=1 ")


def test_how_the_cluster_and_the_user_are_set_up(
    fake: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.command("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    (states,) = (one for one in request_findings(fake) if one.level == "FAIL")
    assert states.what == "job states"
    assert states.advice.endswith("set slurm-status-command: squeue in the profile")
    fake.profile({}, **{"slurm-status-command": "squeue"})
    assert {one.level for one in request_findings(fake)} == {"ok"}
    fake.command("scontrol", "echo 'MinJobAge = 30 sec'")
    (states,) = (one for one in request_findings(fake) if one.level == "FAIL")
    assert "slurm-init-seconds-before-status-checks: 10 or less" in states.advice
    fake.command("sinfo", "echo 'no controller' >&2; exit 1")
    assert levels(request_findings(fake))[-1] == ("FAIL", "Slurm")
    monkeypatch.setattr(slurm_setup.getpass, "getuser", unnamed)
    assert levels(request_findings(fake)) == [("FAIL", "user")]
    (fake.folder / "profile/config.yaml").unlink()
    assert levels(request_findings(fake)) == [("FAIL", "profile")]


def unnamed() -> str:
    raise KeyError("getpwuid(): uid not found: 4711")


def test_a_limit_on_submitted_jobs_below_the_profiles(fake: Slurm) -> None:
    answers = ("*'list user'*) echo lab;;", "*associations*) echo 'lab|30||normal';;")
    fake.command("sacctmgr", f'case "$*" in {" ".join(answers)} *qos*normal*) echo "20||";; esac')
    for jobs, words in ((100, ["20 may be queued, and the profile submits 100"]), (20, [])):
        fake.profile({"slurm_account": "lab"}, jobs=jobs)
        assert [one.detail for one in request_findings(fake) if one.what == "jobs"] == words


# What sbatch --wait does: the number at once, the job's output in its file, the job's exit code.
WAITS = """
echo 9; [[ "$*" =~ --output\\ ([^ ]+) ]]
wrapped="${!#}"; bash -c "${wrapped#--wrap=}" > "${BASH_REMATCH[1]}"
"""


def sent(fake: Slurm, command: str) -> list[str]:
    job = run_on_nodes(
        matrix(**CUDA), fake.folder / "profile", command, Path("doctor.log").absolute()
    )
    return list(job)


def test_a_job_of_its_own_gives_its_lines(fake: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.command("sbatch", WAITS)
    lines = sent(fake, "echo ok; echo doctor: 0 FAIL")
    assert lines[0].startswith("job 9 is sent")
    assert lines[1:] == ["ok"]
    assert "--wait" in fake.sbatch_calls()[-1]
    monkeypatch.setattr(slurm_findings, "LATENCY_S", 0.0)
    with pytest.raises(UserError, match=r"Slurm job 9 ended before the doctor had \(exit code 3\)"):
        sent(fake, "echo ok; exit 3")
    fake.command("sbatch", "echo 'sbatch: error: Invalid account' >&2; exit 1")
    with pytest.raises(UserError, match="was refused: sbatch: error: Invalid account"):
        sent(fake, "true")


def run_doctor(folder: Path, overlay: str, *arguments: str) -> subprocess.CompletedProcess[str]:
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


@pytest.mark.slow
def test_the_command_on_a_machine_that_can_run_the_matrix(tmp_path: Path) -> None:
    done = run_doctor(tmp_path, (ROOT / "config/demo.yaml").read_text())
    assert done.returncode == 0, done.stdout + done.stderr
    *lines, last = done.stdout.splitlines()
    assert last == "All checks passed."
    assert {line.split()[0] for line in lines} == {"ok"}
    whats = [line.split()[1] for line in lines]
    assert whats[:3] == ["python", "packages", "configuration"]
    assert whats[-1] == "all-reduce"


def test_the_command_counts_the_cells_and_searches_of_a_matrix_with_parts() -> None:
    two_gpus = load_files([ROOT / "config/two_gpus.yaml"], ROOT)
    words = "run two_gpus, 196 cells, the largest of 2 GPUs on 1 node(s), and 13 searches for the"
    assert words in str(summarise_matrix(two_gpus))
    without = "12 cells, the largest of 2 replicas on CPUs on 1 node(s)"
    assert str(summarise_matrix(matrix())).endswith(without)


@pytest.mark.slow
def test_the_command_on_one_that_cannot(tmp_path: Path) -> None:
    done = run_doctor(tmp_path, "cluster: {device: cuda}")
    assert done.returncode == 1
    assert "FAIL  torch" in done.stdout
    assert "not tried, since what it needs fails" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    failed = sum(line.startswith("FAIL") for line in done.stdout.splitlines())
    assert done.stdout.splitlines()[-1] == last_line(failed)


def test_the_last_line_counts_the_failed_checks() -> None:
    assert last_line(0) == "All checks passed."
    assert last_line(1) == "Fix the failed check first."
    assert last_line(3) == "Fix the 3 failed checks first."


def test_the_command_with_mistakes_in_the_configuration(tmp_path: Path) -> None:
    done = run_doctor(tmp_path, "matrix: {gpus: [0], seeds: []}")
    assert done.returncode == 1
    gpus, seeds = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert "matrix.gpus[0]: got 0" in gpus
    assert "matrix.seeds: is empty" in seeds
    assert "Traceback" not in done.stdout + done.stderr


def test_the_command_names_the_line_where_an_overlay_is_not_valid_yaml(tmp_path: Path) -> None:
    done = run_doctor(tmp_path, "strategies:\n  mine: {file: mine.py, color: #AA0000}\nrun: t\n")
    assert done.returncode == 1
    [line] = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert re.search(r"\.yaml:3:\d+: not valid YAML", line)
