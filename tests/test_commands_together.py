"""Every pair of commands on one results folder, in both orders: none breaks another."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shardmark.results.result_set import read_result_set
from test_workflow import CELL, CONFIG, MATRIX, ROOT, SCRIPTS, Project, copy_project

DEMO = (
    MATRIX.replace("run: t", "run: demo")
    .replace("[small, other]", "[small]")
    .replace("[dp, ddp, fsdp]", "[ddp, fsdp]")
    .replace("gpus: [1, 2]", "gpus: [1]")
)
METRICS = CELL.format("small", "ddp", 1, 0).replace("/t/", "/demo/")
# rerun.py with a stand-in for the training.
RERUN = f"""
import sys, types
sys.path.insert(0, "{SCRIPTS}")
from shardmark.launching.cell_result import bare_metrics
from shardmark.metrics import Failure
run_cell = types.ModuleType("run_cell")
out_of_memory = Failure.plain("memory ran out")
run_cell.run_cell = lambda cell, folder, **limits: bare_metrics(cell, "oom", out_of_memory)
run_cell.publish = lambda folder, path, metrics: path.write_text(metrics.model_dump_json())
sys.modules["run_cell"] = run_cell
import rerun
rerun.main()
"""
# run_parity.py without a training; the file's place says what it is of.
PARITY = """
import sys
from pathlib import Path
from shardmark.parity_result import Parity
output = Path(next(word for word in sys.argv if "/parity/" in word and word.endswith(".json")))
parity = Parity(
    workload=output.parts[-3], strategy=output.parts[-2], ranks=int(output.stem[5:]), device="cpu",
    backend="gloo", status="passed", case_sha256="0", code_sha256="0",
)
output.write_text(parity.model_dump_json())
"""
ORDER = ("demo", "force", "rerun", "merge", "compare", "report", "status", "doctor", "fetch")


class Commands:
    """The commands of a user, each with what it must say; by their names in ORDER."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.merged = 0

    def run(self, name: str) -> subprocess.CompletedProcess[str]:
        return getattr(self, name)()  # type: ignore[no-any-return]

    def demo(self) -> subprocess.CompletedProcess[str]:
        return self.project.matrix()

    def force(self) -> subprocess.CompletedProcess[str]:
        return self.project.run("--force", METRICS)

    def report(self) -> subprocess.CompletedProcess[str]:
        return self.project.run("report")

    def fetch(self) -> subprocess.CompletedProcess[str]:
        return self.project.run("fetch", "--profile", "profiles/local")

    def rerun(self) -> subprocess.CompletedProcess[str]:
        return self.python("-c", RERUN, METRICS)

    def merge(self) -> subprocess.CompletedProcess[str]:
        self.merged += 1
        into = f"results/joined{self.merged}"
        return self.python(f"{SCRIPTS}/merge_runs.py", "--into", into, "results/demo")

    def compare(self) -> subprocess.CompletedProcess[str]:
        return self.python(f"{SCRIPTS}/compare_runs.py", "results/demo", "results/demo")

    def status(self) -> subprocess.CompletedProcess[str]:
        return self.python(f"{SCRIPTS}/status.py", "--configfile", CONFIG)

    def doctor(self) -> subprocess.CompletedProcess[str]:
        return self.python(f"{SCRIPTS}/doctor.py", "--configfile", CONFIG)

    def clean(self) -> subprocess.CompletedProcess[str]:
        return self.shell("make", "clean")

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.shell(sys.executable, *arguments)

    def shell(self, *command: str) -> subprocess.CompletedProcess[str]:
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.run(command, cwd=self.project.folder, text=True, **streams)  # type: ignore[call-overload, no-any-return]


SAYS = {
    "demo": "",
    "force": "small ddp gpus1 seed0: ok",
    "rerun": "results/demo/reruns/small/ddp/gpus1/seed0/metrics.json",
    "merge": "4 cells of 1 set are in results/joined",
    # The stand-ins measure nothing.
    "compare": "Inconclusive: ",
    "report": "4 of 4 cells have a result",
    "status": "results/demo: 4 cells: 4 ok",
    "doctor": "All checks passed.",
    "fetch": "",
}
# Exit status; a rerun that ran out of memory is another outcome than before.
STATUS = {"compare": 2, "rerun": 1}


@pytest.fixture
def commands(tmp_path: Path) -> Commands:
    project = copy_project(tmp_path)
    for name in ("Makefile", "pyproject.toml", "requirements.txt", "requirements-bootstrap.txt"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copy(ROOT / SCRIPTS / "collect.py", tmp_path / SCRIPTS)
    (tmp_path / SCRIPTS / "run_parity.py").write_text(PARITY)
    (tmp_path / CONFIG).write_text(DEMO)
    return Commands(project)


@pytest.mark.slow
def test_no_command_breaks_another(commands: Commands) -> None:
    results = commands.project.folder / "results"
    for name in [*ORDER, *reversed(ORDER)]:
        done = commands.run(name)
        assert done.returncode == STATUS.get(name, 0), (name, done.stdout)
        assert SAYS[name] in done.stdout, (name, done.stdout)
        assert "Traceback" not in done.stdout, (name, done.stdout)
        assert len(read_result_set(results / "demo").results) == 4
    assert len(read_result_set(results / "joined2").results) == 4

    assert commands.clean().returncode == 0
    assert not (results / "demo").exists()
    for name in ("rerun", "merge", "compare", "report", "status", "doctor", "fetch"):
        done = commands.run(name)
        expected = {"compare": 3, "status": 0, "doctor": 0, "fetch": 0}.get(name, 1)
        assert done.returncode == expected, (name, done.stdout)
        assert "Traceback" not in done.stdout, (name, done.stdout)
    assert commands.force().returncode == 0
    assert commands.demo().returncode == 0
    assert len(read_result_set(results / "demo").results) == 4
