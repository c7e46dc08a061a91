"""The check of every change: what runs again, and what fails it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from small_matrix import ROOT

# A make whose test-all fails the tests of FAILING, and the second time those of FAILING_AGAIN. As
# make does, it names the exit code of pytest.
MAKE = """#!/usr/bin/env bash
[ "$1" = test-all ] || { echo "=== 1 passed in 1s ==="; exit; }
failing=$FAILING
if [[ ${PYTEST_ADDOPTS-} = *last-failed* ]]; then echo again; failing=$FAILING_AGAIN; fi
for name in $failing; do echo "FAILED tests/test_x.py::$name - AssertionError"; done
echo "=== $(wc -w <<< "$failing") failed, 2000 passed in 1s ==="
[ -z "$failing" ] || { echo "make: *** [Makefile:58: test-all] Error $CODE"; exit 2; }
"""


@pytest.mark.parametrize(
    ("failing", "failing_again", "code", "runs_again", "passes"),
    [
        pytest.param("", "", 0, False, True, id="none fails"),
        pytest.param("test_a[b]", "", 1, True, True, id="one fails once"),
        pytest.param("test_a", "test_a", 1, True, False, id="one fails twice"),
        pytest.param("test_a test_b test_c test_d", "", 1, False, False, id="four fail"),
        pytest.param("test_a", "", 2, False, False, id="pytest is interrupted"),
    ],
)
def test_a_few_failed_tests_run_again_and_are_named(
    failing: str, failing_again: str, code: int, runs_again: bool, passes: bool, tmp_path: Path
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
        "CODE": str(code),
    }
    done = subprocess.run(
        [tmp_path / ".ci/run"], env=os.environ | variables, capture_output=True, text=True
    )
    assert (done.returncode == 0) is passes, done.stdout + done.stderr
    assert ("again" in done.stdout.splitlines()) is runs_again
    named = f"FLAKY, failed once and then passed: tests/test_x.py::{failing}"
    assert (named in done.stdout.splitlines()) is (runs_again and passes)
    assert done.stdout.splitlines()[-1].endswith("1 passed in 1s ===")
