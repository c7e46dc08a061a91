"""The workflow as a user types it: a real Snakemake in a copy of the project.

Stand-ins take the place of the scripts that train and that aggregate; what runs, when, and what is
left of it is what is tested.
"""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = "workflow/scripts"
CONFIG = "matrix.yaml"
CELL = "results/t/{}/{}/gpus{}/seed{}/metrics.json"
DDP_CELL = CELL.format("small", "ddp", 2, 1)

WORKLOAD = """
    model: {{name: resnet8}}
    dataset: {{name: synthetic, train_images: 64, test_images: 16}}
    batch: {{global: 16}}
    optimizer: {{name: sgd, learning_rate: {}}}
    precision: fp32
"""
MATRIX = f"""
run: t
matrix:
  workloads: [small, other]
  strategies: [dp, ddp, fsdp]
  gpus: [1, 2]
  seeds: [0, 1]
cluster: {{device: cpu}}
workloads:
  small: {WORKLOAD.format(0.1)}
  other: {WORKLOAD.format(0.2)}
"""

FOUR_CELLS = (
    MATRIX.replace("[small, other]", "[small]")
    .replace("[dp, ddp, fsdp]", "[ddp, fsdp]")
    .replace("[1, 2]", "[2]")
)


class Project:
    """A copy of the project, and Snakemake in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, *arguments: str, config: bool = True) -> subprocess.CompletedProcess[str]:
        """Snakemake with the text of both streams in ``stdout``."""
        command = [sys.executable, "-m", "snakemake", *arguments]
        if config:
            command += ["--configfile", CONFIG]
        return subprocess.run(
            command, cwd=self.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def matrix(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("--profile", "profiles/local", *arguments)

    def planned(self, *options: str) -> dict[str, set[str]]:
        """What a plain run would do now: each rule with the outputs of its jobs."""
        outputs: dict[str, set[str]] = {}
        plan = self.matrix("-n", *options)
        assert plan.returncode == 0, plan.stdout
        for job in re.split(r"\n(?=\[|local)", plan.stdout):
            if match := re.search(r"rule (\w+):\n", job):
                output = re.search(r"output: ([^ ,\n]+)", job)
                outputs.setdefault(match[1], set()).add(output[1] if output else "")
        return outputs

    def ran(self) -> list[str]:
        """The cells that ran since last asked."""
        log = self.folder / "ran.log"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines

    def edit(self, name: str, text: str = "\n# edited\n") -> None:
        with (self.folder / name).open("a") as file:
            file.write(text)


def copy_project(folder: Path) -> Project:
    for name in ("Snakefile", "config", "profiles", "workflow"):
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, folder / name)
    (folder / "resources").mkdir()
    (folder / CONFIG).write_text(MATRIX)
    stand_ins = ROOT / "tests/stand_ins"
    shutil.copy(stand_ins / "run_cell.py", folder / SCRIPTS)
    for script in (
        "make_oracle",
        "run_parity",
        "summarise",
        "compare_strategies",
        "export_tables",
        "plot",
        "report_page",
    ):
        shutil.copy(stand_ins / "write_outputs.py", folder / SCRIPTS / f"{script}.py")
    return Project(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose matrix has run."""
    project = copy_project(tmp_path_factory.mktemp("whole"))
    result = project.matrix()
    assert result.returncode == 0, result.stdout
    assert "the report is results/t/report.html" in result.stdout
    ran = project.ran()
    assert len(ran) == 20
    (project.folder / "ran_first.log").write_text("\n".join(ran))
    return project.folder


@pytest.fixture
def project(whole: Path, tmp_path: Path) -> Project:
    """A copy of it to change: with its time stamps, as Snakemake left it."""
    shutil.copytree(whole, tmp_path / "project")
    return Project(tmp_path / "project")


@pytest.fixture
def fresh(tmp_path: Path) -> Project:
    return copy_project(tmp_path)


def test_matrix_that_has_run_is_up_to_date(project: Project) -> None:
    assert project.planned() == {}
    assert not (project.folder / "results/t/.controller").exists(), "no controller is left"
    assert (project.folder / "results/t/report.html").exists()
    beside = (project.folder / "results/t/snakemake-report.html").read_text()
    assert len(beside) > 10_000
    for known in ('"baseline": "DDP"', '"seeds": ', '"scaling": "strong"'):
        assert known in beside, "a figure's baseline, n and regime"


def test_cells_start_in_the_planned_order(whole: Path) -> None:
    gpus = [line.split()[2] for line in (whole / "ran_first.log").read_text().splitlines()]
    assert gpus == sorted(gpus, reverse=True)


