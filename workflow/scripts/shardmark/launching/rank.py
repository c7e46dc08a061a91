"""The process of one rank: run what the launcher asks for, and record the failure if it fails."""

from __future__ import annotations

import argparse
import contextlib
import errno
import faulthandler
import json
import os
import signal
import time
import traceback
from pathlib import Path

import torch
import torch.distributed as dist

from shardmark.cells import Cell, ParityCase
from shardmark.disk import is_full
from shardmark.errors import UserError
from shardmark.files import write_text
from shardmark.measurement.clocks import Phases
from shardmark.parity.gate import run_case
from shardmark.processes.ending import leave
from shardmark.processes.last_signal import leave_trace_of_signals
from shardmark.training.batch_search import search_largest_batch
from shardmark.training.loop import CellTraining, StrategyClass

# Messages of cudaGetErrorString that mean a broken or busy GPU or driver, not a training error.
BROKEN_GPU = (
    "uncorrectable ECC error encountered",
    "uncorrectable NVLink error detected",
    "CUDA-capable device(s) is/are busy or unavailable",
    "no CUDA-capable device is detected",
    "CUDA driver version is insufficient for CUDA runtime version",
    "system not yet initialized",
    "driver shutting down",
)


def main(strategy: StrategyClass) -> None:
    """Run one rank of a cell, of a parity case or of a search, as the launcher asks.

    The process writes ``result.json`` (rank 0) or ``failure.rank<r>.json`` to the scratch folder.
    """
    parser = argparse.ArgumentParser(description="one rank; a launcher starts it")
    parser.add_argument("--cell", type=Path, help="file with the cell's JSON")
    parser.add_argument("--case", type=Path, help="file with a parity case's JSON")
    parser.add_argument("--oracle", type=Path, help="file with the case's oracle")
    parser.add_argument(
        "--largest-batch", type=Path, help="file with the state of a search for the largest batch"
    )
    parser.add_argument("--scratch", type=Path, required=True, help="the scratch folder")
    arguments = parser.parse_args()
    leave_trace_of_signals(int(os.environ.get("RANK", "0")))
    faulthandler.enable()
    # The launcher sends SIGUSR1 to a hung rank to get its stack.
    faulthandler.register(signal.SIGUSR1)
    phases = Phases(time.time() - float(os.environ.get("SHARDMARK_LAUNCHED", time.time())))
    try:
        if arguments.case is not None:
            case = ParityCase.model_validate_json(arguments.case.read_text())
            run_case(strategy, case, arguments.oracle, arguments.scratch, phases)
        elif arguments.largest_batch is not None:
            search_largest_batch(strategy, arguments.largest_batch, phases)
        else:
            cell = Cell.model_validate_json(arguments.cell.read_text())
            result = CellTraining(strategy, cell, phases).run()
            if result is not None:
                write_text(arguments.scratch / "result.json", result.model_dump_json())
    except (Exception, SystemExit) as error:
        record_failure(error, phases.current, arguments.scratch)
        # The other ranks may wait in a collective for ever. Leave at once, so that the launcher
        # ends them; an orderly exit would first wait for the process group.
        leave(1)
    if dist.is_initialized():
        dist.destroy_process_group()
    leave()


def failure_kind(error: Exception | SystemExit) -> str:
    """Return the kind of an exception: oom, user, full_disk, machine or failed.

    Memory that runs out in the user's own code is no mistake of the user's (``call_own``).
    """
    if is_out_of_memory(error) or (error.__cause__ and is_out_of_memory(error.__cause__)):
        return "oom"
    if is_full(error):
        return "full_disk"
    if is_machine_fault(error):
        return "machine"
    return "user" if isinstance(error, UserError) else "failed"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the device or on the host.

    Only torch's caching allocator has its own class for this; the CUDA runtime, cuBLAS, NCCL and
    torch's CPU allocator raise plain RuntimeErrors.
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    signs = ("out of memory", "can't allocate memory", "STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def is_machine_fault(error: BaseException) -> bool:
    """Whether the machine made a training fail, so that it may succeed elsewhere or later.

    Examples: a broken GPU, a folder that cannot be read or written, a path that is too long, a
    missing library, a user without a name, a DataLoader worker that something killed. Lost
    connections and time-outs do not count, because they follow from another rank's end.
    """
    if isinstance(error, OSError):
        return not isinstance(error, (ConnectionError, TimeoutError))
    words = str(error)
    if "DataLoader worker (pid" in words:
        signs = ("exited unexpectedly", "Killed", "Terminated", "Bus error")
        return any(sign in words for sign in signs)
    if isinstance(error, ImportError) or "uid not found" in words:
        return True
    return any(sign in words for sign in BROKEN_GPU)


def record_failure(error: Exception | SystemExit, phase: str, scratch: Path) -> None:
    """Write what happened to this rank to a file, for the launcher to read."""
    rank = int(os.environ.get("RANK", "0"))
    if not isinstance(error, UserError):
        traceback.print_exc()
    failure = {
        "rank": rank,
        "phase": phase,
        "exception": f"{type(error).__name__}: {error}",
        "kind": failure_kind(error),
        "message": str(error),
        "time": time.time(),
    }
    # If the disk is full, the launcher notices that itself; this rank must leave at once.
    with contextlib.suppress(OSError):
        write_text(scratch / f"failure.rank{rank}.json", json.dumps(failure))
