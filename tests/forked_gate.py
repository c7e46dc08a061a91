"""The parity gate for many cases: their ranks are forks of this process, which imports once.

The ranks, their process groups and the training are those of run_parity.py; only the launcher is
not. Usage: ``forked_gate.py FOLDER``. It reads one case per line from its input, as JSON, with the
script that trains it in place of its own, or null. It writes one verdict per line.
"""

from __future__ import annotations

import json
import os
import runpy
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

# Before torch starts threads, which a fork would lose.
os.environ["OMP_NUM_THREADS"] = "1"

import torch

import run_parity
from parity_cases import oracle_file
from shardmark.cells import ParityCase
from shardmark.launching.rank import main as rank_main
from shardmark.parity.oracles import make_oracles
from shardmark.parity.trajectory_files import write_plain
from shardmark.processes.ending import leave
from shardmark.training.strategy import Strategy
from train_ddp import Ddp
from train_deepspeed import Zero
from train_dp import Dp
from train_fairscale_fsdp import FairscaleFsdp
from train_fsdp import Fsdp
from train_fsdp2 import Fsdp2

CLASSES = {"dp": Dp, "ddp": Ddp, "fsdp": Fsdp, "fsdp2": Fsdp2, "fairscale_fsdp": FairscaleFsdp}


def main(folder: Path) -> None:
    """Judge the cases of standard input; keep their oracles in ``folder``."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what ranks print is no verdict
    for line in sys.stdin:
        case, script = json.loads(line)
        found = verdict(ParityCase.model_validate_json(json.dumps(case)), script, folder)
        answers.write(f"{json.dumps(found)}\n")
        answers.flush()


def strategy_of(script: str) -> type[Strategy]:
    """The strategy that a script defines."""
    defined = runpy.run_path(script, run_name="sabotage").values()
    return next(one for one in defined if isinstance(one, type) and one.__module__ == "sabotage")


def verdict(case: ParityCase, script: str | None, folder: Path) -> dict[str, object]:
    """The gate's verdict on one case."""
    cell = case.cell
    oracle = oracle_file(case, folder)
    if not oracle.exists():
        run_forks(1, lambda rank: write_plain(make_oracles([case], torch.device("cpu")), oracle))
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        file = Path(scratch, "case.json")
        file.write_text(case.model_dump_json(by_alias=True))
        sys.argv = ["train", "--case", str(file), "--scratch", scratch]
        port = free_port()

        def train(rank: int) -> None:
            os.environ |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(cell.processes),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            rank_main(strategy_of(script) if script else CLASSES.get(cell.base, Zero))

        run_forks(cell.processes, train)
        parity = run_parity._judged(case, Path(scratch, "trajectories.pt"), oracle, False)
    return parity.model_dump(mode="json")


def run_forks(count: int, work: Callable[[int], object]) -> None:
    """Do the work in so many forks; raise if one of them fails."""
    children = []
    for rank in range(count):
        child = os.fork()
        if not child:
            try:
                work(rank)
            finally:
                leave(1 if sys.exc_info()[0] else 0)
        children.append(child)
    failed = [child for child in children if os.waitpid(child, 0)[1]]
    assert not failed, f"{len(failed)} of {count} processes failed"


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