def test_each_cell_records_its_planned_place(project: Project) -> None:
    results = (project.folder / "results/t").glob("*/*/gpus*/seed*/metrics.json")
    provenances = [json.loads(path.read_text())["provenance"] for path in results]
    places = sorted(each["planned_place"] for each in provenances if each)
    assert len(places) == 20
    # The four of dp on two GPUs are unsupported and keep theirs.
    assert set(places) < set(range(24))
    assert len(set(places)) == 20


def test_unsupported_cells_start_no_process_and_are_results(project: Project) -> None:
    for seed in (0, 1):
        path = project.folder / CELL.format("small", "dp", 2, seed)
        metrics = json.loads(path.read_text())
        assert metrics["status"] == "unsupported"
        assert "CUDA" in metrics["failure"]["exception"]
        assert not path.with_name("job.log").exists()
    verdict = project.folder / "results/t/parity/small/dp/ranks2.json"
    assert json.loads(verdict.read_text())["status"] == "unsupported"


def test_any_number_of_cells_may_be_unsupported(fresh: Project) -> None:
    text = MATRIX.replace("[1, 2]", str(list(range(1, 100)))).replace(
        "{global: 16}", "{per_gpu: 2}"
    )
    text = text.replace("train_images: 64", "train_images: 256").replace("[0, 1]", "[0]")
    text = text.replace("device: cpu", "device: cpu, gpus_per_node: 100")
    (fresh.folder / CONFIG).write_text(text)
    result = fresh.matrix(CELL.format("small", "dp", 99, 0))
    assert result.returncode == 0, result.stdout
    assert len(list((fresh.folder / "results/t").glob("*/dp/*/*/metrics.json"))) == 2 * 98
    assert len(list((fresh.folder / "results/t/parity").glob("*/dp/*.json"))) == 2 * 98


def test_settings_of_the_jobs_are_in_a_folder_of_the_user_alone(project: Project) -> None:
    folder = project.folder / "results/t/.config"
    assert stat.filemode(folder.stat().st_mode) == "drwx------"
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (CELL.format("small", "ddp", 2, 7), "seed 7 is not in matrix.seeds; allowed: 0, 1"),
        (CELL.format("small", "ddp", 8, 0), "gpus 8 is not in matrix.gpus; allowed: 1, 2"),
        (CELL.format("smal", "ddp", 2, 0), "workload smal is not in matrix.workloads; did you"),
        (CELL.format("small", "fdsp", 2, 7), "did you mean 'fsdp'? allowed: dp, ddp, fsdp; seed 7"),
        (f"./{CELL.format('small', 'ddp', 2, 7)}", "seed 7 is not in matrix.seeds"),
        (
            "results/t/small/ddp/gpus2/seed1",
            f"name its file from the project's folder on, {CELL.format('small', 'ddp', 2, 1)}",
        ),
        ("results/t/parity/small/ddp/ranks4.json", "gpus 4 is not in matrix.gpus"),
        ("results/u/small/ddp/gpus2/seed0/metrics.json", "the configuration's run is t; give that"),
    ],
)
def test_a_target_outside_the_matrix_says_why(target: str, reason: str, project: Project) -> None:
    done = project.matrix("--force", target)
    assert done.returncode == 1
    assert f"{target}: {reason}" in done.stdout or f"; {reason}" in done.stdout
    assert "MissingRuleException" not in done.stdout
    assert project.ran() == []


def test_touched_code_reruns_nothing(project: Project) -> None:
    for path in (project.folder / "workflow").rglob("*.py"):
        path.touch()
    assert project.planned() == {}


def test_edited_code_reruns_the_cells_that_it_can_affect(project: Project) -> None:
    project.edit(f"{SCRIPTS}/train_fsdp.py")
    planned = project.planned()
    assert len(planned["train"]) == 8
    assert all("/fsdp/" in path for path in planned["train"])
    assert all("/fsdp/" in path for path in planned["check_parity"])
    assert "make_oracle" not in planned


def test_edited_library_reruns_every_cell(project: Project) -> None:
    project.edit(f"{SCRIPTS}/shardmark/training/loop.py")
    assert len(project.planned()["train"]) == 20


def test_learning_rate_reruns_its_workload_only(project: Project) -> None:
    text = (project.folder / CONFIG).read_text()
    (project.folder / CONFIG).write_text(text.replace("0.2", "0.3"))
    planned = project.planned()
    assert len(planned["train"]) == 10
    assert all(path.startswith("results/t/other/") for path in planned["train"])
    assert all("/other/" in path for path in planned["check_parity"])


