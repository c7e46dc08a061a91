"""The check of every change: what runs again, and what fails it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from small_matrix import ROOT

# A make whose test-all fails the tests that FAILING names, the second time those of FAILING_AGAIN.
MAKE = """#!/usr/bin/env bash
[ "$1" = test-all ] || { echo "=== 1 passed in 1s ==="; exit; }
failing=$FAILING
if [[ ${PYTEST_ADDOPTS-} = *last-failed* ]]; then echo again; failing=$FAILING_AGAIN; fi
for name in $failing; do echo "FAILED tests/test_x.py::$name - AssertionError"; done
echo "=== $(wc -w <<< "$failing") failed, 2000 passed in 1s ==="
[ -z "$failing" ]
"""


@pytest.mark.parametrize(
    ("failing", "failing_again", "right"),
    [
        ("", "", True),
        ("test_a[b]", "", True),
        ("test_a", "test_a", False),
        ("test_a test_b test_c test_d", "", False),
    ],
)
def test_a_few_failed_tests_run_again_and_are_named(
    failing: str, failing_again: str, right: bool, tmp_path: Path
) -> None:
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", tmp_path / ".ci")
    for name, text in {"make": MAKE, "chromium": "", "shellcheck": ""}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    variables = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "FAILING": failing,
        "FAILING_AGAIN": failing_again,
    }
    done = subprocess.run(
        [tmp_path / ".ci/run"], env=os.environ | variables, capture_output=True, text=True
    )
    assert (done.returncode == 0) is right, done.stdout + done.stderr
    flaky = [line for line in done.stdout.splitlines() if line.startswith("FLAKY")]
    assert bool(flaky) is (right and bool(failing))
    assert ("again" in done.stdout) is (1 <= len(failing.split()) <= 3)
    assert done.stdout.splitlines()[-1].endswith("1 passed in 1s ===")
