"""One folder for the real cells of a test run, whichever of its processes runs them."""

from __future__ import annotations

import os
import tempfile

import pytest


def pytest_configure(config: pytest.Config) -> None:
    # The processes of pytest-xdist inherit it.
    if "PYTEST_XDIST_WORKER" not in os.environ:
        runs = tempfile.TemporaryDirectory(prefix="shardmark-test-")
        config.add_cleanup(runs.cleanup)
        os.environ["SHARDMARK_TEST_RUNS"] = runs.name