def test_time_limit_reruns_nothing(project: Project) -> None:
    (project.folder / CONFIG).write_text(
        MATRIX.replace("device: cpu", "device: cpu, time_limit_minutes: 7")
    )
    planned = project.planned()
    assert "train" not in planned
    assert "check_parity" not in planned


@pytest.mark.slow
def test_forced_cell_reruns_alone_and_makes_stale_what_depends_on_it(project: Project) -> None:
    result = project.run("--force", DDP_CELL)
    assert result.returncode == 0, result.stdout
    assert project.ran() == ["small ddp gpus2 seed1"]
    planned = project.planned()
    assert "train" not in planned
    stale = {"collect", "summarise", "export_tables", "plot", "write_report"}
    assert stale <= planned.keys()


def test_the_margin_redraws_only_the_figures_that_it_can_change(project: Project) -> None:
    planned = project.planned("--config", "report={margin: 0.03}")
    assert {"compare", "plot_compared", "write_report"} <= planned.keys()
    assert not {"train", "collect", "plot"} & planned.keys()


def test_rerun_with_the_same_result_makes_nothing_stale(project: Project) -> None:
    before = (project.folder / DDP_CELL).read_text()
    (project.folder / "SAME").write_text(before)
    assert project.run("--force", DDP_CELL).returncode == 0
    assert project.planned() == {}


@pytest.mark.slow
def test_a_run_names_the_results_that_do_not_count(project: Project) -> None:
    result = project.folder / DDP_CELL
    result.write_text(result.read_text()[:500])
    done = project.matrix()
    assert f"refused: {DDP_CELL}: not readable as JSON" in done.stdout
    assert "the report is " in done.stdout


def test_failed_rerun_keeps_the_previous_result_and_is_owed(project: Project) -> None:
    path = project.folder / DDP_CELL
    before = path.read_text()
    (project.folder / "FAIL").touch()
    result = project.run("--force", DDP_CELL)
    assert result.returncode == 1
    assert "job.log" in result.stdout
    assert "the stand-in fails" in result.stdout
    assert '"cell"' not in result.stdout
    assert path.read_text() == before
    (project.folder / "FAIL").unlink()
    assert project.planned()["train"] == {DDP_CELL}
    report = project.run("report")
    assert "20 of 20 cells have a result" in report.stdout


@pytest.mark.slow
def test_failed_rerun_of_changed_code_is_not_taken_for_its_result(project: Project) -> None:
    project.edit(f"{SCRIPTS}/train_ddp.py")
    (project.folder / "FAIL").touch()
    assert project.run("--force", DDP_CELL).returncode == 1
    (project.folder / "FAIL").unlink()
    assert DDP_CELL in project.planned()["train"]
    assert "stale: small ddp" in project.run("report").stdout


def test_failing_cell_does_not_end_the_matrix(fresh: Project) -> None:
    (fresh.folder / CONFIG).write_text(FOUR_CELLS)
    (fresh.folder / "FAIL").touch()
    result = fresh.matrix()
    assert result.returncode == 1
    assert len(fresh.ran()) == 4
    assert "cells [4/4] | 4 no result" in result.stdout


@pytest.mark.slow
def test_on_failure_stop_starts_nothing_after_a_failed_cell_and_goes_on_when_asked_again(
    fresh: Project,
) -> None:
    (fresh.folder / CONFIG).write_text(f"{FOUR_CELLS}on_failure: stop\n")
    cells = [f"small {s} gpus2 seed{n}" for s in ("ddp", "fsdp") for n in (0, 1)]
    # Seed 0 is planned before seed 1.
    (fresh.folder / "OOM").write_text("small fsdp gpus2 seed0")
    result = fresh.matrix()
    assert result.returncode == 1
    ran = fresh.ran()
    assert ran[-1] == "small fsdp gpus2 seed0", "the failed cell is the last that ran"
    assert len(ran) <= 2
    assert "on_failure: stop: small fsdp gpus2 seed0 ended as oom" in result.stdout
    assert "Traceback" not in result.stdout
    again = fresh.matrix()
    assert again.returncode == 0, again.stdout
    assert sorted([*ran, *fresh.ran()]) == sorted(cells)


@pytest.mark.parametrize(
    ("deleted", "rule"),
    [(DDP_CELL, "train"), ("results/t/parity/small/ddp/ranks1.json", "check_parity")],
)
def test_a_result_that_was_deleted_is_made_again(deleted: str, rule: str, project: Project) -> None:
    (project.folder / deleted).unlink()
    planned = project.planned()
    assert planned[rule] == {deleted}
    assert "collect" in planned


