"""A language model's text as an input of the workflow: its cells follow what the user writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from test_workflow import CONFIG, copy_project

MATRIX = """
run: t
matrix: {workloads: [mine], strategies: [ddp], gpus: [1], seeds: [0]}
cluster: {device: cpu}
workloads:
  mine:
    model: {name: gpt, layers: 1, width: 8, heads: 1, context: 8, vocabulary: 256}
    dataset: {name: text, file: my.txt, sequences: 16}
    batch: {global: 16}
    optimizer: {name: adamw, learning_rate: 0.001}
    precision: fp32
"""
CELL = "results/t/mine/ddp/gpus1/seed0/metrics.json"


@pytest.mark.slow
def test_an_edited_text_runs_its_cells_again(tmp_path: Path) -> None:
    project = copy_project(tmp_path)
    (tmp_path / CONFIG).write_text(MATRIX)
    (tmp_path / "my.txt").write_text("some text " * 100)
    for edited in (False, True):
        if edited:
            project.edit("my.txt")
        done = project.matrix(CELL)
        assert done.returncode == 0, done.stdout
        assert project.ran() == ["mine ddp gpus1 seed0"]
    assert project.matrix(CELL).returncode == 0
    assert project.ran() == []
