"""The largest batch that fits: what the search finds with real ranks, and where its result goes."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from built_pages import build, draw_figures, read_all, write_page
from collect import describe_searches
from export_tables import tables_to_export
from find_largest_batch import find_largest_batch
from gpu_matrix import config_of, write_matrix
from shardmark.cells import BatchSearch, batch_search, batch_searches_of
from shardmark.config.loading import load
from shardmark.config.saved import save_config
from shardmark.config.schema import Config
from shardmark.config.schema import LargestBatch as Wanted
from shardmark.errors import UserError
from shardmark.files import write_text
from shardmark.largest_batch import LargestBatch, Measured, SearchState, batch_result
from shardmark.report.table import to_markdown
from shardmark.result_files import read_record
from shardmark.results.collected import collect
from shardmark.results.searches import read_searches
from shardmark.training.updates import taken_until_it_updates
from small_matrix import ROOT
from start_up import stall_s
from test_schemas import errors
from test_workflow import CONFIG, copy_project

LIMITED = ROOT / "tests/failing/train_limited.py"


def raw(**changes: Any) -> dict[str, Any]:
    """A matrix with a tiny language model, whose sequences are fewer than some batches."""
    return {
        "run": "t",
        "matrix": {"workloads": ["gpt"], "strategies": ["ddp"], "gpus": [2], "seeds": [0]},
        "workloads": {
            "gpt": {
                "model": {
                    "name": "gpt",
                    "layers": 1,
                    "width": 8,
                    "heads": 1,
                    "context": 8,
                    "vocabulary": 16,
                },
                "dataset": {"name": "synthetic_tokens", "sequences": 4},
                "batch": {"global": 4},
                "optimizer": {"name": "adamw", "learning_rate": 0.001},
                "precision": "fp32",
            }
        },
        "cluster": {"device": "cpu", "gpus_per_node": 2},
        "measure": {
            "steady_min_s": 0.2,
            "steady_max_s": 0.2,
            "warmup_min_steps": 3,
            "warmup_max_steps": 6,
        },
        "largest_batch": {"workloads": ["gpt"], "most": 16},
        **changes,
    }


def search(most: int = 16, **changes: Any) -> BatchSearch:
    config = load(raw(largest_batch={"workloads": ["gpt"], "most": most}, **changes), ROOT)
    return batch_search(config, "gpt", "ddp", 2)


def test_a_search_whose_processes_end_before_it_is_over_does_not_begin_again(
    tmp_path: Path,
) -> None:
    script = tmp_path / "train_ends.py"
    script.write_text("import os\nos._exit(0)\n")
    with pytest.raises(UserError, match="ended with exit code 0 before the search was over"):
        find_largest_batch(search(16), tmp_path / "gpus2.json", script=script, limit_s=60.0)


@pytest.fixture
def find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Searches with ranks that fail above a limit."""

    def find(limit: int, *failures: str, most: int = 16) -> LargestBatch:
        file = tmp_path / "failures"
        file.write_text("\n".join(failures))
        monkeypatch.setenv("LIMIT", str(limit))
        monkeypatch.setenv("FAILURES", str(file))
        output = tmp_path / "gpus2.json"
        return find_largest_batch(search(most), output, stall_s=stall_s(), script=LIMITED)

    return find


def outcomes(largest: LargestBatch) -> list[tuple[int, str]]:
    return [(trial.micro_batch, trial.outcome) for trial in largest.trials]


@pytest.mark.slow
def test_a_rank_that_runs_out_of_memory_bounds_the_search(find: Any, tmp_path: Path) -> None:
    largest = find(5, "memory", "no kernel")
    assert (largest.status, largest.micro_batch, largest.per_gpu_batch) == ("found", 5, 5)
    assert outcomes(largest) == [
        *((1, "fits"), (2, "fits"), (4, "fits")),
        *((8, "oom"), (6, "oom"), (5, "fits")),
    ]
    assert largest.measured is not None
    assert largest.measured.unit == "tokens"
    assert largest.measured.items_per_s == pytest.approx(2 * largest.measured.items_per_s_per_gpu)
    assert largest.measured.torch_reserved_bytes is None, "not measured on a CPU"
    assert errors("largest_batch", json.loads(largest.model_dump_json())) == []
    assert list(tmp_path.iterdir()) == [tmp_path / "failures"], "no scratch folder is left"


