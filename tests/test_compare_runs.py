"""compare_runs.py as a user and a CI job call it: its exit status, its words, its files."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import pytest

from compare_runs import main
from result_sets import metrics_of, write, write_parity, write_set
from shardmark.metrics import read_metrics
from shardmark.results.result_set import read_result_set
from shardmark.statistics.set_comparison import SetComparison, compare_sets

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "workflow/scripts/compare_runs.py"
RATIOS = {"ddp": 1.0, "fsdp": 0.98, "fsdp2": 1.01}


def compare_runs(*arguments: Path | str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, text=True, capture_output=True)


def compared(before: Path, after: Path, **arguments: Any) -> SetComparison:
    return compare_sets(read_result_set(before), read_result_set(after), **arguments)


def primary(comparison: SetComparison) -> pd.DataFrame:
    return comparison.table[comparison.table["family"] == "primary"].set_index("strategy")


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine seeds of three strategies, 0.5 % from run to run."""
    return write_set(tmp_path_factory.mktemp("sets") / "before", RATIOS, noise=1)


def test_a_planted_slow_down_of_3_percent_is_a_regression(before: Path, tmp_path: Path) -> None:
    slower = RATIOS | {"fsdp": 0.98 * 0.97}
    after = write_set(tmp_path / "after", slower, noise=2)
    result = compare_runs(before, after)
    assert result.returncode == 1, result.stderr
    headline = "Regression: w fsdp gpus1 is slower by more than the margin (−"
    assert headline in result.stdout
    assert "; established)" in result.stdout
    folder = after / "compared-with-before"
    table = pd.read_csv(folder / "comparison.csv")
    rows = table[table["family"] == "primary"].set_index("strategy")
    assert rows["verdict"].to_dict() == {
        "ddp": "equivalent",
        "fsdp": "slower",
        "fsdp2": "equivalent",
    }
    # Within four standard errors, each 0.5 % * sqrt(2 / 9) = 0.24 %.
    assert rows.loc["fsdp", "ratio"] == pytest.approx(0.97, abs=0.0097)
    assert rows.loc["fsdp", "p_adjusted"] == pytest.approx(2 / 512)
    assert rows.loc["fsdp", "p_regression"] <= 3 / 512
    assert rows["regression"].to_dict() == {"ddp": "no", "fsdp": "yes", "fsdp2": "no"}
    assert (folder / "comparison.md").read_text().strip() == result.stdout.strip()
    assert "slower (established), n = 9" in texts_of(folder / "comparison.svg")
    assert (folder / "comparison.pdf").read_bytes().startswith(b"%PDF")
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert r"\toprule" in (folder / "comparison.tex").read_text()


def texts_of(svg: Path) -> str:
    """The figure's texts, which matplotlib draws as paths and notes as comments."""
    root = ElementTree.parse(svg, ElementTree.XMLParser(target=Comments())).getroot()
    return " ".join(node.text or "" for node in root.iter(ElementTree.Comment))


class Comments(ElementTree.TreeBuilder):
    def __init__(self) -> None:
        super().__init__(insert_comments=True)


@pytest.mark.slow
def test_a_planted_difference_of_nothing_is_no_regression(before: Path, tmp_path: Path) -> None:
    after = write_set(tmp_path / "after", RATIOS, noise=2)
    result = compare_runs(before, after, "--output", tmp_path / "out")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "No regression: " in result.stdout
    assert not (after / "compared-with-before").exists()
    for noise in range(10, 20):
        again = compared(before, write_set(tmp_path / f"after{noise}", RATIOS, noise=noise))
        assert again.outcome == "no regression"
        assert set(primary(again)["verdict"]) == {"equivalent"}


def test_two_seeds_are_inconclusive_whatever_they_show(tmp_path: Path) -> None:
    before = write_set(tmp_path / "before", RATIOS, range(2), noise=1)
    after = write_set(tmp_path / "after", dict.fromkeys(RATIOS, 0.5), range(2), noise=2)
    result = compare_runs(before, after)
    assert result.returncode == 2
    assert "Inconclusive: " in result.stdout
    assert "fewer than 3 runs" in result.stdout
    assert "A regression can be shown from 3 runs of each set on (likely: " in result.stdout
    assert "and from 6 without that model (established)" in result.stdout


def test_three_seeds_show_a_large_regression_as_likely(tmp_path: Path) -> None:
    before = write_set(tmp_path / "before", RATIOS, range(3), noise=1)
    after = write_set(tmp_path / "after", RATIOS | {"fsdp": 0.5}, range(3), noise=2)
    comparison = compared(before, after)
    assert comparison.outcome == "regression"
    assert primary(comparison).loc["fsdp", ["regression", "tier"]].tolist() == ["yes", "likely"]
    assert primary(comparison).loc["ddp", "regression"] != "yes"


