"""What has become of each cell, from real files, real processes and a stand-in for squeue."""

from __future__ import annotations

import functools
import getpass
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from gpu_matrix import write_parity
from shardmark import files
from shardmark.cells import BatchSearch, Cell, batch_search, cells_of, parity_case, sizes_of
from shardmark.codebase import code_of_cell, code_sha256
from shardmark.config.schema import Config
from shardmark.controller.record import FOLDER, controller_of
from shardmark.largest_batch import batch_result
from shardmark.launching.cell_progress import (
    CellProgress,
    ProgressNote,
    progress_path,
    read_progress,
)
from shardmark.launching.scratch import OWNER, scratch_folder, scratch_path, this_run, why_alive
from shardmark.metrics import Device, Failure, Metrics, Throughput
from shardmark.processes.heartbeat import Beat
from shardmark.results.matrix import read_matrix
from shardmark.results.outcome import Outcome
from shardmark.slurm.queue import parse_time
from shardmark.status.cell_status import CellStatus
from shardmark.status.matrix_status import exit_code, status_of
from shardmark.status.view import LOOKS, View
from small_matrix import ROOT, cell_at, matrix
from status import fit
from test_survival import cell_of, started

SCRIPT = ROOT / "workflow/scripts/status.py"
OVERLAY = (
    "run: t\nmatrix: {workloads: [resnet50_cifar10], strategies: [ddp], gpus: [1], seeds: [0]}"
)


@pytest.fixture(autouse=True)
def in_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # Whatever this machine has of Slurm is not asked.
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


def leave(cell: Cell, status: str = "ok", *, stamp: bool = True, **changes: object) -> None:
    """A cell's result, as a run of it leaves it."""
    metrics = Metrics(
        cell=cell,
        cell_sha256=cell.fingerprint(),
        code_sha256=code_sha256(code_of_cell(cell)),
        status=status,  # type: ignore[arg-type]
    ).model_copy(update=changes)
    files.write_text(cell.folder / "metrics.json", metrics.model_dump_json(by_alias=True))
    if stamp:
        (cell.folder / "code.sha256").write_text("")


def judge(config: Config) -> None:
    """The parity gate passed all cases that can run."""
    for workload, strategy, gpus in sizes_of(config):
        if not parity_case(config, workload, strategy, gpus).cell.unsupported:
            write_parity(config, strategy, gpus, Path(), workload=workload)


def only(config: Config | None = None) -> CellStatus:
    """The status of the first cell of ddp."""
    cells = status_of(config or matrix()).cells
    return next(one for one in cells if one.cell.folder == cell_at().folder)


def text_of(config: Config, *, terminal: bool = False, width: int = 100) -> str:
    return "\n".join(View(terminal=terminal, width=width).lines(config, status_of(config)))


def squeue(*lines: str) -> None:
    """A squeue on the path, of jobs sent from here."""
    folder = Path("bin")
    folder.mkdir(exist_ok=True)
    printed = "\n".join(f"{line}|{Path.cwd()}" for line in lines)
    (folder / "squeue").write_text(
        f"#!/bin/sh\nwhile read -r l; do echo \"$l\"; done <<'.'\n{printed}\n.\n"
        if lines
        else "#!/bin/sh\n"
    )
    (folder / "squeue").chmod(0o755)


def job(number: int, state: str, reason: str = "None", left: str = "1:00:00", *cell: object) -> str:
    at = "_".join(map(str, cell or ("t", "small", "ddp", 1, 0)))
    nodes = "n3" if state == "RUNNING" else ""
    return f"{number}|{state}|{reason}|rule_train_wildcards_{at}|{nodes}|{left}"


def test_the_matrix_is_a_grid_in_plain_text() -> None:
    failure = Failure(phase="build", rank=1, exception="OutOfMemoryError: CUDA\nmore", log_tail=[])
    leave(cell_at("ddp", 1, 0))
    leave(cell_at("ddp", 2, 1), "oom", failure=failure)
    assert text_of(matrix()).splitlines() == [
        "results/t: 12 cells: 1 ok, 1 oom, 2 unsupported, 8 missing",
        "controller: none is running",
        "",
        "small",
        "      1 GPU  2 GPUs",
        "seed  01     01",
        "dp    ..     --",
        "ddp   +.     .M",
        "slim  ..     ..",
        "",
        "+ ok  M oom  - unsupported  . missing",
        "",
        "oom  small ddp gpus2 seed1  build, rank 1: OutOfMemoryError: CUDA",
        "    results/t/small/ddp/gpus2/seed1/job.log",
    ]


