"""Cells and the parity gate by ranks that are forks of one process, which imports torch once."""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from shardmark.cells import Cell, ParityCase
from shardmark.metrics import Metrics
from shardmark.parity_result import Parity

TESTS = Path(__file__).resolve().parent


def run_cell(cell: Cell, folder: Path, script: Path | None = None) -> Metrics:
    """The metrics of a cell, which another script may train than its own."""
    folder.mkdir(parents=True, exist_ok=True)
    metrics = _answer("cell", _raw(cell), str(folder), script and str(script))
    return Metrics.model_validate(metrics, strict=False)


def judge(case: ParityCase, oracles: Path, script: Path | None = None) -> Parity:
    """The gate's verdict on a case; its oracle is kept in a folder."""
    parity = _answer("case", _raw(case), str(oracles), script and str(script))
    return Parity.model_validate(parity, strict=False)


def spawn(function: Callable[..., None], arguments: Sequence[object], nprocs: int) -> None:
    """Call a function as each of so many ranks, as torch.multiprocessing.spawn does."""
    call = [function.__module__, function.__name__, arguments]
    failed = _answer("call", call, nprocs, None)
    assert not failed, f"failed: ranks {failed}"


def _answer(*request: object) -> Any:
    if _start_server().poll() is not None:  # a test has ended it
        _start_server.cache_clear()
    server = _start_server()
    assert server.stdin is not None
    assert server.stdout is not None
    answer = None
    try:
        server.stdin.write(f"{json.dumps(request)}\n")
        server.stdin.flush()
        answer = json.loads(server.stdout.readline())
    finally:
        if answer is None:  # it ended, or the test's time is up: its answer is not the next test's
            server.kill()
            _start_server.cache_clear()
    assert not isinstance(answer, str), answer
    return answer


def _raw(definition: Cell | ParityCase) -> Any:
    return definition.model_dump(mode="json", by_alias=True)


@functools.cache
def _start_server() -> subprocess.Popen[str]:
    path = f"{TESTS.parent}/workflow/scripts:{TESTS}"
    server = subprocess.Popen(
        [sys.executable, str(TESTS / "fork_server.py")],
        env=os.environ | {"PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(server.communicate)  # without input it ends
    return server
