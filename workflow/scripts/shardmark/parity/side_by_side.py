"""How cases of the parity gate that run at the same time share a machine's GPUs.

This module does not import torch: the launcher of a case holds it while the case runs.
"""

from __future__ import annotations

import contextlib
import fcntl
from pathlib import Path

from shardmark.measurement.telemetry import node_name

# A file on this machine. The case that holds its lock is the next to use GPUs.
TURN_VARIABLE = "SHARDMARK_GPU_TURN"
# "1" if a case ran out of memory and runs once more; meanwhile no other case starts a training.
ALONE_VARIABLE = "SHARDMARK_GATE_ALONE"


def turn_file(gate: Path) -> Path:
    """The file of the turn on this machine, for the folder of all results of the gate."""
    return gate / f".turn.{node_name()}"


def alone_file(turn: Path) -> Path:
    """The file that a case which runs alone has locked, beside that of the turn."""
    return turn.with_name(turn.name.replace("turn", "alone", 1))


def building_file(turn: Path, place: int) -> Path:
    """The file that a case which builds a model in host memory has locked, one for each place."""
    return turn.with_name(turn.name.replace("turn", f"building{place}", 1))


def oracle_file(turn: Path, gpu: int) -> Path:
    """The file that an oracle has locked while it uses a GPU."""
    return turn.with_name(turn.name.replace("turn", f"oracle{gpu}", 1))


def take(file: Path, held: contextlib.ExitStack) -> bool:
    """Try to lock a file; return whether this process has the lock. ``held`` gives it back.

    On a file system without locks, every process has it.
    """
    opened = held.enter_context(file.open("a"))
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        opened.close()
        return False
    except OSError:
        return True
    # Unlock explicitly: after a mere close, a forked process (a loader's worker) keeps the lock.
    held.callback(fcntl.flock, opened, fcntl.LOCK_UN)
    return True


def is_taken(file: Path) -> bool:
    """Whether another process has locked a file."""
    if not file.exists():
        return False
    with contextlib.ExitStack() as held:
        return not take(file, held)
