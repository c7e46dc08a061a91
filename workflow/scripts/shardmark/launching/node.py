"""Run one node's part of a cell: start its sampler and torchrun, and watch both.

The launcher, or srun, starts this once per node. It ends its ranks when the cell's time is up, when
no rank makes progress, or when its parent is gone. It then reports how they ended, and kills every
process that it started.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import psutil
from pydantic import Field

from shardmark.cells import Cell
from shardmark.codebase import SCRIPTS
from shardmark.command import one_message
from shardmark.config.values import Section
from shardmark.disk import disk_errors_explained, require_room
from shardmark.errors import UserError
from shardmark.files import write_text
from shardmark.launching.agent import agent_command
from shardmark.launching.cell_progress import ProgressNote
from shardmark.launching.site import (
    IN_IMAGE,
    SCRATCH_VARIABLE,
    command_at_site,
    make_caches,
    make_local_folder,
    site_environment,
    why_not_in_image,
)
from shardmark.measurement.cpus import usable_cpus
from shardmark.measurement.telemetry import (
    gpu_facts,
    gpu_indices,
    node_name,
    sampling,
    visible_gpus,
)
from shardmark.processes.ending import end, is_alive
from shardmark.processes.heartbeat import FILE_VARIABLE, Beat, Heartbeats
from shardmark.processes.last_signal import signalled_ranks
from shardmark.processes.tether import tether

POLL_S = 0.5
# Longer than the time between two polls of the watch on a busy machine.
FROZEN_S = 10.0
# Time for the ranks to print their stacks, and for the other nodes to notice the same hang.
LAST_WORDS_S = 2.0
# Time for killed processes to disappear; a process that hangs in a driver never does.
DEATH_S = 30.0
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


class Plan(Section):
    """The instructions for the nodes of a cell, in a file that all of them read.

    Attributes:
        cell: the cell, or the cell of a parity case.
        script: a ``train_*.py``.
        arguments: its arguments.
        scratch: folder for the files of ranks and nodes; all nodes see it.
        environment: variables for the ranks, added to this process's own.
        telemetry: file for each node's samples, or None for no sampler.
        limit_s: seconds until the ranks are ended.
        stall_s: seconds without progress of any rank after which they count as hung.
        grace_s: seconds between SIGTERM and SIGKILL to the ranks.
        rendezvous: address and port of the first node, where several nodes meet.
        rendezvous_id: name of that rendezvous.
        addresses: addresses of the nodes.
    """

    cell: Cell
    script: Path
    arguments: list[str]
    scratch: Path
    environment: dict[str, str]
    telemetry: Path | None
    limit_s: float | None
    stall_s: float | None
    grace_s: float
    rendezvous: str | None = None
    rendezvous_id: str = ""
    addresses: tuple[str, ...] = ()


Cause = Literal["time limit", "stall", "signal", "orphaned"]


class Intervention(NamedTuple):
    """Why and when a node's watch ended its ranks.

    Attributes:
        cause: the reason.
        at: when the watch began to end them, in seconds since the epoch.
        stopped: processes that a signal or a debugger had stopped by then.
    """

    cause: Cause
    at: float
    stopped: Sequence[str] = ()


class NodeReport(Section):
    """How one node's part ended.

    Attributes:
        index: number of the node within the cell; the first is 0.
        name: the node's name.
        exit_code: exit code of torchrun, or of the only rank.
        ended_by: why this node's watch ended the ranks; None if they ended by themselves.
        ended_since: when it began to end them, in seconds since the epoch.
        failures: ranks that failed, in the format of agent_command.
        beats: the last beat of each rank.
        signalled: ranks that a signal from outside ended, and when, in seconds since the epoch.
        stopped: processes that were stopped (SIGSTOP, a debugger) when no rank made progress.
        oom_kills: processes that the kernel killed for lack of memory while this node's ranks ran.
        gpus: facts about each GPU, by UUID.
        seconds: wall-clock time of the ranks, from their launch to the end of the last.
        at: when the last rank ended, in seconds since the epoch.
    """

    index: int
    name: str
    exit_code: int
    ended_by: Cause | None
    ended_since: float | None
    failures: list[dict[str, Any]]
    beats: list[Beat]
    signalled: dict[int, float] = Field(default_factory=dict)
    stopped: list[str] = Field(default_factory=list)
    oom_kills: int
    gpus: dict[str, dict[str, Any]]
    seconds: float
    at: float


def report_path(scratch: Path, index: int) -> Path:
    """Return the path of a node's report."""
    return scratch / f"node{index}.json"


