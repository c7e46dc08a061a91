"""How far each rank of a node has come, in memory that its launcher reads.

A rank writes without a system call, so a beat a step costs a timed loop nothing. Free of torch.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from dataclasses import dataclass
from pathlib import Path

FILE_VARIABLE = "SHARDMARK_HEARTBEATS"
# Process id, rank, beats, steps, monotonic time of the last beat in seconds, phase.
_RECORD = struct.Struct("=QQQQd40s")


@dataclass(frozen=True)
class Beat:
    """The last sign of life of one rank.

    Attributes:
        pid: its process; 0 before its first beat, which comes after the imports.
        rank: the rank, among those of all nodes.
        beats: signs of life so far; ranks that do the same work have given as many.
        steps: optimizer steps it has begun.
        phase: the phase it is in.
        silent_s: seconds since it last got further.
    """

    pid: int
    rank: int
    beats: int
    steps: int
    phase: str
    silent_s: float

    def __str__(self) -> str:
        who = f"rank {self.rank}" if self.pid else "a rank"
        return f"{who} in {self.phase}, {self.steps} steps, silent for {self.silent_s:.0f} s"


class Heartbeat:
    """A rank's side: counts up as the rank gets further. Does nothing without a launcher."""

    def __init__(self) -> None:
        self._beats, self._steps, self._phase = 0, 0, b"imports"
        self._rank = int(os.environ.get("RANK", "0"))
        self._memory: mmap.mmap | None = None
        self._offset = int(os.environ.get("LOCAL_RANK", "0")) * _RECORD.size
        if name := os.environ.get(FILE_VARIABLE):
            with Path(name).open("r+b") as file:
                self._memory = mmap.mmap(file.fileno(), 0)

    def phase(self, name: str) -> None:
        """The rank begins a phase."""
        self._phase = name.encode()
        self._write()

    def step(self) -> None:
        """The rank begins an optimizer step."""
        self._steps += 1
        self._write()

    def alive(self) -> None:
        """The rank gets on: within a step, or in a phase that has none."""
        self._write()

    def _write(self) -> None:
        if self._memory is not None:
            self._beats += 1
            done = (self._beats, self._steps, time.monotonic(), self._phase)
            _RECORD.pack_into(self._memory, self._offset, os.getpid(), self._rank, *done)


class Heartbeats:
    """A launcher's side: the beats of the ranks of one node.

    Args:
        path: a file on this node, to be made.
        ranks: how many ranks the node has.
    """

    def __init__(self, path: Path, ranks: int) -> None:
        self.path = path
        begin = _RECORD.pack(0, 0, 0, 0, time.monotonic(), b"imports")
        path.write_bytes(begin * ranks)
        with path.open("rb") as file:
            self._memory = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)

    def read(self) -> list[Beat]:
        """The last beat of each rank, by local rank."""
        now = time.monotonic()
        return [
            Beat(pid, rank, beats, steps, phase.rstrip(b"\0").decode(), now - then)
            for pid, rank, beats, steps, then, phase in _RECORD.iter_unpack(self._memory[:])
        ]
