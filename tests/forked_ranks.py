"""Cells and the parity gate by ranks that are forks of one process, which imports torch once."""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from shardmark.cells import Cell, ParityCase
from shardmark.metrics import Metrics
from shardmark.parity_result import Parity

TESTS = Path(__file__).resolve().parent


def run_cell(cell: Cell, folder: Path, script: Path | None = None) -> Metrics:
    """The metrics of a cell, which another script may train than its own."""
    folder.mkdir(parents=True, exist_ok=True)
    return Metrics.model_validate(_ask("cell", cell, folder, script), strict=False)


def judge(case: ParityCase, oracles: Path, script: Path | None = None) -> Parity:
    """The gate's verdict on a case; its oracle is kept in a folder."""
    return Parity.model_validate(_ask("case", case, oracles, script), strict=False)


def _ask(kind: str, definition: Cell | ParityCase, folder: Path, script: Path | None) -> Any:
    server = _start_server()
    assert server.stdin is not None
    assert server.stdout is not None
    raw = definition.model_dump(mode="json", by_alias=True)
    server.stdin.write(f"{json.dumps([kind, raw, str(folder), script and str(script)])}\n")
    server.stdin.flush()
    answer = json.loads(server.stdout.readline())
    assert isinstance(answer, dict), answer
    return answer


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
