"""Start the processes of one cell on one or several nodes, and end them with the launcher."""

from __future__ import annotations

import collections
import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import IO, Any

import psutil

from shardmark.cells import Cell
from shardmark.codebase import SCRIPTS
from shardmark.disk import require_room
from shardmark.errors import UserError
from shardmark.files import write_text
from shardmark.launching.node import (
    NodeReport,
    Plan,
    ancestors,
    is_snakemake,
    report_path,
)
from shardmark.launching.site import compile_cache
from shardmark.processes.ending import end
from shardmark.processes.tether import tether
from shardmark.slurm import allocation, queue

LOG_TAIL_LINES = 40
# Between SIGTERM and SIGKILL. Slurm gives a job 30 s (KillWait). In that time each node must end
# its ranks, and then this process must end its nodes.
GRACE_S = 5.0
# Time for a node's part to end after its report, and for srun to end the other nodes after one has
# failed.
LEAVING_S = 20.0
# A node's part that is stopped (SIGSTOP) for this long no longer watches its ranks.
STOPPED_S = 60.0
POLL_S = 0.5


@dataclass(frozen=True)
class Ended:
    """How the processes of a cell ended.

    Attributes:
        exit_code: 0 if all ended well; else that of torchrun, or of the only rank, on the first
            node that failed.
        failures: the failure records of ranks that raised an exception and of nodes that could not
            start their ranks, earliest first.
        nodes: the reports of the nodes that left one, in node order.
        log_tail: the last lines that the processes printed.
        seconds: wall-clock time since the launch.
        job: what Slurm granted the cell's job, if it ran in one.
    """

    exit_code: int
    failures: list[dict[str, Any]]
    nodes: list[NodeReport]
    log_tail: list[str]
    seconds: float
    job: allocation.Allocation | None = None