def searching(**changes: object) -> Config:
    """The matrix with searches for the largest batch."""
    most = {"workloads": ["small"], "most": 8}
    return matrix(largest_batch=most, matrix__strategies=["ddp", "dp", "slim"], **changes)


def leave_batch(config: Config, strategy: str, gpus: int, **fields: Any) -> BatchSearch:
    """The result of a search, as it leaves it."""
    search = batch_search(config, "small", strategy, gpus)
    found = {"status": "found", "micro_batch": 6, "per_gpu_batch": 6} | fields
    files.write_text(search.file, batch_result(search, **found).model_dump_json())
    return search


def test_the_searches_for_the_largest_batch_are_a_grid_of_their_own() -> None:
    config = searching()
    leave_batch(config, "ddp", 1)
    nothing = {"micro_batch": None, "per_gpu_batch": None}
    leave_batch(config, "ddp", 2, status="does_not_fit", reason="OutOfMemoryError", **nothing)
    failed = batch_search(config, "small", "slim", 1)
    log = failed.file.with_suffix(".log")
    reason = "the time limit ended the search with a batch of 4"
    files.write_text(log, f"noise\nshardmark: {failed.title}: {reason}\n")
    files.write_text(batch_search(config, "small", "dp", 1).file.with_suffix(".log"), "killed")
    squeue(
        "7|PENDING|Priority|rule_find_largest_batch_wildcards_t_small_slim_2||1:00:00",
        "8|RUNNING|None|rule_check_parity_wildcards_t_small_ddp_2|n1|5:00",
    )
    text = text_of(config)
    assert (
        "6 searches for the largest batch: 2 ok, 1 queued, 1 failed, 1 interrupted, 1 unsupported"
        in text
    )
    grid = text.partition("small: largest batch per GPU\n")[2].splitlines()
    assert grid[:4] == [
        "      1 GPU  2 GPUs",
        "ddp   + 6    + does not fit",
        "dp    !      -",
        "slim  F      q",
    ]
    assert f"failed  largest batch of small slim gpus1  {reason}\n    {log}" in text
    assert "queued (Slurm's reasons): 1 Priority" in text
    assert "check_parity: 1 running" in text
    assert "find_largest_batch: 1" not in text


def test_a_running_search_shows_the_size_that_it_tries_and_its_limit() -> None:
    config = searching(cluster__time_limit_minutes=10)
    search = batch_search(config, "small", "ddp", 2)
    with scratch_folder(search.file) as scratch:
        ProgressNote(scratch).take([Beat(1, 0, 9, 3, "a batch of 4", 0.1)])
        text = text_of(config, width=200)
    assert "running  largest batch of small ddp gpus2  a batch of 4, 3 steps (process" in text
    assert "limit in 10 min" in text


def test_a_result_of_another_search_or_code_is_no_result_of_this_one() -> None:
    leave_batch(searching(), "ddp", 1)
    config = searching(workloads__small__precision="bf16")
    leave_batch(config, "ddp", 2)
    path = batch_search(config, "small", "ddp", 2).file
    path.write_text(re.sub('"code_sha256":"[0-9a-f]*"', '"code_sha256":"0"', path.read_text()))
    batch_search(config, "small", "slim", 1).file.parent.mkdir(parents=True)
    batch_search(config, "small", "slim", 1).file.write_text('{"x": 1')
    states = {
        (one.search.cell.strategy, one.search.cell.gpus): one for one in status_of(config).searches
    }
    assert states["ddp", 1].state == "refused"
    assert "its definition has changed since" in states["ddp", 1].detail
    assert (states["ddp", 2].state, states["ddp", 2].batch) == ("stale", "6")
    assert states["slim", 1].state == "refused"
    assert "slim/gpus1.json: not readable as JSON" in states["slim", 1].detail