def telemetry_path(target: Path, nodes: int, index: int) -> Path:
    """Return the path of a node's samples: one file per node."""
    return target if nodes == 1 else target.with_suffix(f".node{index}{target.suffix}")


def run_node(plan: Plan, index: int) -> NodeReport:
    """Run this node's ranks until they end."""
    cell = plan.cell
    ranks = cell.processes // cell.nodes
    gpus = visible_gpus(cell.gpus_per_node) if cell.device == "cuda" else None
    sampler: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if plan.telemetry is not None:
        samples = telemetry_path(plan.telemetry, cell.nodes, index)
        # Only a GPU's idle power can be measured: other processes share the CPUs.
        idle_s = cell.measure.idle_s if gpus else 0.0
        sampler = sampling(samples, cell.measure.sample_interval_s, gpus, idle_s)
    killed_before = oom_kills()
    local_disk = make_local_folder(os.environ.get(SCRATCH_VARIABLE))
    with tempfile.TemporaryDirectory(prefix="shardmark-", dir=local_disk) as folder, no_survivors():
        failures = plan.scratch / f"failures.node{index}.json"
        intervention: Intervention | None = None
        try:
            with sampler:
                # Before the clock starts: the site's set-up does not count as the cell's time.
                env = _rank_environment(plan, ranks, Path(folder, "heartbeats"), gpus)
                beats = Heartbeats(Path(folder, "heartbeats"), ranks)
                command = _rank_command(plan, index, ranks, failures, Path(folder))
                begin = time.monotonic()
                process = subprocess.Popen(
                    tether(_command_at_site(plan, command, Path(folder), env)),
                    env=env | {"SHARDMARK_LAUNCHED": str(time.time())},
                )
                intervention = _watch(process, plan, index, begin, beats)
                seconds, at = time.monotonic() - begin, time.time()
                if process.returncode and not any(plan.scratch.glob("failure.*.json")):
                    # torchrun and the ranks' libraries keep their files in this folder.
                    require_room(Path(folder))
        except UserError:
            # An intervention ends the sampler too, so its error says nothing new.
            if intervention is None:
                raise
        return NodeReport(
            index=index,
            name=node_name(),
            # returncode is None if even SIGKILL did not end the process.
            exit_code=-signal.SIGKILL if process.returncode is None else process.returncode,
            ended_by=intervention and intervention.cause,
            ended_since=intervention and intervention.at,
            failures=_read_failed_ranks(cell, process, failures),
            beats=beats.read(),
            signalled=signalled_ranks(beats.path.parent),
            stopped=list(intervention.stopped) if intervention else [],
            oom_kills=oom_kills() - killed_before,
            gpus={uuid: gpu_facts(uuid) for uuid in gpus or []},
            seconds=seconds,
            at=at,
        )


def _read_failed_ranks(
    cell: Cell, process: subprocess.Popen[bytes], agents_report: Path
) -> list[dict[str, Any]]:
    if cell.processes == 1 and process.returncode:
        code, pid = process.returncode, process.pid
        return [{"rank": 0, "exit_code": code, "pid": pid, "time": time.time()}]
    if not agents_report.exists():
        return []
    failures: list[dict[str, Any]] = json.loads(agents_report.read_text())
    return failures


