"""merge_runs.py: every cell once, nothing hidden, and a merged run that reads as any other."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from snakemake.utils import update_config

from built_pages import build
from gpu_matrix import config_of, edit_json, write_matrix
from result_sets import metrics_of, write, write_parity, write_set
from shardmark.cells import batch_search, cells_of
from shardmark.config.loading import load
from shardmark.config.schema import LargestBatch
from shardmark.files import write_text
from shardmark.largest_batch import batch_result
from shardmark.metrics import read_metrics
from shardmark.parity_result import read_parity
from shardmark.results.largest_batch_rows import largest_batch_rows
from shardmark.results.matrix import read_matrix
from shardmark.results.result_set import cells_of_set, read_result_set
from shardmark.statistics.comparisons import compare
from small_matrix import ROOT
from test_config import shipped

SCRIPT = ROOT / "workflow/scripts/merge_runs.py"
RATIOS = {"ddp": 1.0, "fsdp": 0.97}


def merge_runs(into: Path, *arguments: Path | str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--into", str(into), *map(str, arguments)]
    return subprocess.run(command, text=True, capture_output=True)


@pytest.fixture
def monday(tmp_path: Path) -> Path:
    return write_set(tmp_path / "monday", RATIOS, range(5), noise=1)


@pytest.fixture
def tuesday(tmp_path: Path) -> Path:
    return write_set(tmp_path / "tuesday", RATIOS, range(5, 9), noise=2)


def test_seeds_of_two_runs_become_one_run_that_can_be_compared(
    monday: Path, tuesday: Path, tmp_path: Path
) -> None:
    joined = tmp_path / "joined"
    result = merge_runs(joined, monday, tuesday)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"18 cells of 2 sets are in {joined}\n")
    overlay = yaml.safe_load(result.stdout.partition("an overlay that says\n")[2])
    cells = {"workloads": ["w"], "gpus": [1], "strategies": list(RATIOS), "seeds": list(range(9))}
    assert overlay == {"run": "joined", "matrix": {**cells, "only": [cells]}}
    cells = cells_of_set(read_result_set(joined))
    assert len(cells) == 18
    assert set(cells["run"]) == {"joined"}
    assert set(cells["parity"]) == {"passed"}
    table = compare(cells, "ddp").set_index("metric")
    assert table.loc["items_per_s", "n"] == 9
    assert table.loc["items_per_s", "verdict"] == "slower"


def test_nine_runs_of_one_seed_each_are_one_report_of_nine_pairs(tmp_path: Path) -> None:
    shape = {"strategies": ["ddp", "fsdp2"], "gpus": [1]}
    for seed in range(9):
        write_matrix(config_of(run=f"night{seed}", seeds=[seed], **shape), tmp_path)
    nights = [tmp_path / f"results/night{seed}" for seed in range(9)]
    result = merge_runs(tmp_path / "results/joined", *nights)
    assert result.returncode == 0, result.stderr
    config = config_of(run="joined", seeds=list(range(9)), **shape)
    assert [one.outcome for one in read_matrix(config, tmp_path)] == ["ok"] * 18
    page = build(config, tmp_path).read_text()
    table = pd.read_csv(tmp_path / "results/joined/tables/comparisons.csv").set_index("metric")
    row = table.loc["items_per_s"]
    assert (row.strategy, row.n, row.paired, row.verdict) == ("fsdp2", 9, True, "slower")
    assert "without a result that counts" not in page
    assert "Not shown to be the same training" not in page, "the gate's verdicts still count"


def test_gates_of_two_definitions_are_a_conflict_that_is_named(
    monday: Path, tuesday: Path, tmp_path: Path
) -> None:
    path = tuesday / "parity/w/fsdp/ranks1.json"
    edit_json(path, case_sha256="1" * 64)
    result = merge_runs(tmp_path / "joined", monday, tuesday)
    assert "parity of w fsdp ranks1: the gate is defined in several ways in " in result.stdout
    assert str(path) in result.stdout


def test_a_merged_cell_is_the_cell_of_its_new_run_and_says_where_it_came_from(
    monday: Path, tuesday: Path, tmp_path: Path
) -> None:
    joined = tmp_path / "joined"
    merge_runs(joined, monday, tuesday)
    place = "w/fsdp/gpus1/seed7"
    old, new = (read_metrics(run / place / "metrics.json") for run in (tuesday, joined))
    assert new.cell.run == "joined"
    assert new.cell_sha256 == new.cell.fingerprint() != old.cell_sha256
    assert new.throughput == old.throughput
    assert new.provenance["merged_from"] == {
        "run": "tuesday",
        "path": str(tuesday / place / "metrics.json"),
        "cell_sha256": old.cell_sha256,
    }
    assert (joined / place / "steps.csv").read_text().endswith("0,0,7\n")
    assert (joined / place / "code.sha256").exists()
    assert (joined / "parity/w/fsdp/ranks1.json").exists()
    assert old.cell.run == "tuesday"


def test_the_same_result_in_two_sets_is_counted_once(
    monday: Path, tuesday: Path, tmp_path: Path
) -> None:
    first = tmp_path / "first"
    assert merge_runs(first, monday, tuesday).returncode == 0
    # A merge of a merge with one of its parts, and of a copy under another name.
    shutil.copytree(monday, tmp_path / "copy")
    result = merge_runs(tmp_path / "second", first, monday, tmp_path / "copy")
    assert result.returncode == 0, result.stderr
    assert "18 cells of 3 sets" in result.stdout
    assert "counted once, though in several sets: 10" in result.stdout
    assert len(read_result_set(tmp_path / "second").results) == 18


def test_different_results_of_one_cell_are_named_and_nothing_is_written(
    monday: Path, tmp_path: Path
) -> None:
    other = write_set(tmp_path / "other", RATIOS, range(4, 6), noise=3)
    joined = tmp_path / "joined"
    result = merge_runs(joined, monday, other)
    assert result.returncode == 1
    for strategy in RATIOS:
        assert f"w {strategy} gpus1 seed4: " in result.stderr
        assert str(other / f"w/{strategy}/gpus1/seed4/metrics.json") in result.stderr
    assert "seed5" not in result.stderr
    assert "images/s in " in result.stderr
    assert "The run of a seed counts once" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.glob("*joined*"))


@pytest.mark.parametrize("prefer", ["first", "last"])
def test_a_preference_decides_between_results_and_is_recorded(
    monday: Path, tmp_path: Path, prefer: str
) -> None:
    other = tmp_path / "other"
    cell = read_metrics(monday / "w/ddp/gpus1/seed4/metrics.json").cell
    write(other, metrics_of(cell, None))
    joined = tmp_path / "joined"
    result = merge_runs(joined, monday, other, "--prefer", prefer)
    assert result.returncode == 0, result.stderr
    status = read_metrics(joined / "w/ddp/gpus1/seed4/metrics.json").status
    assert status == {"first": "ok", "last": "oom"}[prefer]
    chosen = {"first": monday, "last": other}[prefer]
    (conflict,) = json.loads((joined / "merged.json").read_text())["conflicts"]
    assert f"oom in {other / 'w/ddp/gpus1/seed4/metrics.json'}" in conflict
    assert conflict.endswith(f"; kept {chosen / 'w/ddp/gpus1/seed4/metrics.json'}")
    assert conflict in result.stdout


def test_a_workload_of_two_definitions_is_refused_whatever_is_preferred(
    monday: Path, tmp_path: Path
) -> None:
    other = write_set(tmp_path / "other", RATIOS, range(5, 9), noise=3, precision="fp32")
    result = merge_runs(tmp_path / "joined", monday, other, "--prefer", "last")
    assert result.returncode == 1
    lines = result.stderr.splitlines()
    assert lines[1:] == [f"  workload w: definition.precision: bf16 -> fp32 ({monday} -> {other})"]
    assert not (tmp_path / "joined").exists()


def test_a_failed_parity_of_one_machine_stands(monday: Path, tuesday: Path, tmp_path: Path) -> None:
    write_parity(tuesday, "w", "fsdp", "failed")
    joined = tmp_path / "joined"
    result = merge_runs(joined, monday, tuesday)
    assert "parity of w fsdp ranks1: passed in " in result.stdout
    assert read_parity(joined / "parity/w/fsdp/ranks1.json").status == "failed"


def test_the_smaller_of_two_largest_batches_stands(tmp_path: Path) -> None:
    shape = {"strategies": ["ddp", "fsdp2"], "gpus": [1]}
    wanted = LargestBatch(workloads=["w"])
    for seed, batch in enumerate((24, 20)):
        config = config_of(run=f"night{seed}", seeds=[seed], **shape)
        write_matrix(config, tmp_path)
        search = batch_search(config, "w", "ddp", 1)
        found = batch_result(search, status="found", micro_batch=batch, per_gpu_batch=batch)
        write_text(tmp_path / search.file, found.model_dump_json())
    nights = [tmp_path / f"results/night{seed}" for seed in range(2)]
    result = merge_runs(tmp_path / "results/joined", *nights)
    assert "largest batch of w ddp gpus1: 24 in " in result.stdout
    joined = config_of(run="joined", seeds=[0, 1], **shape)
    rows = largest_batch_rows(joined.model_copy(update={"largest_batch": wanted}), tmp_path)
    assert [(row.strategy, row.status, row.micro_batch) for row in rows] == [
        ("ddp", "found", 20),
        ("fsdp2", "missing", None),
    ]


def test_versions_that_differ_are_told(monday: Path, tmp_path: Path) -> None:
    versions = {"versions": {"torch": "2.16.0"}}
    other = write_set(tmp_path / "other", RATIOS, range(5, 9), noise=3, environment=versions)
    result = merge_runs(tmp_path / "joined", monday, other)
    assert result.returncode == 0
    assert "torch: 2.15.0, 2.16.0" in result.stdout


def test_code_that_differs_is_named_for_each_workload(
    monday: Path, tuesday: Path, tmp_path: Path
) -> None:
    for path in tuesday.glob("w/fsdp/*/*/metrics.json"):
        edit_json(path, code_sha256="an edited file")
    result = merge_runs(tmp_path / "joined", monday, tuesday)
    assert result.returncode == 0, result.stderr
    assert "  code that trained w with fsdp\n" in result.stdout


def test_the_overlay_of_a_part_fits_the_configuration_that_planned_it(tmp_path: Path) -> None:
    shape = {"workloads": ["gpt_1b4"], "strategies": ["ddp", "fsdp2_bf16"], "seeds": [0, 1]}
    for part, count in (("a", 8), ("b", 4)):
        raw = shipped("eight_gpus")
        update_config(raw, {"run": part, "matrix": {**shape, "gpus": [count], "only": []}})
        write_matrix(load(raw, ROOT), tmp_path, side_files=False)
    result = merge_runs(tmp_path / "joined", tmp_path / "results/a", tmp_path / "results/b")
    assert result.returncode == 0, result.stderr
    raw = shipped("eight_gpus")
    update_config(raw, yaml.safe_load(result.stdout.partition("an overlay that says\n")[2]))
    planned = [(cell.strategy, cell.gpus, cell.seed) for cell in cells_of(load(raw, ROOT))]
    wanted = itertools.product(shape["strategies"], [8, 4], shape["seeds"])
    assert sorted(planned) == sorted(wanted)


def test_commits_are_named_only_if_their_code_differs(
    monday: Path, tuesday: Path, tmp_path: Path
) -> None:
    for path in tuesday.rglob("metrics.json"):
        edit_json(path, provenance={"git_commit": "b" * 40})
    same = merge_runs(tmp_path / "same", monday, tuesday)
    assert "git commit" not in same.stdout, "its code is the same"
    for path in tuesday.rglob("metrics.json"):
        edit_json(path, code_sha256=f"edited code of {path.parts[-4]}")
    other = merge_runs(tmp_path / "other", monday, tuesday)
    assert f"git commit: {'a' * 40}, {'b' * 40}" in other.stdout
    # A commit that is unknown is none.
    for path in sorted(tuesday.rglob("metrics.json"))[:3]:
        edit_json(path, provenance={})
    unknown = merge_runs(tmp_path / "unknown", monday, tuesday)
    assert f"git commit: {'a' * 40}, {'b' * 40}" in unknown.stdout


@pytest.mark.parametrize("place", [".", "inner"])
def test_a_run_is_not_merged_into_one_of_the_sets(monday: Path, tuesday: Path, place: str) -> None:
    files = sorted(monday.rglob("*"))
    result = merge_runs(monday / place, tuesday, monday)
    assert result.returncode == 1
    message = f"shardmark: --into: {monday / place} is in {monday}, a set to merge"
    assert result.stderr.startswith(message)
    assert len(result.stderr.splitlines()) == 1
    assert sorted(monday.rglob("*")) == files


def test_of_merges_into_one_folder_at_the_same_time_one_succeeds(
    monday: Path, tuesday: Path, tmp_path: Path
) -> None:
    joined = tmp_path / "joined"
    command = [sys.executable, str(SCRIPT), "--into", joined, monday, tuesday]
    merges = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    messages = sorted(merge.communicate()[1] for merge in merges)
    refused = f"shardmark: {joined}: is not empty; delete it, or name another folder\n"
    assert messages == ["", refused, refused]
    assert len(list(joined.rglob("metrics.json"))) == 18
    assert {path.name for path in tmp_path.iterdir()} == {"joined", "monday", "tuesday"}


def test_a_folder_that_is_not_empty_is_left_alone(
    monday: Path, tuesday: Path, tmp_path: Path
) -> None:
    result = merge_runs(monday, tuesday)
    assert result.returncode == 1
    assert f"{monday}: is not empty; delete it, or name another folder" in result.stderr
    assert len(read_result_set(monday).results) == 10
    assert not list(tmp_path.glob(".*"))
    (tmp_path / "empty").mkdir()
    assert merge_runs(tmp_path / "empty", tuesday).returncode == 0


def test_a_name_that_no_run_can_have_is_refused(tuesday: Path, tmp_path: Path) -> None:
    result = merge_runs(tmp_path / "a b", tuesday)
    assert result.returncode == 1
    assert "--into: 'a b' cannot be the name of a run" in result.stderr


def edit_cell(path: Path, **changes: object) -> None:
    """Change the cell of a result."""
    raw = json.loads(path.read_text())
    raw["cell"] |= changes
    path.write_text(json.dumps(raw))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("workload", "../../../outside"),
        ("strategy", "/outside"),
        ("run", ".."),
        ("strategy", "ddp/x"),
        ("workload", "w\n"),
    ],
)
def test_names_that_lead_out_of_the_merged_set_are_refused(
    monday: Path, tmp_path: Path, field: str, value: str
) -> None:
    path = monday / "w/ddp/gpus1/seed0/metrics.json"
    edit_cell(path, **{field: value})
    before = sorted(tmp_path.rglob("*"))
    result = merge_runs(tmp_path / "joined", monday)
    assert result.returncode == 1
    assert result.stderr.startswith(f"shardmark: {path}: cell.{field}: String should match")
    assert len(result.stderr.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("changes", [{"workload": "../x"}, {"strategy": "/x"}, {"ranks": -1}])
def test_a_parity_result_cannot_name_another_place(
    monday: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    path = monday / "parity/w/ddp/ranks1.json"
    edit_json(path, **changes)
    result = merge_runs(tmp_path / "joined", monday)
    assert result.returncode == 1
    assert result.stderr.startswith(f"shardmark: {path}: {next(iter(changes))}: ")
    assert not (tmp_path / "joined").exists()


def test_only_the_files_of_a_result_are_copied(monday: Path, tmp_path: Path) -> None:
    place = "w/ddp/gpus1/seed0"
    for name in ("telemetry.node0.csv", "job.log", ".bashrc", "run_me.py", "steps.csv.orig"):
        (monday / place / name).write_text("x")
    assert merge_runs(tmp_path / "joined", monday).returncode == 0
    assert sorted(path.name for path in (tmp_path / "joined" / place).iterdir()) == [
        "code.sha256",
        "job.log",
        "metrics.json",
        "steps.csv",
        "telemetry.node0.csv",
    ]


@pytest.mark.parametrize("name", ["w/ddp/gpus1/seed0/steps.csv", "w/fsdp", "parity/w"])
def test_a_symbolic_link_in_a_set_is_refused(monday: Path, tmp_path: Path, name: str) -> None:
    link, elsewhere = monday / name, tmp_path / "of another user"
    link.rename(elsewhere)
    link.symlink_to(elsewhere)
    result = merge_runs(tmp_path / "joined", monday)
    assert result.returncode == 1
    assert result.stderr == (
        f"shardmark: {link}: is a symbolic link; put what it points to in its place\n"
    )
    assert not (tmp_path / "joined").exists()


def test_a_pipe_in_a_set_is_refused_and_not_waited_for(monday: Path, tmp_path: Path) -> None:
    pipe = monday / "w/ddp/gpus1/seed9/metrics.json"
    pipe.parent.mkdir()
    os.mkfifo(pipe)
    result = merge_runs(tmp_path / "joined", monday)
    assert result.stderr == f"shardmark: {pipe}: is neither a file nor a folder; delete it\n"
