"""What tests share: a folder for real cells, whichever process runs them, and the gate."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def pytest_configure(config: pytest.Config) -> None:
    # Threads that wait in a loop for each other, as OpenMP's do, take the cores from the processes
    # that other tests run: a cell took up to twice as long (measured, two cores).
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # The processes of pytest-xdist inherit it.
    if "PYTEST_XDIST_WORKER" not in os.environ:
        runs = tempfile.TemporaryDirectory(prefix="shardmark-test-")
        config.add_cleanup(runs.cleanup)
        os.environ["SHARDMARK_TEST_RUNS"] = runs.name


# Files that take minutes. If one of them started last, the other core would rest.
STARTED_FIRST = (
    "test_parity.py",
    "test_workflow.py",
    "test_survival.py",
    "test_commands_together.py",
    "test_language_gate.py",
    "test_own_files_workflow.py",
    "test_largest_batch.py",
    "test_figures.py",
    "test_own_training.py",
    "test_example.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put these files first. `--no-loadscope-reorder` makes pytest-xdist keep the order."""
    places = {name: place for place, name in enumerate(STARTED_FIRST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(scope="session")
def oracles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the parity gate's oracles."""
    return tmp_path_factory.mktemp("oracles")


@pytest.fixture(scope="session")
def gate(oracles: Path) -> Callable[..., Any]:
    """The parity gate's verdict on a case: by forks, which need not import torch again.

    A fork of a process that has a GPU loses it, so on GPUs every case is launched.
    """
    from forked_ranks import judge  # imports torch, which few tests need
    from parity_cases import DEVICE, launched

    verdict = launched if DEVICE == "cuda" else judge
    return lambda case, script=None: verdict(case, oracles, script)