@pytest.mark.parametrize(
    ("deleted", "rule"), [("cells.csv", "collect"), ("summary.txt", "summarise")]
)
def test_a_table_that_was_deleted_is_made_again(deleted: str, rule: str, project: Project) -> None:
    (project.folder / "results/t/tables" / deleted).unlink()
    planned = project.planned()
    assert rule in planned
    assert "train" not in planned


@pytest.mark.slow
def test_report_never_trains(project: Project) -> None:
    shutil.rmtree(project.folder / "results/t/small/fsdp")
    (project.folder / "results/t/parity/small/ddp/ranks1.json").unlink()
    project.edit(f"{SCRIPTS}/train_ddp.py")
    project.ran()
    result = project.run("report")
    assert result.returncode == 0, result.stdout
    assert project.ran() == []
    assert not (project.folder / "results/t/parity/small/ddp/ranks1.json").exists()
    assert "16 of 20 cells have a result" in result.stdout
    assert "missing: small fsdp gpus1 seed0" in result.stdout
    assert "stale: small ddp gpus1 seed0" in result.stdout
    assert "report: results/t/report.html" in result.stdout
    planned = project.planned()
    assert len(planned["train"]) == 12
    assert "collect" in planned


@pytest.mark.slow
def test_aggregates_of_a_part_are_rebuilt_from_the_whole(project: Project) -> None:
    fsdp = project.folder / "results/t/small/fsdp"
    fsdp.rename(project.folder / "away")
    assert project.run("report").returncode == 0
    (project.folder / "away").rename(fsdp)
    planned = project.planned()
    assert "train" not in planned
    assert "collect" in planned


def test_report_of_nothing_says_so(fresh: Project) -> None:
    result = fresh.run("report")
    assert result.returncode == 1
    assert "results/t has no cell to report; run the matrix first" in result.stdout
    assert "Traceback" not in result.stdout
    (fresh.folder / "results/other/tables").mkdir(parents=True)
    again = fresh.run("report")
    assert "there are results of other: add the --configfile that made them" in again.stdout


@pytest.mark.slow
def test_dry_runs(fresh: Project) -> None:
    for arguments in (
        ("--profile", "profiles/local"),
        ("--profile", "profiles/slurm"),
        ("report",),
        ("--force", DDP_CELL),
    ):
        result = fresh.run(*arguments, "-n")
        assert result.returncode == 0, result.stdout
    assert not (fresh.folder / "results").exists()


def test_default_configuration_plans(fresh: Project) -> None:
    result = fresh.run("-n", "--quiet", "rules", config=False)
    assert result.returncode == 0, result.stdout
    assert re.search(r"train +920", result.stdout)


@pytest.mark.parametrize("arguments", [(), ("-n",), ("report",)])
def test_mistakes_are_one_message(fresh: Project, arguments: tuple[str, ...]) -> None:
    (fresh.folder / CONFIG).write_text(MATRIX.replace("fsdp", "fdsp").replace("[1, 2]", "[0, 3]"))
    result = fresh.run(*arguments)
    assert result.returncode == 1
    assert "Traceback" not in result.stdout
    assert result.stdout.count("mistakes in the configuration") == 1
    for path in ("matrix.strategies[2]", "matrix.gpus[0]", "workloads.small.batch.global"):
        assert result.stdout.count(f"{path}:") == 1


@pytest.mark.slow
def test_numbers_on_the_command_line_are_numbers(fresh: Project) -> None:
    measure = (
        'measure={"steady_min_s": 1, "steady_max_s": 1, "sampler": false, warmup_min_steps: 3}'
    )
    variables = """site={environment: {A: "it's {a} $HOME; 7"}}"""
    given = ("--config", measure, variables, "order_seed=3")
    result = fresh.matrix(DDP_CELL, *given)
    assert result.returncode == 0, result.stdout
    cell = json.loads((fresh.folder / DDP_CELL).read_text())["cell"]
    assert cell["measure"]["steady_min_s"] == 1
    assert (cell["measure"]["sampler"], cell["measure"]["warmup_min_steps"]) == (False, 3)
    assert cell["measure"]["idle_s"] == 3, "of the files"
    assert cell["site"]["environment"] == {"A": "it's {a} $HOME; 7"}
    report = fresh.run("report", *given)
    assert "1 of 20 cells have a result" in report.stdout
    assert report.returncode == 0, report.stdout
    assert "stale" not in report.stdout