def test_an_undecided_regression_says_how_many_runs_would_decide(tmp_path: Path) -> None:
    before = write_set(tmp_path / "before", RATIOS, noise=1, sd=0.02)
    after = write_set(tmp_path / "after", RATIOS | {"fsdp": 0.95}, noise=2, sd=0.02)
    result = compare_runs(before, after)
    assert result.returncode == 2
    assert "runs of each set would decide what is open here" in result.stdout


def test_faster_is_no_regression(before: Path, tmp_path: Path) -> None:
    faster = {name: 1.05 * ratio for name, ratio in RATIOS.items()}
    comparison = compared(before, write_set(tmp_path / "after", faster, noise=2))
    assert set(primary(comparison)["verdict"]) == {"faster"}
    assert comparison.outcome == "no regression"


def test_a_slow_down_is_a_regression_only_beyond_the_margin(before: Path, tmp_path: Path) -> None:
    slower = {name: 0.97 * ratio for name, ratio in RATIOS.items()}
    after = write_set(tmp_path / "after", slower, noise=2)
    assert compared(before, after).outcome == "regression"
    assert compared(before, after, margin=0.05).outcome == "no regression"
    # Shown to be slower, and neither more nor less than the margin.
    at_the_margin = compared(before, after, margin=0.031)
    assert at_the_margin.outcome == "inconclusive"
    assert set(primary(at_the_margin)["verdict"]) <= {"slower", "equivalent"}


def test_workloads_of_other_definitions_are_refused_with_the_difference(
    before: Path, tmp_path: Path
) -> None:
    after = write_set(tmp_path / "after", RATIOS, noise=2, precision="fp32", epochs=3)
    result = compare_runs(before, after)
    assert result.returncode == 2
    assert result.stdout == ""
    assert "w: precision: bf16 -> fp32" in result.stderr
    assert "w: epochs: 1 -> 3" in result.stderr
    assert "Traceback" not in result.stderr


def test_what_changed_around_the_cells_is_told(before: Path, tmp_path: Path) -> None:
    versions = {"versions": {"torch": "2.16.0"}, "variables": {"SLURM_JOB_ID": "7"}}
    after = write_set(tmp_path / "after", RATIOS, noise=2, environment=versions)
    comparison = compared(before, after)
    assert comparison.changes.to_numpy().tolist() == [
        ["environment.versions.torch", "2.15.0", "2.16.0", "everywhere"]
    ]
    assert comparison.outcome == "no regression"


def test_a_change_of_one_strategy_is_told_of_that_one(before: Path, tmp_path: Path) -> None:
    after = write_set(tmp_path / "after", RATIOS, noise=2)
    for path in after.glob("w/fsdp/gpus1/*/metrics.json"):
        metrics = read_metrics(path)
        options = metrics.cell.options | {"sharding": "shard_grad_op"}
        cell = metrics.cell.model_copy(update={"options": options})
        changes = {"cell": cell, "cell_sha256": cell.fingerprint()}
        write(after, metrics.model_copy(update=changes))
    assert compared(before, after).changes.to_numpy().tolist() == [
        ["cell.options.sharding", "full_shard", "shard_grad_op", "fsdp"]
    ]


def test_versions_mixed_within_a_set_are_refused(before: Path, tmp_path: Path) -> None:
    after = write_set(tmp_path / "after", RATIOS, noise=2)
    path = after / "w/fsdp/gpus1/seed3/metrics.json"
    metrics = read_metrics(path)
    versions = {"driver": "570.1", "versions": {"torch": "2.16.0"}}
    write(after, metrics.model_copy(update={"environment": versions}))
    comparison = compared(before, after)
    assert primary(comparison).loc["fsdp", "verdict"] == "not comparable"
    assert primary(comparison).loc["fsdp", "reason"] == "mixed_torch"
    assert comparison.outcome == "inconclusive"


def test_what_is_no_longer_measured_is_inconclusive_and_what_is_new_is_told(
    before: Path, tmp_path: Path
) -> None:
    after = write_set(tmp_path / "after", {"ddp": 1.0, "fsdp": 0.98, "dp": 1.0}, noise=2)
    comparison = compared(before, after)
    assert comparison.only_before == ["w fsdp2 gpus1"]
    assert comparison.only_after == ["w dp gpus1"]
    assert comparison.outcome == "inconclusive"
    # Turned round, nothing is lost but dp.
    more = write_set(tmp_path / "more", RATIOS | {"dp": 1.0}, noise=3)
    assert compared(before, more).outcome == "no regression"


