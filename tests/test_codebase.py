"""What code a result depends on: all that can affect it, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shardmark.cells import parity_case
from shardmark.codebase import SCRIPTS, code_of_cell, code_of_parity, code_sha256, sources
from shardmark.strategies import STRATEGIES
from small_matrix import cell_at, matrix

TRAINING = {strategy.script for strategy in STRATEGIES.values()}


def names(paths: list[Path]) -> set[str]:
    return {path.relative_to(SCRIPTS).as_posix() for path in paths}


def code_of(strategy: str) -> set[str]:
    return names(code_of_cell(cell_at(strategy, matrix__strategies=[strategy], baseline=strategy)))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_cell_depends_on_its_own_training_script_and_on_no_other(strategy: str) -> None:
    assert code_of(strategy) & TRAINING == {STRATEGIES[strategy].script}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_cell_depends_on_its_launcher_and_on_all_that_its_ranks_import(strategy: str) -> None:
    assert code_of(strategy) >= {
        "run_cell.py",
        "shardmark/__init__.py",
        "shardmark/launching/launch.py",
        "shardmark/measurement/telemetry.py",
        "shardmark/training/loop.py",
        "shardmark/training/strategy.py",
        "shardmark/workload/vision/models.py",
        "shardmark/workload/data.py",
        "shardmark/training/runtime.py",
        "shardmark/measurement/gpu_check.py",  # imported in a function, when something went wrong
    }


def test_a_cell_does_not_depend_on_what_only_plans_and_shows() -> None:
    others = {
        "shardmark/results/matrix.py",
        "shardmark/controller/progress.py",
        "shardmark/config/files.py",
    }
    others |= {"run_parity.py", "make_oracle.py", "export_schemas.py"}
    code = code_of("ddp")
    assert not others & code
    # A rank imports the gate, but a cell does not use it.
    assert not {name for name in code if name.startswith("shardmark/parity")}


def test_fairscales_stand_ins_are_fairscales_alone() -> None:
    users = {name for name in STRATEGIES if "shardmark/training/fairscale_gloo.py" in code_of(name)}
    assert users == {"fairscale_fsdp"}


def test_a_verdict_of_the_gate_depends_on_the_gate_and_not_on_the_launcher_of_cells() -> None:
    code = names(code_of_parity(parity_case(matrix(), "small", "ddp", 2)))
    assert {"run_parity.py", "train_ddp.py", "shardmark/parity/gate.py"} <= code
    assert "run_cell.py" not in code


def test_every_form_of_import_counts(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import json, shardmark.measurement.clocks\n"
        "from shardmark import files\n"
        "from shardmark.errors import UserError\n"
        "import shardmark_of_another\n"
        "def late():\n"
        "    import fetch_data\n"
    )
    checksums = set(sources(script)) - {script}
    assert {path.relative_to(SCRIPTS).as_posix() for path in checksums} >= {
        "shardmark/__init__.py",
        "shardmark/measurement/__init__.py",
        "shardmark/measurement/clocks.py",
        "shardmark/files.py",
        "shardmark/errors.py",
        "fetch_data.py",
    }
    assert sources(script) == sorted(sources(script))


def test_a_script_that_is_missing_or_no_python_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        sources(tmp_path / "none.py")
    (tmp_path / "bad.py").write_text("def (:\n")
    with pytest.raises(SyntaxError, match=r"bad\.py"):
        sources(tmp_path / "bad.py")


ASK = """
import json, sys
from shardmark.cells import Cell
from shardmark.codebase import code_of_cell, code_sha256
cells = [Cell.model_validate(raw) for raw in json.loads(sys.argv[1])]
print(json.dumps({cell.strategy: code_sha256(code_of_cell(cell)) for cell in cells}))
"""


def checksums(scripts: Path) -> dict[str, str]:
    """Each strategy's checksum as a new process finds it in a copy of the scripts."""
    config = {"matrix__strategies": list(STRATEGIES), "variants": {}}
    cells = [cell_at(name, **config).model_dump(mode="json", by_alias=True) for name in STRATEGIES]
    child = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps(cells)],
        env=os.environ | {"PYTHONPATH": str(scripts)},
        capture_output=True,
        text=True,
        check=True,
    )
    by_strategy: dict[str, str] = json.loads(child.stdout)
    return by_strategy


@pytest.fixture(scope="module")
def before() -> dict[str, str]:
    return checksums(SCRIPTS)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    ignored = shutil.ignore_patterns("__pycache__")
    return shutil.copytree(SCRIPTS, tmp_path / "elsewhere", ignore=ignored)


def append(path: Path) -> None:
    path.write_text(path.read_text() + "\n# edited\n")


def touch(path: Path) -> None:
    os.utime(path, (0, 0))


CHANGES: dict[str, tuple[str, Callable[[Path], None], set[str]]] = {
    "touching all": ("", lambda scripts: [touch(p) for p in scripts.rglob("*.py")] and None, set()),
    "editing the loop": ("shardmark/training/loop.py", append, set(STRATEGIES)),
    "editing the launcher": ("run_cell.py", append, set(STRATEGIES)),
    "editing one strategy": ("train_fsdp.py", append, {"fsdp"}),
    "editing the script that three share": (
        "train_deepspeed.py",
        append,
        {"deepspeed_zero1", "deepspeed_zero2", "deepspeed_zero3"},
    ),
    "editing what shows the progress": ("shardmark/controller/progress.py", append, set()),
    "editing the gate": ("run_parity.py", append, set()),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_checksum_changes_with_the_code_that_can_affect_the_cell(
    name: str, copied: Path, before: dict[str, str]
) -> None:
    path, change, affected = CHANGES[name]
    change(copied / path)
    after = checksums(copied)
    assert {strategy for strategy in before if after[strategy] != before[strategy]} == affected


def test_a_checksum_is_over_names_and_contents(tmp_path: Path) -> None:
    clocks, files = SCRIPTS / "shardmark/measurement/clocks.py", SCRIPTS / "shardmark/files.py"
    assert code_sha256([clocks, files]) == code_sha256([files, clocks, clocks])
    assert code_sha256([clocks]) != code_sha256([files])
    assert code_sha256([clocks]) != code_sha256([clocks, files])


def test_planning_and_reporting_import_no_torch() -> None:
    modules = [
        "codebase",
        "config.files",
        "report.contents",
        "controller.progress",
        "measurement.gpu_check",
    ]
    code = "".join(f"import shardmark.{module}\n" for module in modules)
    code += "import export_schemas, mark_unsupported, run_cell, sys\n"
    code += "print([name for name in ('torch', 'torchvision', 'deepspeed') if name in sys.modules])"
    environment = os.environ | {"PYTHONPATH": str(SCRIPTS)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_workflow_is_read_without_what_only_training_and_reports_need(tmp_path: Path) -> None:
    for heavy in ("torch", "scipy", "matplotlib"):
        (tmp_path / f"{heavy}.py").write_text(f"raise ImportError('the Snakefile wants {heavy}')")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "snakemake", "-n", "--cores", "1", "--nolock"),
            *("--configfile", "config/demo.yaml", "--"),
            "results/demo/resnet8_synthetic/ddp/gpus2/seed0/metrics.json",
        ],
        cwd=SCRIPTS.parents[1],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