def speed(items_per_s: float) -> Throughput:
    """A throughput that no rule marks."""
    return Throughput.model_validate(
        dict.fromkeys(Throughput.model_fields, 100)
        | {"warmup_converged": True, "unit": "images", "items_per_s": items_per_s}
    )


def test_the_median_speed_of_finished_cells_stands_beside_them() -> None:
    leave(cell_at("ddp", 1, 0), throughput=speed(25_000))
    leave(cell_at("ddp", 1, 1), throughput=speed(26_001))
    lines = text_of(matrix()).splitlines()
    assert lines[4:6] == ["      1 GPU           2 GPUs", "seed  01    images/s  01"]
    assert "   25,500  .." in lines[7]


@pytest.mark.parametrize("width", [80, 160])
def test_a_large_matrix_fits_the_terminal_and_no_path_is_broken(width: int) -> None:
    config = matrix(matrix__seeds=list(range(18)), matrix__strategies=["ddp", "slim"])
    cells = list(cells_of(config))
    assert len(cells) == 72
    reason = "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total"
    failure = Failure(phase="build", rank=1, exception=reason, log_tail=[])
    lines = []
    for number, cell in enumerate(cells):
        at = ("t", "small", cell.strategy, cell.gpus, cell.seed)
        if number < 30:
            lines.append(job(number, "PENDING", "Priority", "1:00", *at))
        elif number < 40:
            lines.append(job(number, "RUNNING", "None", "1:00", *at))
        elif number < 50:
            leave(cell, "oom", failure=failure)
        else:
            leave(cell, throughput=speed(25_000))
    squeue(*lines)
    printed = text_of(config, width=width).splitlines()
    paths = [line for line in printed if line.endswith("job.log")]
    assert paths == [f"    {cell.folder}/job.log" for cell in cells[40:50]]
    assert max(len(line) for line in printed if line not in paths) <= width
    assert "queued (Slurm's reasons): 30 Priority" in printed
    assert printed.index("small") < 4
    assert not [line for line in printed if line.startswith("queued  ")]


def test_a_screen_of_few_rows_shows_the_grid_and_how_much_is_left_out() -> None:
    assert fit(["a", "b", "c"], 10, 3) == ["a", "b", "c"]
    assert fit(["a", "b", "c", "d"], 10, 3) == ["a", "b", "... 2 more lines without WATCH"]
    # A path takes as many rows as it needs.
    assert fit(["a", "p" * 11, "c"], 10, 3) == ["a", "... 2 more lines without WATCH"]


def test_seeds_of_several_digits_stand_upright_and_a_narrow_terminal_breaks_the_grid() -> None:
    config = matrix(matrix__seeds=[8, 9, 10])
    printed = text_of(config, width=15).splitlines()
    lines = printed[printed.index("small") + 1 :]
    assert lines[:4] == ["      1 GPU", "seed    1", "      890", "dp    ..."]
    assert lines[6:8] == ["      2 GPUs", "seed    1"]


def test_in_a_terminal_every_state_has_a_symbol_of_its_own() -> None:
    for kind in ("plain", "symbol"):
        assert len({getattr(look, kind) for look in LOOKS.values()}) == len(LOOKS)
    assert all(look.plain.isascii() for look in LOOKS.values())
    leave(cell_at())
    assert "ddp   \x1b[32m●\x1b[0m" in text_of(matrix(), terminal=True)


def shared_gpu() -> dict[str, Any]:
    """What a cell records on a GPU that other processes use too."""
    fields, known = Throughput.model_fields, {"warmup_converged": True, "unit": "images"}
    window = Throughput.model_validate(dict.fromkeys(fields, 1) | known)
    shared = Device(index=0, node="n1", kind="gpu", name="GPU", samples=9, foreign_processes=2)
    return {"throughput": window, "devices": [shared]}