def test_processes_of_a_cell_keep_their_byte_code(
    fresh: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    note = "\nPath('keeps').write_text(str(not sys.dont_write_bytecode))\n"
    fresh.edit(f"{SCRIPTS}/run_cell.py", note)
    result = fresh.matrix(DDP_CELL)
    assert result.returncode == 0, result.stdout
    assert (fresh.folder / "keeps").read_text() == "True"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            "measure={steady_min_s: '1'}",
            "measure.steady_min_s: got '1', which is text; write 1 without",
        ),
        (
            "measure={steady_min_s: 1",
            "measure: got '{steady_min_s: 1'; a mapping of keys is expected",
        ),
        ("matrix={gpus: [1], gpus: [2]}", "--config matrix, 1:13: the key 'gpus' stands in line 1"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_message(
    fresh: Project, given: str, words: str
) -> None:
    result = fresh.run("-n", "--config", given)
    assert result.returncode == 1
    assert words in result.stdout
    assert "Traceback" not in result.stdout


def test_yaml_that_does_not_parse_is_named_with_its_line(fresh: Project) -> None:
    fresh.edit("config/config.yaml", "run: [a\nb: c\n")
    result = fresh.run("-n", config=False)
    assert result.returncode == 1
    assert re.search(r"config/config.yaml:\d+:\d+: not valid YAML", result.stdout)
    assert "Traceback" not in result.stdout


def test_overlay_that_does_not_parse(fresh: Project) -> None:
    (fresh.folder / CONFIG).write_text("run: [a\nb: c\n")
    result = fresh.run("-n")
    assert result.returncode == 1
    assert "not valid JSON or YAML" in result.stdout
    assert "Traceback" not in result.stdout


def test_gpus_asked_for_and_not_seen(fresh: Project) -> None:
    (fresh.folder / CONFIG).write_text(MATRIX.replace("device: cpu", "device: cuda"))
    hidden = dict(os.environ, CUDA_VISIBLE_DEVICES="")
    command = [sys.executable, "-m", "snakemake", "--profile", "profiles/local"]
    command += ["--configfile", CONFIG]
    result = subprocess.run(command, cwd=fresh.folder, env=hidden, capture_output=True, text=True)
    assert result.returncode == 1
    assert "cluster.device is cuda, but" in result.stderr
    assert "Traceback" not in result.stderr
    assert fresh.ran() == []
    assert not (fresh.folder / ".snakemake/locks").exists() or not list(
        (fresh.folder / ".snakemake/locks").iterdir()
    )


@pytest.mark.parametrize(
    ("gpus", "asked"),
    [
        (2, ["gpu=2", "nodes=1", "cpus_per_task=16", "mem_mb=128000"]),
        (8, ["gres=gpu:4", "nodes=2", "mpi=srun", "tasks_per_node=4", "cpus_per_task=8"]),
    ],
)
def test_resources_on_slurm(fresh: Project, gpus: int, asked: list[str]) -> None:
    text = MATRIX.replace("device: cpu", "device: cuda, gpus_per_node: 4")
    (fresh.folder / CONFIG).write_text(text.replace("[1, 2]", f"[{gpus}]"))
    result = fresh.run("--profile", "profiles/slurm", "-n", CELL.format("small", "ddp", gpus, 0))
    (resources,) = re.findall(r"resources: (.*)", result.stdout)
    for resource in asked:
        assert resource in resources.split(", ")
    assert ("mpi" in resources) == (gpus == 8)
    assert "slurm_extra=--exclusive" in resources


@pytest.mark.slow
def test_an_edited_table_is_named_and_made_anew(project: Project) -> None:
    cells = project.folder / "results/t/tables/cells.csv"
    verdict = project.folder / "results/t/tables/verdict.json"
    other = project.folder / "results/t/tables/with_excluded/verdict.json"
    before = [path.read_text() for path in (cells, verdict)]
    cells.write_text("999999")
    assert {"collect", "summarise", "compare", "plot"} <= project.planned().keys()
    assert cells.read_text() == "999999", "a dry run changes nothing"
    report = project.run("report")
    assert report.returncode == 0, report.stdout
    assert "edited: results/t/tables/cells.csv; it is made anew" in report.stdout
    assert [path.read_text() for path in (cells, verdict)] == before
    for file in (verdict, other):
        text = file.read_text()
        file.write_text("edited")
        whole = project.matrix()
        assert whole.returncode == 0, whole.stdout
        assert file.read_text() == text
    assert project.ran() == []
    assert project.planned() == {}