def launch(
    script: Path,
    arguments: list[str],
    cell: Cell,
    scratch: Path,
    *,
    telemetry: Path | None = None,
    limit_s: float | None = None,
    stall_s: float | None = None,
    extra_env: Mapping[str, str] | None = None,
) -> Ended:
    """Run a training script with the cell's processes, and wait until they end.

    Their output goes to stdout. None of them survives this call, whether it returns or raises.

    Args:
        script: a ``train_*.py``.
        arguments: its arguments.
        cell: says how many processes on how many nodes.
        scratch: folder for the files of ranks and nodes; every node must see it.
        telemetry: file for the device samples, or None for no sampler.
        limit_s: seconds after which the processes are ended.
        stall_s: seconds without progress of any rank after which they are ended.
        extra_env: environment variables added to the caller's.

    Raises:
        UserError: if this machine or job lacks what the cell needs, or ``scratch`` was removed or
            is on a full disk.
    """
    plan = Plan(
        cell=cell,
        script=script,
        arguments=arguments,
        scratch=scratch,
        environment=compile_cache(cell) | dict(extra_env or {}),
        telemetry=telemetry,
        limit_s=limit_s,
        stall_s=stall_s,
        grace_s=GRACE_S,
    )
    job = _read_own_job(cell)
    plan, prefix = _place_on_nodes(plan, job)
    file = scratch / "plan.json"
    write_text(file, plan.model_dump_json(by_alias=True))
    begin = time.monotonic()
    # On one node the prefix is empty, and the node's part is a child of this process.
    process = subprocess.Popen(
        tether([*prefix, sys.executable, "-m", "shardmark.launching.node", str(file)]),
        env=os.environ | {"PYTHONPATH": _python_path(), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    assert process.stdout is not None
    tail: collections.deque[str] = collections.deque(maxlen=LOG_TAIL_LINES)
    reader = Thread(target=_forward_output, args=(process.stdout, tail), daemon=True)
    reader.start()
    with _ended_at_exit(process):
        exit_code = _wait(process, plan)
    reader.join(timeout=GRACE_S)
    if exit_code:
        # On a full disk, the reason why the processes ended may not have been written.
        require_room(scratch)
    if not file.exists():
        raise UserError(
            f"{cell.title}: {scratch} was removed while the cell ran. This is no result; run it "
            "again"
        )
    nodes = _read_reports(scratch, cell.nodes)
    if any(node.ended_by == "orphaned" for node in nodes):
        _cancel_own_job()
    return Ended(
        next((node.exit_code for node in nodes if node.exit_code), exit_code),
        _read_failures(scratch),
        nodes,
        list(tail),
        time.monotonic() - begin,
        job,
    )


def _wait(process: subprocess.Popen[str], plan: Plan) -> int:
    """Wait until the nodes end, even if srun does not notice that one of them has ended.

    Raises:
        UserError: if a node's part or srun is stopped, because then nothing limits the ranks' time.
    """
    ended_at = stopped_at = math.inf
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(POLL_S)
        now, reports = time.monotonic(), _read_reports(plan.scratch, plan.cell.nodes)
        has_failed = any(node.exit_code or node.ended_by for node in reports)
        has_failed = has_failed or any(plan.scratch.glob("failure.node*.json"))
        if has_failed or len(reports) == plan.cell.nodes:
            ended_at = min(ended_at, now)
        if now - ended_at > LEAVING_S:
            return -signal.SIGTERM if has_failed else 0
        stopped_at = min(stopped_at, now) if _is_stopped(process.pid) else math.inf
        if now - stopped_at > STOPPED_S:
            raise UserError(
                f"{plan.cell.title}: the process that watches over its ranks was stopped (SIGSTOP) "
                f"for {STOPPED_S:.0f} s, and ended. This is no result; run it again"
            )


def _is_stopped(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() == psutil.STATUS_STOPPED
    return False


def _cancel_own_job() -> None:
    """Cancel this Slurm job after something outside killed a part of it.

    If something kills a step daemon, Slurm notices only when the job's time is up. It does not end
    the Snakemake that the daemon started, which hangs because nothing reads its output.
    """
    if job := queue.job_id():
        with contextlib.suppress(UserError):
            queue.ask("scancel", job)
        for process in filter(is_snakemake, ancestors()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def _read_own_job(cell: Cell) -> allocation.Allocation | None:
    """Return the Slurm job of this process, if any; it must have what the cell needs."""
    number = queue.job_id()
    if number is None:
        return None
    try:
        job = allocation.read_allocation(number)
    except UserError as error:
        # SLURM_JOB_ID may be inherited where there is no Slurm: in a container, in a notebook.
        has_no_slurm = shutil.which("scontrol") is None or "Invalid job id" in str(error)
        if cell.nodes > 1 or not has_no_slurm:
            raise
        return None
    allocation.require_all(cell, job)
    return job


def _place_on_nodes(plan: Plan, job: allocation.Allocation | None) -> tuple[Plan, list[str]]:
    """Return the plan with the nodes' addresses, and the command that starts one task per node."""
    cell = plan.cell
    if cell.nodes == 1:
        return plan, []
    if job is None:
        raise UserError(
            f"{cell.title}: spans {cell.nodes} nodes, which needs Slurm (--profile "
            "profiles/slurm); here, keep matrix.gpus within cluster.gpus_per_node"
        )
    addresses = allocation.node_addresses(job.nodes)
    # This process runs on the first node, where the others meet.
    places = {
        "rendezvous": f"{addresses[0]}:{allocation.free_port(job.job_id)}",
        # A requeued job keeps its number, so the time tells its tries apart.
        "rendezvous_id": f"{job.job_id}-{time.time_ns()}",
        "addresses": tuple(addresses),
    }
    return plan.model_copy(update=places), allocation.step_command(cell, job)


def _python_path() -> str:
    return os.pathsep.join(filter(None, [str(SCRIPTS), os.environ.get("PYTHONPATH")]))


def _read_failures(scratch: Path) -> list[dict[str, Any]]:
    failures = [json.loads(path.read_text()) for path in scratch.glob("failure.*.json")]
    return sorted(failures, key=lambda failure: float(failure["time"]))


def _read_reports(scratch: Path, nodes: int) -> list[NodeReport]:
    paths = [report_path(scratch, index) for index in range(nodes)]
    return [NodeReport.model_validate_json(path.read_text()) for path in paths if path.exists()]


def _forward_output(stream: IO[str], tail: collections.deque[str]) -> None:
    for line in stream:
        tail.append(line.rstrip("\n"))
        print(line, end="", flush=True)


@contextlib.contextmanager
def _ended_at_exit(process: subprocess.Popen[str]) -> Iterator[None]:
    """End the process on exit, also when SIGTERM or SIGINT to this process is the reason."""

    def leave(number: int, frame: object) -> None:
        # A second signal must not interrupt the clean-up that the first one began. The process is
        # not ended here: this handler may run inside a wait() for it, which holds a lock.
        for caught in handlers:
            signal.signal(caught, signal.SIG_IGN)
        sys.exit(128 + number)

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in handlers:
        signal.signal(number, leave)
    try:
        yield
    finally:
        end(process, 3 * GRACE_S)
        for number, handler in handlers.items():
            signal.signal(number, handler)