def test_the_terminal_and_the_tables_agree_on_every_outcome() -> None:
    failure = {"failure": Failure.plain("its reason")}
    earlier_code = {"code_sha256": "0" * 64}
    results: list[tuple[str, str, dict[str, Any]]] = [
        ("ok", "ok", {}),
        ("device fault", "ok", shared_gpu()),
        ("device fault", "ok", shared_gpu() | earlier_code),
        ("stale", "ok", earlier_code),
        ("refused", "ok", {"cell_sha256": "0" * 64}),
        ("timeout", "timeout", failure),
        ("diverged", "diverged", failure),
        ("failed", "failed", failure),
        ("unsupported", "unsupported", failure),
        ("oom", "oom", failure),
        ("oom", "oom", failure | earlier_code),
    ]
    seeds = list(range(len(results) + 1))
    config = matrix(matrix__strategies=["ddp"], matrix__gpus=[1], matrix__seeds=seeds)
    cells = list(cells_of(config))
    for cell, (_, status, fields) in zip(cells, results, strict=False):
        leave(cell, status, **fields)
    expected = [*(outcome for outcome, _, _ in results), "missing"]
    assert set(expected) == set(Outcome)
    assert [one.outcome for one in read_matrix(config)] == expected
    assert [one.state for one in status_of(config).cells] == expected
    assert all(LOOKS[outcome].symbol == outcome.sign for outcome in Outcome)


def test_a_device_fault_from_earlier_code_needs_a_run() -> None:
    config = matrix(matrix__strategies=["ddp"], matrix__gpus=[1], matrix__seeds=[0])
    judge(config)
    leave(cell_at(), **shared_gpu(), code_sha256="0" * 64)
    assert only(config).detail.endswith("; its code has changed since")
    assert exit_code(status_of(config)) == (2, "check: 1 device fault (exit code 2)")


def test_a_cell_with_a_device_fault_gives_its_reason() -> None:
    leave(cell_at(), **shared_gpu())
    status = only()
    assert status.state == "device fault"
    assert "2 processes that are not the cell's" in status.detail


def test_a_result_that_a_failed_rerun_left_in_place_is_stale() -> None:
    leave(cell_at(), stamp=False)
    assert only().state == "stale"
    assert only().detail == "its last rerun left no result; the next run repeats it"
    (cell_at().folder / "metrics.failed.json").write_text("{}")
    assert (
        only().detail == "a rerun of it failed; results/t/small/ddp/gpus1/seed0/metrics.failed.json"
    )


def test_a_log_without_a_result_is_an_interruption() -> None:
    folder = cell_at().folder
    folder.mkdir(parents=True)
    (folder / "job.log").touch()
    assert only().state == "interrupted"
    logs = Path(".snakemake/slurm_logs/rule_train/t_small_ddp_1_0")
    logs.mkdir(parents=True)
    for number in (9, 10):
        (logs / f"{number}.log").touch()
    assert (only().job, only().log) == ("10", logs / "10.log")


def test_a_cell_that_runs_here_shows_how_far_it_is_and_what_time_it_has_left() -> None:
    with scratch_folder(cell_at().folder / "metrics.json") as scratch:
        assert only().detail == f"starting (process {os.getpid()} on {os.uname().nodename})"
        now = time.time()
        note = CellProgress(phase="training", steps=4, silent_s=8, first_step_at=now - 20, at=now)
        progress_path(scratch).write_text(note.model_dump_json())
        status = only()
        assert status.state == "running"
        assert status.detail.startswith("training, 4 steps, silent for 8 s (process ")
        # Two epochs of four steps at 5 s, and the window.
        assert status.left_s == pytest.approx(20.2)
        assert status.limit_s == pytest.approx(7200, abs=5)
        assert "about 20 s left; limit in 2 h 00 min" in text_of(matrix(), width=200)
        progress_path(scratch).write_text("{")
        assert only().state == "running"
    assert only().state == "missing"


