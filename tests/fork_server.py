"""Ranks for tests that are forks of this process, which imports torch and the frameworks once.

It reads one request per line from its input, as JSON, and answers with a line:

- ["cell", cell, folder, script]: the metrics. The script trains in the place of the strategy's own,
  or is null. All but the launch is that of run_cell.py.
- ["case", case, oracles, script]: the parity gate's verdict.
- ["call", [module, function, arguments], ranks, null]: the ranks that failed. Each calls the
  function with its rank and the arguments.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

# Before torch starts threads, which a fork would lose.
os.environ["OMP_NUM_THREADS"] = "1"

# Some of these are here only to be imported before a fork: by torch.optim and by DeepSpeed.
import torch
import torch._dynamo
import torch._inductor.compile_fx

import run_cell
import run_parity
import train_deepspeed  # noqa: F401
import train_fairscale_fsdp  # noqa: F401
import train_fsdp2  # noqa: F401
from parity_cases import oracle_file
from shardmark.cells import Cell, ParityCase
from shardmark.codebase import SCRIPTS
from shardmark.launching import node
from shardmark.launching.launch import Ended
from shardmark.measurement.telemetry import node_name, sampling
from shardmark.parity.oracles import make_oracles
from shardmark.parity.trajectory_files import write_plain
from shardmark.processes.ending import leave
from shardmark.processes.heartbeat import Heartbeats
from shardmark.processes.tether import end_with
from shardmark.slurm.allocation import free_port
from shardmark.strategies import spec_of

# Time for the others to fail too, and to say why, when one rank has failed.
GRACE_S = 5.0


def main() -> None:
    """Answer the requests of standard input."""
    run_cell.launch = launch_forks
    # A collection in a fork would write to, and so copy, every object of this process.
    gc.freeze()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what ranks print is no answer
    for line in sys.stdin:
        kind, *request = json.loads(line)
        answer = {"cell": metrics, "case": verdict, "call": failures_of_call}[kind]
        try:
            answers.write(f"{answer(*request)}\n")
        except Exception as error:
            answers.write(f"{json.dumps(repr(error))}\n")
        answers.flush()
    leave()


def metrics(raw: object, folder: str, script: str | None) -> str:
    """The metrics of a cell."""
    cell = Cell.model_validate_json(json.dumps(raw))
    done = run_cell.run_cell(cell, Path(folder), script=Path(script) if script else None)
    return done.model_dump_json(by_alias=True)


def verdict(raw: object, oracles: str, script: str | None) -> str:
    """The gate's verdict on a case."""
    case = ParityCase.model_validate_json(json.dumps(raw))
    oracle = oracle_file(case, Path(oracles))
    if not oracle.exists():
        run_forks(1, lambda _: write_plain(make_oracles([case], torch.device("cpu")), oracle))
    with tempfile.TemporaryDirectory(dir=oracles) as folder:
        scratch = Path(folder)
        (scratch / "case.json").write_text(case.model_dump_json(by_alias=True))
        own = Path(script) if script else SCRIPTS / spec_of(case.cell.base).script
        arguments = ["--case", str(scratch / "case.json"), "--oracle", str(oracle)]
        arguments += ["--scratch", folder]
        ended = launch_forks(own, arguments, case.cell, scratch)
        assert ended.exit_code == 0, ended.failures
        answer = scratch / "parity.json"

        def judge(_: int) -> None:
            # Not run_parity, which runs no case that is unsupported, such as DataParallel on a CPU.
            parity = run_parity._judged(case, scratch / "trajectories.pt", oracle, False)
            answer.write_text(parity.model_dump_json(by_alias=True))

        # The judgement may train a step, to see which weights the model uses twice. Once a process
        # has trained, torch refuses to train in its forks, so this process must not.
        assert not run_forks(1, judge)
        return answer.read_text()


def failures_of_call(call: tuple[str, str, list[object]], ranks: int, _: None) -> list[int]:
    """The ranks in which a function of a module failed."""
    module, function, arguments = call

    def work(rank: int) -> None:
        getattr(importlib.import_module(module), function)(rank, *arguments)

    return run_forks(ranks, work)


def launch_forks(
    script: Path,
    arguments: list[str],
    cell: Cell,
    scratch: Path,
    *,
    telemetry: Path | None = None,
    limit_s: None = None,
    stall_s: None = None,
) -> Ended:
    """Do what shardmark.launching.launch does, on one node, by forks."""
    plan = node.Plan(
        cell=cell,
        script=script,
        arguments=arguments,
        scratch=scratch,
        environment={},
        telemetry=telemetry,
        limit_s=None,
        stall_s=None,
        grace_s=0,
    )
    Heartbeats(scratch / "heartbeats", cell.processes)
    variables = node._rank_environment(plan, cell.processes, scratch / "heartbeats", None)
    variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port(str(os.getpid())))}
    variables |= {"WORLD_SIZE": str(cell.processes), "LOCAL_WORLD_SIZE": str(cell.processes)}
    sampler: AbstractContextManager[None] = nullcontext()
    if telemetry is not None:
        sampler = sampling(telemetry, cell.measure.sample_interval_s, None)
    begin = time.time()

    def train(rank: int) -> None:
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "SHARDMARK_LAUNCHED": str(begin)}
        os.environ |= variables | ranks
        sys.argv = [str(script), *arguments]
        runpy.run_path(str(script), run_name="__main__")

    with sampler:
        failed = run_forks(cell.processes, train)
    report = node.NodeReport(
        index=0,
        name=node_name(),
        exit_code=int(bool(failed)),
        ended_by=None,
        ended_since=None,
        failures=[],
        beats=[],
        oom_kills=0,
        gpus={},
        seconds=time.time() - begin,
        at=time.time(),
    )
    failures = [json.loads(path.read_text()) for path in scratch.glob("failure.*.json")]
    return Ended(report.exit_code, failures, [report], [], report.seconds)


def run_forks(count: int, work: Callable[[int], object]) -> list[int]:
    """Do the work in so many forks; return the ranks that failed, the first one first.

    When one has failed, the others are killed: they may wait for it in a collective for ever.
    """
    children, parent = {}, os.getpid()
    for rank in range(count):
        child = os.fork()
        if not child:
            try:
                assert end_with(parent)
                work(rank)
            except BaseException:
                traceback.print_exc()
                leave(1)
            leave()
        children[child] = rank
    failed: list[int] = []
    deadline = float("inf")
    while children and time.monotonic() < deadline:
        time.sleep(0.01)
        for child, rank in list(children.items()):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                del children[child]
            if status:
                code = os.waitstatus_to_exitcode(status)
                print(f"rank {rank} failed, with exit code {code}", file=sys.stderr, flush=True)
                failed.append(rank)
                deadline = min(deadline, time.monotonic() + GRACE_S)
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return failed


if __name__ == "__main__":
    main()