def _command_at_site(
    plan: Plan, command: list[str], folder: Path, env: Mapping[str, str]
) -> list[str]:
    """Return the command as it runs at the site; ``folder`` is this node's folder for the cell.

    Raises:
        UserError: if this node cannot run the site's image, which is not a failure of the cell.
    """
    cell = plan.cell
    if reason := why_not_in_image(cell.site, env):
        raise UserError(reason)
    folders = [plan.scratch, folder, plan.script.parent, Path(cell.data_dir)]
    return command_at_site(cell.site, command, cuda=cell.device == "cuda", folders=folders)


def _rank_command(plan: Plan, index: int, ranks: int, failures: Path, folder: Path) -> list[str]:
    script = [str(plan.script), *plan.arguments]
    if plan.cell.processes == 1:
        return [sys.executable, *script]
    options = [f"--nproc-per-node={ranks}", "--max-restarts=0"]
    # torchrun always makes a folder for its ranks' logs, and never removes one in /tmp.
    options += [f"--log-dir={folder / 'torchrun'}"]
    if plan.rendezvous is None:
        options += ["--standalone"]
    else:
        options += [
            f"--nnodes={plan.cell.nodes}",
            "--rdzv-backend=c10d",
            f"--rdzv-id={plan.rendezvous_id}",
            f"--rdzv-endpoint={plan.rendezvous}",
            # torchrun would guess the host by its name, but a node may have several names.
            f"--rdzv-conf=is_host={int(index == 0)}",
            f"--local-addr={plan.addresses[index]}",
        ]
    return agent_command(failures, options, script)