def fail(folder: Path, strategy: str, seeds: Sequence[int]) -> None:
    """Have cells of a strategy run out of memory."""
    for seed in seeds:
        path = folder / f"w/{strategy}/gpus1/seed{seed}/metrics.json"
        write(folder, metrics_of(read_metrics(path).cell, None))


def test_running_out_of_memory_in_three_of_nine_seeds_is_a_regression(
    before: Path, tmp_path: Path
) -> None:
    after = write_set(tmp_path / "after", RATIOS, noise=2)
    fail(after, "fsdp", [0, 4, 8])
    result = compare_runs(before, after)
    assert result.returncode == 1
    assert "w fsdp gpus1 now ends as oom (seeds 0 4 8)" in result.stdout
    table = pd.read_csv(after / "compared-with-before/failures.csv")
    assert table[["strategy", "status", "seeds"]].to_numpy().tolist() == [["fsdp", "oom", "0 4 8"]]


def test_what_failed_before_fails_as_before(tmp_path: Path) -> None:
    before = write_set(tmp_path / "before", RATIOS, noise=1)
    after = write_set(tmp_path / "after", RATIOS, range(10), noise=2)
    fail(before, "fsdp", range(9))
    fail(after, "fsdp", range(10))
    comparison = compared(before, after)
    assert not len(comparison.failures)
    assert comparison.outcome == "no regression", "of the other two"
    # A failure that is gone leaves nothing to compare, and is no regression.
    mended = write_set(tmp_path / "mended", RATIOS, noise=3)
    assert compared(before, mended).outcome == "inconclusive"


def test_two_sets_in_which_nothing_succeeded_say_nothing(tmp_path: Path) -> None:
    for noise, name in enumerate(("before", "after")):
        write_set(tmp_path / name, RATIOS, range(6), noise=noise)
        for strategy in RATIOS:
            fail(tmp_path / name, strategy, range(6))
    assert compared(tmp_path / "before", tmp_path / "after").outcome == "inconclusive"


def test_a_strategy_that_loses_its_parity_is_not_comparable(before: Path, tmp_path: Path) -> None:
    parity = write_set(tmp_path / "parity", RATIOS, noise=2)
    write_parity(parity, "w", "fsdp", "failed")
    comparison = compared(before, parity)
    row = primary(comparison).loc["fsdp", ["verdict", "reason", "reason_values"]]
    assert row.tolist() == ["not comparable", "no_usable_cell", "after"]
    assert comparison.outcome == "inconclusive"


@pytest.mark.slow
def test_other_devices_are_compared_only_where_that_is_asked_for(
    before: Path, tmp_path: Path
) -> None:
    after = write_set(tmp_path / "after", RATIOS | {"fsdp": 0.9}, noise=2)
    for path in after.glob("w/*/gpus1/*/metrics.json"):
        path.write_text(path.read_text().replace("GPU-00", "GPU-99"))
    result = compare_runs(before, after)
    assert result.returncode == 2
    assert "they never ran on the same devices" in result.stdout
    assert compare_runs(before, after, "--other-devices").returncode == 1
    comparison = compared(before, after, other_devices=True)
    assert not primary(comparison)["paired"].any()
    assert primary(comparison)["regression"].to_dict() == {
        "ddp": "no",
        "fsdp": "yes",
        "fsdp2": "no",
    }


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("nowhere", "seed<N>/metrics.json; name the folder of a run"),
        ("broken", "not readable as JSON"),
    ],
)
def test_a_folder_without_results_is_one_message(
    before: Path, tmp_path: Path, folder: str, message: str
) -> None:
    broken = tmp_path / "broken/w/ddp/gpus1/seed0/metrics.json"
    broken.parent.mkdir(parents=True)
    broken.write_text("{")
    result = compare_runs(before, tmp_path / folder)
    assert result.returncode == 3
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["--margin", "2"], ["--nonsense"], ["--margin", "wide"]])
def test_wrong_arguments_are_no_outcome(before: Path, arguments: list[str]) -> None:
    assert compare_runs(before, before, *arguments).returncode == 3


def test_an_output_that_cannot_be_written_is_no_outcome(before: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = compare_runs(before, before, "--output", tmp_path / "file")
    assert result.returncode == 3
    assert str(tmp_path / "file") in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_fault_of_the_program_is_no_regression(
    before: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["compare_runs.py", str(before), str(before)])
    monkeypatch.setattr("compare_runs.compare_sets", lambda *_, **__: 1 / 0)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 3
    assert "ZeroDivisionError" in capsys.readouterr().err