@pytest.mark.slow
def test_ranks_that_are_killed_or_hang_twice_bound_the_search(find: Any) -> None:
    largest = find(1, "killed", "hang", most=2)
    assert (largest.status, largest.micro_batch) == ("found", 1)
    assert outcomes(largest) == [(1, "fits"), (2, "killed"), (2, "stalled")]


def test_a_rank_that_is_killed_once_bounds_nothing() -> None:
    state = SearchState(search=search()).after(1, "fits").after(2, "killed")
    assert state.next_size() == 2
    assert state.after(2, "fits").next_size() == 4


@pytest.mark.slow
def test_a_strategy_may_fit_at_no_batch(find: Any) -> None:
    largest = find(0, "memory")
    assert (largest.status, largest.micro_batch, largest.measured) == ("does_not_fit", None, None)
    assert "Tried to allocate 2.00 GiB" in largest.reason
    assert outcomes(largest) == [(1, "oom")]


@pytest.mark.slow
def test_a_search_ends_at_the_largest_batch_that_is_tried(find: Any) -> None:
    largest = find(99, most=3)
    assert (largest.status, largest.micro_batch) == ("reached_most", 3)
    assert outcomes(largest) == [(1, "fits"), (2, "fits"), (3, "fits")]


@pytest.mark.slow
def test_another_failure_is_no_result(find: Any) -> None:
    with pytest.raises(UserError, match=r"failed with a batch of 2, .*the wheels came off"):
        find(1, "wheels")


def test_the_time_limit_is_no_result(tmp_path: Path) -> None:
    begin = time.monotonic()
    with pytest.raises(UserError, match=r"time limit.*cluster\.time_limit_minutes"):
        find_largest_batch(search(), tmp_path / "gpus2.json", limit_s=1.0)
    assert time.monotonic() - begin < 30


@pytest.mark.parametrize("answer", range(1, 40))
def test_every_limit_is_found_with_few_trials(answer: int) -> None:
    state = SearchState(search=search(most=32))
    while (size := state.next_size()) is not None:
        state = state.after(size, "fits" if size <= answer else "oom")
    assert state.largest == min(answer, 32)
    assert len(state.trials) <= 10


def test_a_size_whose_window_does_not_fit_is_too_large() -> None:
    state = SearchState(search=search())
    for size in (1, 2, 4):
        state = state.after(size, "fits")
    state = state.after(8, "oom").after(6, "fits").after(7, "oom")
    assert (state.next_size(), state.largest) == (None, 6)
    state = state.after(6, "oom")
    assert (state.next_size(), state.largest) == (5, 4)


def test_the_log_of_a_search_says_why_it_failed(tmp_path: Path) -> None:
    config = load(raw(), ROOT)
    (wanted,) = read_searches(config, tmp_path)
    assert wanted.failure == "", "it was not tried yet"
    file = tmp_path / "config.json"
    save_config(config, file)
    output = tmp_path / wanted.search.file
    output.parent.mkdir(parents=True)
    names = ["--workload", "gpt", "--strategy", "ddp", "--gpus", "2", "--output", str(output)]
    script = str(ROOT / "workflow/scripts/find_largest_batch.py")
    run = [sys.executable, script, "--config", str(file), *names, "--time-limit-minutes", "0.02"]
    with output.with_suffix(".log").open("w") as log:
        done = subprocess.run(run, cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT)
    assert done.returncode == 1
    (failed,) = read_searches(config, tmp_path)
    assert failed.failure.startswith("the time limit ended the search before the first batch")


def leave(config: Config, root: Path, strategy: str, **fields: Any) -> None:
    """The result of a search at one GPU."""
    search = batch_search(config, "w", strategy, 1)
    write_text(root / search.file, batch_result(search, **fields).model_dump_json())


