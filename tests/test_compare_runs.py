"""compare_runs.py as a user and a CI job call it: its exit status, its words, its files."""

from __future__ import annotations

import subprocess
import sys
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


def primary(found: SetComparison) -> pd.DataFrame:
    return found.table[found.table["family"] == "primary"].set_index("strategy")


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine seeds of three strategies, 0.5 % from run to run."""
    return write_set(tmp_path_factory.mktemp("sets") / "before", RATIOS, noise=1)


def test_a_planted_slow_down_of_3_percent_is_a_regression(before: Path, tmp_path: Path) -> None:
    slower = RATIOS | {"fsdp": 0.98 * 0.97}
    after = write_set(tmp_path / "after", slower, noise=2)
    result = compare_runs(before, after)
    assert result.returncode == 1, result.stderr
    headline = "Regression, slower than before by more than the margin: w fsdp gpus1 (−"
    assert headline in result.stdout
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
    assert rows.loc["fsdp", "p_holm"] == pytest.approx(3 * 2 / 512)
    assert (folder / "comparison.md").read_text().strip() == result.stdout.strip()
    assert "slower (n = 9)" in texts_of(folder / "comparison.svg")
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
    assert "cannot be significant at this n" in result.stdout
    # Three comparisons: 3 * 2 / 2^7 is the first under 0.05.
    assert "at least 7 seeds are needed" in result.stdout


def test_faster_is_no_regression(before: Path, tmp_path: Path) -> None:
    faster = {name: 1.05 * ratio for name, ratio in RATIOS.items()}
    found = compared(before, write_set(tmp_path / "after", faster, noise=2))
    assert set(primary(found)["verdict"]) == {"faster"}
    assert found.outcome == "no regression"


def test_a_slow_down_is_a_regression_only_beyond_the_margin(before: Path, tmp_path: Path) -> None:
    slower = {name: 0.97 * ratio for name, ratio in RATIOS.items()}
    after = write_set(tmp_path / "after", slower, noise=2)
    assert compared(before, after).outcome == "regression"
    assert compared(before, after, margin=0.05).outcome == "no regression"
    # Shown to be slower, and by neither more than the margin nor surely less.
    assert compared(before, after, margin=0.033).outcome == "inconclusive"


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
    found = compared(before, after)
    assert found.changes.to_numpy().tolist() == [
        ["environment.versions.torch", "2.15.0", "2.16.0", "everywhere"]
    ]
    assert found.outcome == "no regression"


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
    found = compared(before, after)
    assert primary(found).loc["fsdp", "verdict"] == "not comparable"
    assert "mixed torch" in primary(found).loc["fsdp", "reason"]
    assert found.outcome == "inconclusive"


def test_what_is_no_longer_measured_is_inconclusive_and_what_is_new_is_told(
    before: Path, tmp_path: Path
) -> None:
    after = write_set(tmp_path / "after", {"ddp": 1.0, "fsdp": 0.98, "dp": 1.0}, noise=2)
    found = compared(before, after)
    assert found.only_before == ["w fsdp2 gpus1"]
    assert found.only_after == ["w dp gpus1"]
    assert found.outcome == "inconclusive"
    # Turned round, nothing is lost but dp.
    more = write_set(tmp_path / "more", RATIOS | {"dp": 1.0}, noise=3)
    assert compared(before, more).outcome == "no regression"


def test_a_strategy_that_fails_now_or_loses_its_parity_is_no_success(
    before: Path, tmp_path: Path
) -> None:
    after = write_set(tmp_path / "after", RATIOS, noise=2)
    for path in after.glob("w/fsdp/gpus1/*/metrics.json"):
        write(after, metrics_of(read_metrics(path).cell, None))
    found = compared(before, after)
    assert (
        "after has no usable cell; left out of after: 9 oom"
        in (primary(found).loc["fsdp", "reason"])
    )
    assert found.outcome == "inconclusive"
    parity = write_set(tmp_path / "parity", RATIOS, noise=2)
    write_parity(parity, "w", "fsdp", "failed")
    assert "9 parity failed" in primary(compared(before, parity)).loc["fsdp", "reason"]


def test_other_devices_are_compared_and_not_as_pairs(before: Path, tmp_path: Path) -> None:
    after = write_set(tmp_path / "after", RATIOS, noise=2)
    for path in after.glob("w/*/gpus1/*/metrics.json"):
        path.write_text(path.read_text().replace("GPU-00", "GPU-99"))
    found = compared(before, after)
    assert not primary(found)["paired"].any()
    assert found.outcome == "no regression"


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
    assert result.returncode == 2
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