def _rank_environment(
    plan: Plan, ranks: int, beats: Path, gpus: Sequence[str] | None
) -> dict[str, str]:
    cell = plan.cell
    env = site_environment(cell.site, os.environ)
    # In an image, this machine's packages would shadow those of the image.
    own_path = env.get("PYTHONPATH") if cell.site.container is None else None
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SCRIPTS), own_path]))
    if cell.site.container is not None:
        env |= IN_IMAGE
    if os.environ.get(SCRATCH_VARIABLE):
        env |= make_caches(beats.parent)
    env["PYTHONUNBUFFERED"] = "1"
    env["SHARDMARK_NODE"] = node_name()
    env[FILE_VARIABLE] = str(beats)
    # NVML numbers devices by PCI bus; torch must use the same order.
    env["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    if gpus is not None and "GPU-" in env.get("CUDA_VISIBLE_DEVICES", ""):
        env["CUDA_VISIBLE_DEVICES"] = gpu_indices(gpus)
    # cuBLAS is bitwise reproducible only with a fixed workspace; the parity gate needs that.
    env.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Otherwise torch's profiler logs its start, and the lack of a GPU, into the cell's log.
    env.setdefault("KINETO_LOG_LEVEL", "6")
    # torchrun would set both to 1 for its ranks; a single process runs without torchrun.
    env.setdefault("OMP_NUM_THREADS", str(max(1, usable_cpus() // ranks)))
    env.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    if cell.device == "cpu":
        env["CUDA_VISIBLE_DEVICES"] = ""
    if cell.processes == 1:
        env |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    return env | plan.environment


class _Terminated(Exception):
    """This process received SIGTERM or SIGINT."""


def _watch(
    process: subprocess.Popen[bytes], plan: Plan, index: int, begin: float, beats: Heartbeats
) -> Intervention | None:
    """Wait for the ranks; return why they were ended, or None if they ended by themselves."""
    starters = ancestors()
    note = ProgressNote(plan.scratch)
    was_silent, looked_at, watched_since = False, time.monotonic(), begin
    try:
        with _signals_raise():
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(POLL_S)
                    return None
                if not all(is_alive(starter) for starter in starters):
                    return Intervention("orphaned", time.time())
                if plan.limit_s is not None and time.monotonic() - begin > plan.limit_s:
                    intervention = Intervention("time limit", time.time())
                    _print_stacks(beats.read(), plan.cell.nodes)
                    return intervention
                last = beats.read()
                if index == 0:
                    note.take(last)
                now = time.monotonic()
                if now - looked_at > FROZEN_S:
                    # This process was frozen, so its ranks may have been too.
                    watched_since = now
                    begin += now - looked_at
                looked_at = now
                is_silent = plan.stall_s is not None and plan.stall_s < min(
                    now - watched_since, *(beat.silent_s for beat in last)
                )
                # Require two silent readings: ending a healthy cell would record a false failure.
                if is_silent and was_silent:
                    hang = Intervention("stall", time.time(), stopped_processes(last))
                    _print_stacks(last, plan.cell.nodes)
                    return hang
                was_silent = is_silent
    except _Terminated:
        return Intervention("signal", time.time())
    finally:
        end(process, plan.grace_s)


def stopped_processes(beats: list[Beat]) -> list[str]:
    """Return the descendants that a signal or a debugger has stopped; ranks by their number."""
    ranks = {beat.pid: f"rank {beat.rank}" for beat in beats}
    stopped = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP):
                stopped.append(ranks.get(process.pid, f"process {process.pid} ({process.name()})"))
    return stopped


def _print_stacks(beats: list[Beat], nodes: int) -> None:
    """Make each rank print its stack; a rank that has not begun prints nothing."""
    pids = [beat.pid for beat in beats if beat.pid]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGUSR1)
    if pids or nodes > 1:
        time.sleep(LAST_WORDS_S)


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    def terminated(number: int, frame: object) -> None:
        # A second signal must not interrupt the clean-up that the first one began.
        for caught in handlers:
            signal.signal(caught, signal.SIG_IGN)
        raise _Terminated

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in handlers:
        signal.signal(number, terminated)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def no_survivors() -> Iterator[None]:
    """On exit, kill every process that was started in the context and still runs.

    Descendants that lose their parent become children of this process (prctl(2),
    PR_SET_CHILD_SUBREAPER), so none escapes.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        deadline = time.monotonic() + DEATH_S
        # Repeat, because a process may start another one before it is killed.
        while (left := psutil.Process().children(recursive=True)) and time.monotonic() < deadline:
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, DEATH_S / 10)
        for process in left:
            print(f"shardmark: SIGKILL does not end process {process.pid} on {node_name()}")


def ancestors() -> list[psutil.Process]:
    """Return the processes above this one that it must not outlive.

    These are all ancestors up to the outermost Snakemake or Slurm step daemon, since a shell in
    between does not end with its parent. A process further up, such as a login shell, may end.
    """
    chain = psutil.Process().parents()
    anchors = [place for place, process in enumerate(chain) if _is_anchor(process)]
    return chain[: anchors[-1] + 1] if anchors else chain[:1]


def is_snakemake(process: psutil.Process) -> bool:
    """Whether a process is Snakemake, run as an interpreter's script or module.

    A shell that starts Snakemake does not count: its command line names it inside an argument.
    """
    with contextlib.suppress(psutil.Error):
        return "snakemake" in [Path(argument).name for argument in process.cmdline()[:3]]
    return False


def _is_anchor(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.name() == "slurmstepd" or is_snakemake(process)
    return False


def oom_kills() -> int:
    """Return how many processes the kernel has killed for lack of memory since boot.

    /proc/vmstat counts those of every control group (since Linux 4.13).
    """
    for line in Path("/proc/vmstat").read_text().splitlines():
        if line.startswith("oom_kill "):
            return int(line.split()[1])
    return 0


@one_message
def main() -> None:
    """Run this node's part of the plan on the command line; exit 1 if it did not end well."""
    plan = Plan.model_validate_json(Path(sys.argv[1]).read_text())
    index = int(os.environ.get("SLURM_NODEID", "0")) if plan.cell.nodes > 1 else 0
    try:
        with disk_errors_explained():
            report = run_node(plan, index)
    except UserError as error:
        failure = {"kind": "user", "message": str(error), "rank": None, "time": time.time()}
        write_text(plan.scratch / f"failure.node{index}.json", json.dumps(failure))
        raise
    write_text(report_path(plan.scratch, index), report.model_dump_json())
    sys.exit(0 if report.exit_code == 0 and report.ended_by is None else 1)


if __name__ == "__main__":
    main()