@pytest.fixture
def searched(tmp_path: Path) -> Config:
    """A matrix of results on GPUs, with a search of every outcome."""
    config = config_of(strategies=["ddp", "fsdp2", "fsdp", "dp"], gpus=[1, 2])
    write_matrix(config, tmp_path)
    measured = Measured(
        unit="images",
        items_per_s=14_321.0,
        items_per_s_per_gpu=14_321.0,
        half_width_pct=0.5,
        torch_allocated_bytes=70 * 2**30,
        torch_reserved_bytes=72 * 2**30,
        gpu_memory_bytes=80 * 2**30,
        allocation_retries=12,
    )
    leave(config, tmp_path, "ddp", status="found", micro_batch=1733, per_gpu_batch=3466)
    for strategy, status, batch in (("ddp", "found", 1733), ("fsdp2", "reached_most", 4096)):
        sizes = {"micro_batch": batch, "per_gpu_batch": 2 * batch, "measured": measured}
        leave(config, tmp_path, strategy, status=status, **sizes)
    leave(config, tmp_path, "fsdp", status="does_not_fit", reason="OutOfMemoryError: 2 GiB")
    return config.model_copy(update={"largest_batch": Wanted(workloads=["w"], gpus=[1])})


def test_a_trial_without_an_update_is_no_trial() -> None:
    with pytest.raises(UserError, match="skipped 17 steps in a row"):
        taken_until_it_updates(lambda: None, required=True)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, {(strategy, gpus) for strategy in ("ddp", "fsdp2", "fsdp", "dp") for gpus in (1, 2)}),
        ({"strategies": ["ddp", "dp"], "gpus": [2]}, {("ddp", 2), ("dp", 2)}),
    ],
)
def test_only_what_is_named_is_searched(
    searched: Config, wanted: dict[str, Any], expected: set[tuple[str, int]]
) -> None:
    searches = Wanted(workloads=["w"], **wanted)
    config = searched.model_copy(update={"largest_batch": searches})
    found = [(search.cell.strategy, search.cell.gpus) for search in batch_searches_of(config)]
    assert sorted(found) == sorted(expected)


@pytest.mark.slow
def test_the_report_has_a_section_that_keeps_to_itself(searched: Config, tmp_path: Path) -> None:
    tables, findings = read_all(searched, tmp_path)
    (table,) = tables_to_export(tables, findings)["largest_batches"]
    assert table.rows == [
        ["DDP", "same arithmetic", "1", "3,466 [2 x 1,733]", "14,321", "72.0", "90.0"],
        ["FSDP2", "same arithmetic", "1", "8,192 or more [2 x 4,096]", "14,321", "72.0", "90.0"],
        ["FSDP1", "same arithmetic", "1", "does not fit", "–", "–", "–"],
        ["DataParallel", "same arithmetic", "1", "no result", "–", "–", "–"],
    ]
    assert table.headings[3:5] == ["Batch per GPU (samples)", "Images/s per GPU there"]
    assert "not comparable with the rows at equal batch" in to_markdown([table])
    assert table.notes[0].startswith("DDP, GPUs: 1: in the window, an allocation failed 12 times")
    assert table.notes[2] == "FSDP1, GPUs: 1: OutOfMemoryError: 2 GiB."
    page = build(searched, tmp_path).read_text()
    assert 'href="#largest-batch"' in page
    section = page.partition('<h2 id="largest-batch"')[2].partition("<h2")[0]
    assert "<strong>at equal memory</strong>" in section
    assert "14,321" in section
    others = page.replace(section, "")
    assert "14,321" not in others
    assert "3,466" not in others


