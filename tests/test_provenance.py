"""What a result says of how it came about, and that this is enough to make it again."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import rerun
from gpu_matrix import failed
from parity_cases import ROOT
from real_cells import folder_of_run, metrics_of_run
from rerun import compare
from shardmark.cells import Cell
from shardmark.measurement.environment import provenance, variables
from shardmark.metrics import Metrics
from small_matrix import cell_at


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "code.py").write_text("print(1)\n")
    (tmp_path / "requirements.txt").write_text("torch==2.15.0\n")
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        who = ["-c", "user.name=test", "-c", "user.email=test@test"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *command], check=True)
    return tmp_path


def test_an_edit_shows_in_the_hash_of_the_difference(checkout: Path) -> None:
    clean = provenance(checkout)
    assert clean["git_dirty"] is False
    assert clean["git_diff_sha256"] is None
    (checkout / "code.py").write_text("print(2)\n")
    one = provenance(checkout)
    (checkout / "code.py").write_text("print(3)\n")
    other = provenance(checkout)
    assert one["git_dirty"]
    assert one["git_commit"] == clean["git_commit"]
    assert len({one["git_diff_sha256"], other["git_diff_sha256"], None}) == 3


def test_what_git_cannot_say_is_unknown(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = provenance(checkout.parent)
    assert (outside["git_commit"], outside["git_dirty"], outside["git_diff_sha256"]) == (None,) * 3
    monkeypatch.setenv("PATH", str(checkout))
    assert provenance(checkout)["git_dirty"] is None


def test_an_edit_in_another_encoding_is_an_edit(checkout: Path) -> None:
    (checkout / "code.py").write_bytes("print('ü')\n".encode("latin-1"))
    assert provenance(checkout)["git_dirty"] is True
    assert provenance(checkout)["git_diff_sha256"]


def test_the_lock_is_named_by_its_hash(checkout: Path) -> None:
    lock = (checkout / "requirements.txt").read_bytes()
    assert provenance(checkout)["locks"] == {"requirements.txt": hashlib.sha256(lock).hexdigest()}


def test_only_listed_variables_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "HOME_TOKEN", "NCCLX"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    recorded = variables()
    assert "secret" not in recorded.values()
    assert (recorded["NCCL_DEBUG"], recorded["SLURM_JOB_ID"]) == ("INFO", "7")


def test_the_variables_are_those_of_the_ranks() -> None:
    environment = metrics_of_run("ddp", launched=True).environment
    # The launcher sets it for the ranks.
    assert environment["variables"]["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert environment["versions"]["torch"]


@pytest.mark.slow
def test_a_cell_is_run_again_from_its_metrics_alone(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    path.write_bytes((folder_of_run("ddp", 1, launched=True) / "metrics.json").read_bytes())
    script = ROOT / "workflow/scripts/rerun.py"
    again = subprocess.run(
        [sys.executable, str(script), str(path)], capture_output=True, text=True, cwd=tmp_path
    )
    print(again.stdout)
    assert again.returncode == 0, again.stderr
    again_at = tmp_path / "results/test/reruns/w/ddp/gpus1/seed0/metrics.json"
    old, new = (json.loads(p.read_text()) for p in (path, again_at))
    assert new["cell"] == old["cell"]
    assert new["loss"]["per_epoch"] == pytest.approx(old["loss"]["per_epoch"], rel=1e-3)
    assert "images/s" in again.stdout
    assert "code: the same" in again.stdout


def test_a_rerun_tells_what_has_changed_since() -> None:
    old = metrics_of_run("ddp", 1)
    versions = old.environment["versions"] | {"torch": "2.11.0"}
    new = old.model_copy(
        update={
            "status": "oom",
            "throughput": None,
            "code_sha256": "another",
            "environment": old.environment | {"versions": versions},
        }
    )
    lines = list(compare(old, new))
    assert any(line.split() == ["status", "ok", "oom"] for line in lines)
    assert any(line.startswith("images/s") and "not measured" in line for line in lines)
    assert "code: another" in lines
    assert any(line.startswith("versions: torch ") and "-> 2.11.0" in line for line in lines)


@pytest.mark.parametrize(("given", "limit_s"), [([], 300), (["--stall-limit-minutes", "7"], 420)])
def test_a_rerun_gives_its_cell_a_limit_for_no_progress(
    given: list[str], limit_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_cell(cell: Cell, folder: Path, *, stall_s: float | None = None) -> Metrics:
        assert stall_s == limit_s
        return failed(cell, "failed", "hung")

    cell = cell_at()
    path = tmp_path / "metrics.json"
    path.write_text(failed(cell, "failed", "hung").model_dump_json(by_alias=True))
    monkeypatch.setattr(rerun, "run_cell", run_cell)
    monkeypatch.setattr("sys.argv", ["rerun.py", str(path), *given])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        rerun.main()
    assert ended.value.code == 0


@pytest.mark.parametrize("minutes", ["-1", "0", "nan", "inf"])
def test_a_stall_limit_that_is_none_is_a_usage_error(
    minutes: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["rerun.py", "--stall-limit-minutes", minutes, "m.json"])
    with pytest.raises(SystemExit) as ended:
        rerun.main()
    assert ended.value.code == 2
    assert f"got {minutes}; give a number of minutes above 0" in capsys.readouterr().err


def test_a_rerun_of_nothing_is_one_message() -> None:
    command = [sys.executable, str(ROOT / "workflow/scripts/rerun.py"), "no/metrics.json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("shardmark: no/metrics.json: cannot be read")
