"""Starting the processes of one cell on this node, and ending them with it."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import IO, Any

import psutil

from shardmark.cells import Cell
from shardmark.errors import UserError

SCRIPTS = Path(__file__).resolve().parents[1]
LOG_TAIL_LINES = 40
GRACE_S = 10.0
POLL_S = 0.1
# An environment variable that every process of a cell inherits, and its descendants.
MARK = "SHARDMARK_MARK"


@dataclass(frozen=True)
class Ended:
    """How the processes of a cell ended.

    Attributes:
        exit_code: of the training process, or of torchrun.
        timed_out: whether the time limit ended them.
        failures: what each failed rank left, the earliest first.
        log_tail: the last lines they printed.
        seconds: wall-clock time from the launch.
        at: when, in seconds since the epoch.
    """

    exit_code: int
    timed_out: bool
    failures: list[dict[str, Any]]
    log_tail: list[str]
    seconds: float
    at: float


def launch(
    script: Path,
    arguments: list[str],
    cell: Cell,
    scratch: Path,
    *,
    limit_s: float | None = None,
    extra_env: Mapping[str, str] | None = None,
) -> Ended:
    """Run a training script with the processes that the cell names, and wait for its end.

    Their output is passed on to stdout. However this returns or raises, none of them lives on.

    Args:
        script: a ``train_*.py``.
        arguments: its arguments.
        cell: says how many processes.
        scratch: where the ranks leave their failures.
        limit_s: end them after this many seconds.
        extra_env: environment variables beside the caller's.

    Raises:
        UserError: if the cell spans more than one node.
    """
    if cell.nodes > 1:
        raise UserError(
            f"{cell.title}: spans {cell.nodes} nodes, and cells of several nodes are not launched "
            "by this version; keep matrix.gpus within cluster.gpus_per_node"
        )
    begin = time.monotonic()
    mark = uuid.uuid4().hex
    tail: collections.deque[str] = collections.deque(maxlen=LOG_TAIL_LINES)
    timed_out = False
    with _ended_at_exit(mark):
        process = subprocess.Popen(
            [*_command(cell), str(script), *arguments],
            env=_environment(cell) | {MARK: mark} | dict(extra_env or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        assert process.stdout is not None
        reader = Thread(target=_pass_on, args=(process.stdout, tail), daemon=True)
        reader.start()
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            timed_out = True
    exit_code = process.wait()
    reader.join(timeout=GRACE_S)
    found = [json.loads(path.read_text()) for path in scratch.glob("failure.rank*.json")]
    failures = sorted(found, key=lambda failure: float(failure["time"]))
    return Ended(exit_code, timed_out, failures, list(tail), time.monotonic() - begin, time.time())


def _command(cell: Cell) -> list[str]:
    if cell.processes == 1:
        return [sys.executable]
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={cell.processes}",
    ]


def _environment(cell: Cell) -> dict[str, str]:
    env = dict(os.environ)
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SCRIPTS), env.get("PYTHONPATH")]))
    env["PYTHONUNBUFFERED"] = "1"
    env["SHARDMARK_LAUNCHED"] = str(time.time())
    # NVML counts devices by their bus; torch must mean the same ones.
    env["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    # cuBLAS computes the same bits twice only with a fixed workspace; the parity gate asks for it.
    env.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if cell.device == "cpu":
        env["CUDA_VISIBLE_DEVICES"] = ""
        cores = len(os.sched_getaffinity(0))
        env.setdefault("OMP_NUM_THREADS", str(max(1, cores // cell.processes)))
    if cell.processes == 1:
        env |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    return env


def _pass_on(stream: IO[str], tail: collections.deque[str]) -> None:
    for line in stream:
        tail.append(line.rstrip("\n"))
        print(line, end="", flush=True)


@contextlib.contextmanager
def _ended_at_exit(mark: str) -> Iterator[None]:
    """End the processes of this mark on leaving, also where SIGTERM or SIGINT is the reason."""

    def leave(number: int, frame: object) -> None:
        # A second one must not break off what the first has begun. The processes are not ended
        # here: this may run inside a wait() for one of them, which holds a lock.
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        sys.exit(128 + number)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, leave)
    try:
        yield
    finally:
        _end(mark)
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(mark: str) -> None:
    """End every process of this mark: by SIGTERM, and by SIGKILL those that do not heed it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in _living(mark):
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)
        patience = time.monotonic() + GRACE_S
        while time.monotonic() < patience:
            if not _living(mark):
                return
            time.sleep(POLL_S)


def _living(mark: str) -> list[psutil.Process]:
    """The processes of this mark.

    Neither a process group nor the tree of children finds them all: torchrun gives each rank a
    session of its own, and a rank whose torchrun was killed has no parent that is known here.
    """
    living = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # another user's, or gone
            if process.environ().get(MARK) == mark:
                living.append(process)
    return living
