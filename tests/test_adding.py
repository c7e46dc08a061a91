"""The recipes of docs/adding.md, applied to a copy of the project, and what they added in use."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STEP = re.compile(
    r"<!-- (new file|in) (\S+)(?: (after|before|replace): ([^\n]*?))? -->\n"
    r"( *)```\w+\n(.*?)\n *```",
    re.DOTALL,
)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with every recipe applied."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("workflow", "config", "tests", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "resources").mkdir()
    page = (ROOT / "docs/adding.md").read_text()
    steps = STEP.findall(page)
    assert len(steps) == page.count("<!-- ")
    for action, file, place, anchor, indent, block in steps:
        text = "".join(f"{line.removeprefix(indent)}\n" for line in block.split("\n"))
        apply(folder / file, action, place, anchor, text)
    return folder


def apply(path: Path, action: str, place: str, anchor: str, text: str) -> None:
    """One step of a recipe: a new file, or lines beside an anchor that is there once."""
    if action == "new file":
        path.write_text(text)
        return
    before = path.read_text()
    assert before.count(f"{anchor}\n") == 1, f"{path.name}: {anchor!r}"
    lines = {"after": f"{anchor}\n{text}", "before": f"{text}{anchor}\n", "replace": text}
    path.write_text(before.replace(f"{anchor}\n", lines[place]))


def run(project: Path, code: str) -> str:
    """Python in the copy, with its scripts and its tests' helpers."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=project,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": "workflow/scripts:tests"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_an_added_strategy_passes_the_parity_gate_at_two_ranks(project: Path) -> None:
    code = """
        from pathlib import Path
        import run_parity
        from parity_cases import case_of, make_oracle
        case = case_of("by_hand", 2)
        parity = run_parity.run_parity(case, make_oracle(case, Path()), Path("w/by_hand/v.json"))
        print(parity.status, parity.reason)
    """
    assert run(project, code).split()[-2:] == ["passed", "None"]


def test_an_added_data_set_is_loaded_at_its_own_size(project: Path) -> None:
    code = """
        from parity_cases import case_of
        from shardmark.workload.vision.images import load_images
        from pathlib import Path
        dataset = {"name": "synthetic_large", "train_images": 64}
        workload = case_of("ddp", 1, dataset=dataset).cell.definition
        images = load_images(workload, Path(), train=True)
        print(len(images.labels), workload.classes, workload.test_samples)
    """
    assert run(project, code).split() == ["64", "1000", "50000"]


def test_an_added_optimizer_trains_and_the_certificate_knows_its_settings(project: Path) -> None:
    code = """
        import torch
        from shardmark.optimizers import OPTIMIZERS, Optimizer
        from shardmark.workload.optimizers import build_optimizer
        section = Optimizer(name="nadam", learning_rate=0.1)
        optimizer = build_optimizer(torch.nn.Linear(1, 2, bias=False), section, 0.1)
        group = optimizer.param_groups[0]
        wanted = OPTIMIZERS["nadam"].group_settings(section)
        print(type(optimizer).__name__, all(group[key] == wanted[key] for key in wanted))
    """
    assert run(project, code).split() == ["NAdam", "True"]


def test_an_added_model_has_its_shard_units_also_in_the_gates_network(project: Path) -> None:
    code = """
        from parity_cases import case_of
        from shardmark.workload.vision.models import build_model, build_surrogate, shard_units
        workload = case_of("ddp", 1, model={"name": "swin_v2_t"}).cell.definition
        for build in (build_model, build_surrogate):
            print(len(shard_units(build(workload, 0), workload)))
    """
    assert run(project, code).split() == ["12", "2"]


def test_an_added_size_of_a_language_model_can_be_named(project: Path) -> None:
    code = """
        from shardmark.config.schema import Gpt
        model = Gpt(name="gpt", preset="gpt_13b")
        print(model.layers, model.width, model.context)
    """
    assert run(project, code).split() == ["40", "5120", "1024"]


@pytest.mark.slow
def test_added_metrics_and_figures_are_everywhere_they_belong(project: Path) -> None:
    code = """
        from pathlib import Path
        from built_pages import build
        from gpu_matrix import config_of, write_matrix
        from shardmark.report.data_dictionary import dictionary
        config = config_of(strategies=["ddp", "by_hand"], gpus=[1])
        write_matrix(config, Path())
        page = build(config, Path()).read_text()
        cells = Path("results/t/tables/cells.csv").read_text()
        print("slowest_rank" in cells.splitlines()[0])
        print("`slowest_rank`" in dictionary(), "Drift within the window" in page)
        print("By hand" in page)
    """
    assert set(run(project, code).split()) == {"True"}