@pytest.mark.slow
def test_a_search_without_a_result_is_named_with_its_reason(
    searched: Config, tmp_path: Path
) -> None:
    damaged = tmp_path / batch_search(searched, "w", "ddp", 1).file
    damaged.write_text('{"x": 1')
    failed = batch_search(searched, "w", "dp", 1)
    reason = "failed with a batch of 2, and not for lack of memory: ValueError: the wheels"
    log = f"a warning\nshardmark: {failed.title}: {reason}\nmore of it\n"
    write_text(tmp_path / failed.file.with_suffix(".log"), log)
    missing = batch_search(searched, "w", "fsdp2", 1)
    (tmp_path / missing.file).unlink()
    lines = describe_searches(collect(searched, tmp_path).largest_batches)
    assert lines == [
        "1 of 4 searches for the largest batch have a result",
        "refused: largest batch of w ddp gpus1: " + lines[1].partition("gpus1: ")[2],
        "missing: largest batch of w fsdp2 gpus1: there is no result",
        f"failed: largest batch of w dp gpus1: {reason}\nmore of it",
    ]
    assert f"{damaged}: not readable as JSON" in lines[1]
    page = build(searched, tmp_path).read_text()
    assert "3 of 4 searches for the largest batch have no result." in page
    assert f"DataParallel, GPUs: 1: {reason}." in page
    tables = tmp_path / "results/t/tables"
    script = ROOT / "workflow/scripts/summarise.py"
    run = [sys.executable, str(script), "--tables", str(tables), "--baseline", "ddp"]
    subprocess.run(run, check=True)
    words = " ".join((tables / "summary.txt").read_text().split())
    assert f"DataParallel, GPUs: 1: {reason}." in words
    assert "not comparable with the rows at equal batch" in words


def test_without_a_search_there_is_no_section_and_the_other_tables_are_the_same(
    searched: Config, tmp_path: Path
) -> None:
    draw_figures(searched, tmp_path)

    def tables(config: Config) -> dict[str, str]:
        write_page(config, tmp_path)
        files = (tmp_path / "results/t/tables").glob("*.csv")
        return {file.stem: file.read_text() for file in files}

    with_search = tables(searched)
    without = tables(searched.model_copy(update={"largest_batch": Wanted()}))
    assert "largest-batch" not in (tmp_path / "results/t/report.html").read_text()
    assert len(with_search.pop("largest_batches").splitlines()) == 1 + 4
    assert len(without.pop("largest_batches").splitlines()) == 1
    assert with_search == without


@pytest.mark.slow
def test_the_workflow_searches_what_is_configured_once(tmp_path: Path) -> None:
    project = copy_project(tmp_path)
    matrix = raw()
    matrix["matrix"]["strategies"] = ["ddp", "dp"]
    matrix["largest_batch"]["most"] = 4
    (tmp_path / CONFIG).write_text(yaml.safe_dump(matrix))
    done = project.matrix()
    assert done.returncode == 0, done.stdout
    assert re.search(r"^largest batch of gpt ddp gpus2: 4 or more per GPU, ", done.stdout, re.M)
    folder = tmp_path / "results/t/largest_batch/gpt"
    largest = read_record(folder / "ddp/gpus2.json", LargestBatch)
    assert (largest.status, largest.micro_batch) == ("reached_most", 4)
    rows = list(csv.DictReader((tmp_path / "results/t/tables/largest_batches.csv").open()))
    assert [(row["strategy"], row["status"], row["trials"]) for row in rows] == [
        ("ddp", "reached_most", "1 fits; 2 fits; 4 fits"),
        ("dp", "unsupported", ""),
    ]
    # Another end of the search is another search, and no other cell.
    matrix["largest_batch"]["most"] = 5
    (tmp_path / CONFIG).write_text(yaml.safe_dump(matrix))
    planned = project.planned()
    assert "train" not in planned
    assert planned["find_largest_batch"] == {"results/t/largest_batch/gpt/ddp/gpus2.json"}
    # A report of what there is starts no search, and does not show the result of another one.
    done = project.matrix("report")
    assert done.returncode == 0, done.stdout
    rows = list(csv.DictReader((tmp_path / "results/t/tables/largest_batches.csv").open()))
    assert [row["status"] for row in rows] == ["refused", "unsupported"]
    assert "refused: largest batch of gpt ddp gpus2: results/t/largest_batch/" in done.stdout
