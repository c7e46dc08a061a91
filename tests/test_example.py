"""The published comparison, made again from its archive by the commands in docs/results.md."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from statistics import median

import pandas as pd
import pytest
import yaml
from snakemake.utils import update_config

from shardmark.cells import cells_of
from shardmark.config.loading import load
from shardmark.metrics import read_metrics
from shardmark.parity_result import Parity
from small_matrix import ROOT
from test_config import shipped

pytestmark = pytest.mark.slow

EXAMPLE = ROOT / "docs/example"
TABLES = (
    "cells",
    "comparisons",
    "epochs",
    "failures",
    "largest_batches",
    "parity",
    "scaling",
    "summary",
)
# docs/results.md's names of the strategies.
NAMES = {
    "DataParallel": "dp",
    "DDP": "ddp",
    "DDP, compiled": "ddp_compiled",
    "FSDP1": "fsdp",
    "FSDP1, bf16 parameters": "fsdp_bf16",
    "FSDP2": "fsdp2",
    "FSDP2, bf16 parameters": "fsdp2_bf16",
    "FSDP2, bf16 parameters, compiled": "fsdp2_bf16_compiled",
    "HSDP over 2, bf16 parameters": "fsdp2_bf16_over_2",
    "FairScale FSDP": "fairscale_fsdp",
    "DeepSpeed ZeRO-1": "deepspeed_zero1",
    "DeepSpeed ZeRO-2": "deepspeed_zero2",
    "DeepSpeed ZeRO-3": "deepspeed_zero3",
    "ZeRO-1, bf16 mode": "zero1_bf16",
    "ZeRO-2, bf16 mode": "zero2_bf16",
    "ZeRO-3, bf16 mode": "zero3_bf16",
}


@pytest.fixture(scope="module")
def made_again(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project in which a reader typed those commands."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("Snakefile", "config", "profiles", "workflow", "docs"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    (folder / "results").mkdir()
    (folder / "resources").mkdir()
    page = (ROOT / "docs/results.md").read_text()
    block = re.search(r"made again.*?:\n\n((?:    [^\n]+\n)+)", page, re.DOTALL)
    assert block, "docs/results.md has lost the commands"
    done = subprocess.run(
        ["bash", "-ec", block[1]],
        cwd=folder,
        env={**os.environ, "HOME": str(folder)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout
    return folder / "results/published"


@pytest.mark.parametrize("name", TABLES)
def test_the_archive_gives_the_published_tables(made_again: Path, name: str) -> None:
    published, again = (
        pd.read_csv(folder / f"tables/{name}.csv", dtype=str) for folder in (EXAMPLE, made_again)
    )
    # An edit to the code that cells run makes their results stale, but changes no figure.
    for table in (published, again):
        if name == "cells":
            table["outcome"] = table["outcome"].replace("stale", "ok")
        table.drop(columns="stale", errors="ignore", inplace=True)
    pd.testing.assert_frame_equal(again, published)


def test_the_archive_gives_the_published_answer(made_again: Path) -> None:
    published, again = (
        re.findall(r'<p class="answer">.*?</p>', (folder / "report.html").read_text(), re.DOTALL)
        for folder in (EXAMPLE, made_again)
    )
    assert published
    assert again == published


@pytest.mark.parametrize(
    ("run", "gpus", "runs", "heading"),
    [
        ("one_h200", [1], 12, "One H200: the GPT"),
        ("another_h200", [1], 10, "Another H200: the same again"),
        ("h200", [4, 2, 1], 68, "Four, two and one H200: sixteen strategies"),
    ],
)
def test_the_other_archives_give_the_figures(
    run: str, gpus: list[int], runs: int, heading: str, tmp_path: Path
) -> None:
    subprocess.run(["tar", "-xJf", EXAMPLE / f"{run}.tar.xz", "-C", tmp_path], check=True)
    raw = shipped("two_gpus")
    update_config(raw, yaml.safe_load((EXAMPLE / f"{run}.yaml").read_text()))
    config = load(raw, ROOT)
    speeds: dict[tuple[str, int], list[float]] = {}
    for cell in cells_of(config):
        file = tmp_path / cell.folder.relative_to("results") / "metrics.json"
        if not file.exists():
            continue
        metrics = read_metrics(file)
        assert metrics.cell_sha256 == cell.fingerprint()
        assert metrics.throughput is not None
        speed = metrics.throughput.items_per_s_per_gpu
        speeds.setdefault((cell.strategy, cell.gpus), []).append(speed)
        verdict = tmp_path / run / f"parity/gpt_1b4/{cell.strategy}/ranks{cell.gpus}.json"
        assert Parity.model_validate_json(verdict.read_text()).status == "passed"
    assert sum(map(len, speeds.values())) == runs
    section = (ROOT / "docs/results.md").read_text().partition(f"## {heading}")[2]
    columns = "".join(r" ([\d,]*?) ?\|" for _ in gpus)
    rows = re.findall(rf"^\| ([^|]*) \|{columns}", section.partition("\n## ")[0], re.MULTILINE)
    published = {
        (NAMES[name], count): int(speed.replace(",", ""))
        for name, *row in rows
        for count, speed in zip(gpus, row, strict=True)
        if speed
    }
    assert published == {key: round(median(runs)) for key, runs in speeds.items()}