@pytest.mark.parametrize(
    "text",
    ["[]", "{}", "null", '{"host": 3}', '{"slurm_job_id": null, "host": "HERE", "pid": -1}', "\0"],
)
def test_a_damaged_owner_is_nobodys_and_the_cell_can_run(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = cell_at().folder / "metrics.json"
    for folder in (scratch_path(result), Path("results/t/.controller")):
        folder.mkdir(parents=True)
        (folder / OWNER).write_text(text.replace("HERE", socket.gethostname()))
    assert status_of(matrix()).cells
    with scratch_folder(result) as scratch:
        assert scratch.is_dir()


def test_a_run_that_was_killed_is_not_running() -> None:
    folder = scratch_path(cell_at().folder / "metrics.json")
    folder.mkdir(parents=True)
    gone = this_run() | {"created": 1.0}
    (folder / OWNER).write_text(json.dumps(gone))
    assert only().state == "missing"


def test_a_process_that_inherited_the_same_job_number_may_be_alive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    with scratch_folder(cell_at().folder / "metrics.json") as folder:
        assert why_alive(folder) == f"process {os.getpid()} of this machine runs it"
        (folder / OWNER).write_text(json.dumps(this_run() | {"created": 1.0}))
        assert why_alive(folder) == "", "an earlier try of the same job"


def test_without_squeue_a_job_that_may_run_a_cell_is_named_with_the_folder_to_delete() -> None:
    with scratch_folder(cell_at().folder / "metrics.json") as folder:
        gone = {"created": 1.0, "slurm_job_id": "8"}
        (folder / OWNER).write_text(json.dumps(this_run() | gone))
        words = f"squeue, which tells, is missing here (if it does not, delete {folder})"
        assert why_alive(folder) == f"Slurm job 8 runs it, or did: {words}"


def test_slurm_says_what_is_queued_why_and_what_runs_where() -> None:
    running = job(8, "RUNNING", "None", "10:00", "t", "small", "ddp", 2, 1)
    squeue(job(7, "PENDING", "Priority"), running)
    lines = text_of(matrix()).splitlines()
    assert "ddp   q.     .>" in lines
    assert "queued (Slurm's reasons): 1 Priority" in lines
    assert "running  small ddp gpus2 seed1  job 8  starting; limit in 10 min" in lines


def test_jobs_of_another_matrix_in_the_same_folder_are_not_this_ones() -> None:
    squeue(job(7, "PENDING", "Priority", "1:00", "t_b", "small", "ddp", 1, 0))
    text = text_of(matrix())
    assert "ddp   ..     .." in text
    assert "orphaned" not in text
    assert "job 7" not in text


def test_the_limit_of_a_running_job_is_the_nearer_one() -> None:
    squeue(job(8, "RUNNING", left="30:00"))
    folder = scratch_path(cell_at().folder / "metrics.json")
    folder.mkdir(parents=True)
    owner = this_run() | {"slurm_job_id": "8", "host": "n3"}
    (folder / OWNER).write_text(json.dumps(owner))
    assert only().limit_s == 1800
    assert only().detail == "starting on n3"
    assert only(matrix(cluster__time_limit_minutes=10)).limit_s == pytest.approx(600, abs=5)
    squeue()
    assert only().state == "missing"
    Path("bin/squeue").unlink()
    assert only().detail == "starting, if its job is still there"


def test_a_job_whose_controller_is_gone_is_an_orphan() -> None:
    squeue(job(7, "PENDING"), "9|RUNNING|None|rule_check_parity_wildcards_t_small_ddp_2|n1|5:00")
    text = text_of(matrix())
    assert "orphaned: 7, 9. Their controller is gone" in text
    assert "check_parity: 1 running" in text
    record = Path("results/t", FOLDER, OWNER)
    files.write_text(record, json.dumps(this_run()))
    assert "orphaned" not in text_of(matrix())
    assert f"controller: process {os.getpid()} of this machine" in text_of(matrix())
    files.write_text(record, json.dumps(this_run() | {"created": 1.0}))
    assert "controller: killed (it was process" in text_of(matrix())
    assert "orphaned: 7, 9" in text_of(matrix())


def test_a_controller_elsewhere_is_told_and_not_taken_for_dead() -> None:
    record = Path("results/t", FOLDER, OWNER)
    files.write_text(record, json.dumps(this_run() | {"host": "login2"}))
    alive, words = controller_of(Path("results/t"))
    assert alive is None
    assert "on login2, if it is alive: that cannot be seen from here" in words
    files.write_text(record, json.dumps(this_run() | {"host": "n1", "slurm_job_id": "5"}))
    assert controller_of(Path("results/t"))[0] is None
    Path("bin").mkdir()
    Path("bin/squeue").write_text("#!/bin/sh\necho RUNNING\n")
    Path("bin/squeue").chmod(0o755)
    assert controller_of(Path("results/t")) == (True, "Slurm job 5 on n1 (running)")
    files.write_text(record, json.dumps(this_run() | {"slurm_job_id": "5"}))
    assert controller_of(Path("results/t"))[1].endswith(" of this machine, in Slurm job 5")


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("PENDING|Dependency", "Slurm job 5 waits (Dependency)"),
        ("RUNNING|None", "Slurm job 5 starts, or works on another configuration"),
    ],
)
def test_a_batch_job_that_is_to_run_the_controller_is_known(
    state: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unnamed() -> str:
        raise KeyError("getpwuid(): uid not found: 4711")

    # A user without an entry in passwd, as in a container.
    monkeypatch.setattr(getpass, "getuser", unnamed)
    command = "profiles/slurm/controller.sbatch --configfile mine.yaml"
    Path("bin").mkdir()
    Path("bin/squeue").write_text(
        f"#!/bin/sh\necho '5|{state}|{Path.cwd()}|{command}'\n"
        "echo '6|RUNNING|None|/elsewhere/project|controller.sbatch'\n"
    )
    Path("bin/squeue").chmod(0o755)
    assert controller_of(Path("results/t")) == (None, f"none yet; {words}: {command}")


def test_slurm_that_does_not_answer_is_a_remark() -> None:
    Path("bin").mkdir()
    Path("bin/squeue").write_text("#!/bin/sh\necho 'squeue: error: no controller' >&2; exit 1\n")
    Path("bin/squeue").chmod(0o755)
    last = text_of(matrix(), width=300).splitlines()[-1]
    assert last.startswith("what is queued is not known: squeue")
    assert last.endswith("squeue: error: no controller")


@pytest.mark.parametrize(
    ("left", "seconds"),
    [("1-02:03:04", 93784), ("2:03:04", 7384), ("3:04", 184), ("UNLIMITED", None), ("", None)],
)
def test_slurms_times(left: str, seconds: float | None) -> None:
    assert parse_time(left) == seconds


def test_progress_is_of_the_rank_furthest_behind_and_a_full_disk_does_not_matter(
    tmp_path: Path,
) -> None:
    note = ProgressNote(tmp_path)
    note.take([Beat(1, 0, 9, 5, "training", 0.1), Beat(2, 1, 8, 4, "training", 3.0)])
    progress = read_progress(tmp_path)
    assert progress is not None
    assert (progress.steps, progress.silent_s) == (4, 3.0)
    assert progress.first_step_at == pytest.approx(progress.at, abs=1)
    ProgressNote(tmp_path / "metrics.json" / "no folder").take([])
    (tmp_path / "file").touch()
    ProgressNote(tmp_path / "file").take([Beat(1, 0, 9, 5, "training", 0.1)])


@pytest.mark.slow
def test_a_real_cell_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    with started(tmp_path, cell_of(gpus=1, steady_min_s=600)):
        scratch = scratch_path(tmp_path / "metrics.json")
        end = time.monotonic() + 60
        while not (progress := read_progress(scratch)) or progress.steps < 2:
            assert time.monotonic() < end
            time.sleep(0.2)
    assert progress.phase in ("training", "evaluation", "inspection", "warmup", "steady")
    assert progress.first_step_at is not None


def project(folder: Path) -> Path:
    (folder / "config").symlink_to(ROOT / "config")
    (folder / "resources").mkdir()
    (folder / "mine.yaml").write_text(OVERLAY)
    return folder


def test_the_command_needs_no_torch_and_changes_no_file(tmp_path: Path) -> None:
    folder = project(tmp_path)
    (folder / "torch.py").write_text("raise ImportError('the status wants torch')")
    before = sorted(folder.rglob("*"))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--configfile", "mine.yaml"],
        env=os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "results/t: 1 cells: 1 missing" in done.stdout
    assert sorted(folder.rglob("*")) == before


def test_the_exit_code_says_whether_all_is_well() -> None:
    config = matrix()
    assert exit_code(status_of(config))[0] == 2
    for cell in cells_of(config):
        leave(cell, "unsupported" if cell.unsupported else "ok")
    assert exit_code(status_of(config)) == (
        2,
        "check: 5 not judged by the parity gate (exit code 2)",
    )
    judge(config)
    assert exit_code(status_of(config)) == (0, "check: every cell has its result (exit code 0)")
    leave(cell_at(), "diverged", failure=Failure.plain("the mean loss is nan"))
    cell_at(gpus=2).folder.joinpath("metrics.json").unlink()
    assert exit_code(status_of(config)) == (1, "check: 1 diverged, 1 missing (exit code 1)")
    leave(cell_at())
    assert exit_code(status_of(config)) == (2, "check: 1 missing (exit code 2)")


def test_a_stale_a_refused_or_an_interrupted_cell_is_left_to_run() -> None:
    config = matrix(matrix__strategies=["ddp"], matrix__gpus=[1], matrix__seeds=[0])
    judge(config)
    leave(cell_at(), code_sha256="0" * 64)
    assert exit_code(status_of(config)) == (2, "check: 1 stale (exit code 2)")
    leave(cell_at(), cell_sha256="0" * 64)
    assert exit_code(status_of(config)) == (2, "check: 1 refused (exit code 2)")
    (cell_at().folder / "metrics.json").unlink()
    (cell_at().folder / "job.log").touch()
    assert exit_code(status_of(config)) == (2, "check: 1 interrupted (exit code 2)")


def test_the_exit_code_counts_the_searches_for_the_largest_batch() -> None:
    config = searching()
    judge(config)
    for cell in cells_of(config):
        leave(cell, "unsupported" if cell.unsupported else "ok")
    searches = [one.search for one in status_of(config).searches if one.state == "missing"]
    for search in searches:
        leave_batch(config, search.cell.strategy, search.cell.gpus)
    assert exit_code(status_of(config)) == (
        0,
        "check: every cell and every search has its result (exit code 0)",
    )
    searches[0].file.unlink()
    assert exit_code(status_of(config)) == (
        2,
        "check: searches for the largest batch: 1 missing (exit code 2)",
    )
    files.write_text(searches[0].file.with_suffix(".log"), "shardmark: memory ran out\n")
    cell_at().folder.joinpath("metrics.json").unlink()
    assert exit_code(status_of(config)) == (
        1,
        "check: 1 missing; searches for the largest batch: 1 failed (exit code 1)",
    )


def test_the_command_checks_and_cannot_always_tell(tmp_path: Path) -> None:
    project(tmp_path)
    command = [sys.executable, str(SCRIPT), "--check", "--configfile"]
    missing = subprocess.run([*command, "mine.yaml"], capture_output=True, text=True)
    assert missing.returncode == 2, missing.stderr
    assert missing.stdout.endswith(
        "check: 1 missing; 1 not judged by the parity gate (exit code 2)\n"
    )
    unknown = subprocess.run([*command, "no-such.yaml"], capture_output=True, text=True)
    assert unknown.returncode == 3
    assert "no-such.yaml" in unknown.stderr
    assert "Traceback" not in unknown.stderr


def test_a_reader_that_leaves_changes_nothing_about_the_exit_code(tmp_path: Path) -> None:
    project(tmp_path)
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, str(SCRIPT), "--check", "--configfile", "mine.yaml"]
    assert subprocess.run(command, stdout=writing).returncode == 2
    os.close(writing)


def test_a_mistake_in_the_configuration_is_one_message(tmp_path: Path) -> None:
    folder = project(tmp_path)
    (folder / "mine.yaml").write_text("matrx: 3")
    command = [sys.executable, str(SCRIPT), "--configfile", "mine.yaml"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "matrx: unknown key; did you mean 'matrix'?" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("colour", [True, False])
def test_in_a_terminal_it_is_watched_until_interrupted(colour: bool, tmp_path: Path) -> None:
    folder = project(tmp_path)
    reading, writing = pty.openpty()
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"} | ({} if colour else {"NO_COLOR": "1"})
    command = [sys.executable, str(SCRIPT), "--watch", "--configfile", "mine.yaml"]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=writing,
        stderr=writing,
        start_new_session=True,
        # A shell's background command ignores it, and so would all that is started from there.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    try:
        text = ""
        while "missing\x1b[J" not in text.split("controller", 1)[-1]:
            text += os.read(reading, 4096).decode()
        assert ("\x1b[2m·" in text) == colour
        # Redrawn from the corner, each line up to its end.
        assert text.count("\x1b[H") == 2
        assert "controller: none is running\x1b[K\r\n" in text
        psutil.Process(process.pid).send_signal(2)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
        os.close(reading)
        os.close(writing)
