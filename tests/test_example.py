"""The published comparison, made again from its archive by the commands in docs/results.md."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from small_matrix import ROOT

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
