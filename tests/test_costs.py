"""Time limits of cells, and what a matrix costs before it is paid for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from result_sets import metrics_of
from shardmark import files
from shardmark.cells import batch_searches_of, cell_of, cells_of
from shardmark.codebase import code_of_cell, code_sha256
from shardmark.config.files import load_files
from shardmark.config.schema import Config
from shardmark.largest_batch import batch_result
from shardmark.metrics import Metrics, Times
from shardmark.status.costs import Job, estimate_costs
from shardmark.status.costs_view import cost_lines
from shardmark.time_limits import limit_minutes
from small_matrix import ROOT, cell_at, matrix

CUDA: dict[str, Any] = {
    "cluster__device": "cuda",
    "cluster__expected_items_per_s": {"small": 10},
    "matrix__strategies": ["ddp"],
}


def limit_of(gpus: int = 1, **changes: Any) -> int:
    config = matrix(**CUDA | changes)
    return limit_minutes(config.cluster, cell_of(config, "small", "ddp", gpus, 0))


def leave(root: Path, metrics: Metrics) -> None:
    """A result of the present code."""
    current = metrics.model_copy(update={"code_sha256": code_sha256(code_of_cell(metrics.cell))})
    path = root / metrics.cell.folder / "metrics.json"
    files.write_text(path, current.model_dump_json(by_alias=True))


def cells(config: Config, root: Path) -> list[Job]:
    return estimate_costs(config, root).cells


def test_a_time_limit_follows_from_epochs_window_and_gpus() -> None:
    # 300 s + 4 s + 10 x (2 epochs of 80 images + 20 steps of 16) / 10 images/s + 0.2 s + 0.2 s.
    assert limit_of() == 14
    assert limit_of(gpus=2) == 10
    assert limit_of(workloads__small__epochs=20) == 38
    assert limit_of(measure__steady_max_s=120) == 16
    assert limit_of(cluster__expected_items_per_s={"small": 100}) == 6


def test_a_time_limit_is_never_above_the_one_that_is_set_for_all() -> None:
    assert limit_of(cluster__time_limit_minutes=9) == 9
    assert limit_of(cluster__expected_items_per_s={}) == 120


def test_a_time_limit_is_no_part_of_a_cells_definition() -> None:
    assert cell_at(**CUDA).fingerprint() == cell_at(cluster__device="cuda").fingerprint()


def test_the_full_comparison_asks_for_a_quarter_of_what_limits_of_two_hours_would() -> None:
    config = load_files([], ROOT)
    costs = estimate_costs(config, ROOT / "tests")
    worst = sum(job.charged * job.worst_s for job in costs.jobs) / 3600
    # Limits of two hours asked for 11,093 GPU-hours with eight strategies; there are thirteen now.
    assert worst < 11_093 * 13 / 8 / 4
    # And leaves room: no cell is ended that takes less than three times what is likely.
    assert all(job.worst_s > 3 * (job.likely_s or 0) for job in costs.jobs)


def test_a_cell_that_has_its_node_alone_is_charged_for_all_of_it(tmp_path: Path) -> None:
    sizes = {**CUDA, "cluster__gpus_per_node": 4, "matrix__gpus": [1, 4, 8]}
    alone = {job.gpus: job.charged for job in cells(matrix(**sizes), tmp_path)}
    assert alone == {1: 4, 4: 4, 8: 8}
    shared = matrix(**sizes | {"cluster__slurm_extra": "--hint=nomultithread"})
    assert {job.gpus: job.charged for job in cells(shared, tmp_path)} == {1: 1, 4: 4, 8: 8}


def test_the_gate_is_charged_for_whole_nodes_where_slurm_assigns_no_gpus(tmp_path: Path) -> None:
    sizes = {**CUDA, "cluster__gpus_per_node": 4, "matrix__gpus": [2]}

    def gate(config: Config) -> list[tuple[int, int]]:
        jobs = estimate_costs(config, tmp_path).jobs
        return [(job.gpus, job.charged) for job in jobs if job.cell is None]

    assert gate(matrix(**sizes)) == [(2, 2), (1, 1)]
    assert gate(matrix(**sizes, cluster__gpu_request="none")) == [(2, 4), (1, 4)]


def test_only_what_is_left_is_counted(tmp_path: Path) -> None:
    config = matrix(**CUDA)
    assert len(cells(config, tmp_path)) == 4
    # Four cells, two parity cases, an oracle for each of their sizes.
    assert len(estimate_costs(config, tmp_path).jobs) == 8
    leave(tmp_path, metrics_of(next(cells_of(config)), None))
    assert len(cells(config, tmp_path)) == 3
    pinned = matrix(**CUDA | {"cluster__block": "pinned"})
    assert len(estimate_costs(pinned, tmp_path).jobs) == 7 + 3


def test_a_search_for_the_largest_batch_is_counted_until_it_has_a_result(tmp_path: Path) -> None:
    config = matrix(**CUDA | {"largest_batch": {"workloads": ["small"]}})
    search, *_ = batch_searches_of(config)
    text = "\n".join(cost_lines(config, estimate_costs(config, tmp_path), 120))
    assert "4 jobs of the parity gate, and 2 searches for a largest batch" in text
    # Its limit is the one for all jobs, though the cells' is shorter.
    assert "largest batch  GPUs  searches  nodes  time limit  likely\nsmall             1" in text
    assert "         1      1     120 min" in text
    # Each has a node of four GPUs for 125 minutes.
    assert "All searches until their limit are 17 GPU-hours of those at worst" in text
    result = batch_result(search, status="does_not_fit", reason="OutOfMemoryError")
    files.write_text(tmp_path / search.file, result.model_dump_json())
    costs = estimate_costs(config, tmp_path)
    assert (len(costs.searches), len(costs.jobs)) == (1, 8 + 1)
    assert costs.searches[0].worst_s == (120 + 5) * 60
    # A damaged result, or one of earlier code, is left to run like a cell's.
    for broken in ('{"x": 1', result.model_copy(update={"code_sha256": "0"}).model_dump_json()):
        files.write_text(tmp_path / search.file, broken)
        assert len(estimate_costs(config, tmp_path).searches) == 2


def test_results_of_a_shorter_run_say_how_long_a_cell_takes(tmp_path: Path) -> None:
    short = matrix(**CUDA | {"run": "pilot", "workloads__small__epochs": 1})
    before = {job.gpus: job.likely_s for job in cells(matrix(**CUDA), tmp_path)}
    cell = cell_of(short, "small", "ddp", 2, 0)
    result = metrics_of(cell, 4.0)
    assert result.throughput is not None
    rate = result.throughput.model_copy(update={"items_per_s_per_gpu": 2.0})
    times = Times(total_s=50, training_s=10, evaluation_s=5, warmup_s=1, steady_s=0.2)
    leave(tmp_path, result.model_copy(update={"throughput": rate, "time_s": times}))
    jobs = cells(matrix(**CUDA), tmp_path)
    assert {job.gpus: job.measured for job in jobs} == {1: False, 2: True}
    likely = {job.gpus: job.likely_s for job in jobs}
    assert likely[1] == before[1]
    # Snakemake, start-up (50 - 16.2 - 4 idle), idle, (2 x 80 / 2 + 20 x 8) images, the window.
    assert likely[2] == pytest.approx(10 + 29.8 + 4 + 240 / 2 + 0.2)


def test_a_result_of_another_batch_says_nothing(tmp_path: Path) -> None:
    other = matrix(**CUDA | {"run": "pilot", "workloads__small__batch": {"global": 32}})
    leave(tmp_path, metrics_of(cell_of(other, "small", "ddp", 2, 0), 4.0))
    assert not any(job.measured for job in cells(matrix(**CUDA), tmp_path))


def test_the_plan_names_what_is_not_known(tmp_path: Path) -> None:
    config = matrix(**CUDA | {"cluster__expected_items_per_s": {}})
    text = "\n".join(cost_lines(config, estimate_costs(config, tmp_path), 80))
    assert "120 min       ?" in text
    assert "One after another on one machine (profiles/local): more than " in text
    assert "The likely sums leave out small, of whose speed nothing is known" in text
    assert "Each cell is counted as one job, also if groups in the profile" in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_command_prints_the_sums_and_changes_no_file(tmp_path: Path) -> None:
    (tmp_path / "config").symlink_to(ROOT / "config")
    (tmp_path / "resources").mkdir()
    before = sorted(tmp_path.rglob("*"))
    script = str(ROOT / "workflow/scripts/plan.py")
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "920 of 920 cells are left to run, and 100 jobs of the parity gate" in done.stdout
    assert "690 jobs use a part of a node" in done.stdout
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("script", ["plan.py", "doctor.py", "status.py"])
def test_a_reader_that_closes_the_pipe_causes_no_traceback(script: str) -> None:
    overlay = ROOT / "config/demo.yaml"
    command = [sys.executable, str(ROOT / "workflow/scripts" / script), "--configfile", overlay]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.stderr == ""


def test_a_cell_of_the_workflow_has_its_own_limit(tmp_path: Path) -> None:
    overlay = tmp_path / "mine.yaml"
    overlay.write_text("run: limits\nmatrix: {strategies: [ddp], seeds: [0]}\n")
    target = "results/limits/{}/ddp/gpus{}/seed0/metrics.json"
    targets = [target.format("resnet50_cifar10", 1), target.format("gpt_3b9", 8)]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "snakemake", "-n", "--cores", "1", "--nolock", *targets),
            *("--configfile", str(overlay)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "runtime=43, turn=1, time_limit_minutes=38," in done.stdout
    assert "runtime=28, turn=1, time_limit_minutes=23," in done.stdout
