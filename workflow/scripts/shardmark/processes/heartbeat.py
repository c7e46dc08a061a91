"""Share each rank's progress with the launcher of its node, through shared memory.

A rank writes without a system call, so one beat per step costs a timed loop nothing. No lock guards
the memory, so a reader may see a half-written record. Therefore each rank alternates between two
records with checksums, so that one of the two is always whole. This module imports no torch.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardmark.files import replacing

FILE_VARIABLE = "SHARDMARK_HEARTBEATS"
# Process id, rank, beats, steps, monotonic time of the last beat in seconds, phase.
_FIELDS = struct.Struct("=QQQQd40s")
_CHECKSUM = struct.Struct("=I")
_RECORD_BYTES = _FIELDS.size + _CHECKSUM.size
_RANK_BYTES = 2 * _RECORD_BYTES
# Try this often: a writer that is faster than the reader can spoil both records of one reading.
_READINGS = 3


@dataclass(frozen=True)
class Beat:
    """The last beat (sign of life) of one rank.

    Attributes:
        pid: its process id; 0 before its first beat, which comes after the imports.
        rank: its number among the ranks of all nodes.
        beats: beats so far; ranks that have done the same work have the same number.
        steps: optimizer steps it has begun.
        phase: the phase it is in.
        silent_s: seconds since its last beat.
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
    """The rank's side: counts up as the rank makes progress. Does nothing without a launcher."""

    def __init__(self) -> None:
        self._beats, self._steps, self._phase = 0, 0, b"imports"
        self._rank = int(os.environ.get("RANK", "0"))
        self._memory: mmap.mmap | None = None
        self._offset = int(os.environ.get("LOCAL_RANK", "0")) * _RANK_BYTES
        if name := os.environ.get(FILE_VARIABLE):
            with Path(name).open("r+b") as file:
                self._memory = mmap.mmap(file.fileno(), 0)

    def phase(self, name: str) -> None:
        """Record that the rank begins a phase."""
        self._phase = name.encode()
        self._write()

    def step(self) -> None:
        """Record that the rank begins an optimizer step."""
        self._steps += 1
        self._write()

    def alive(self) -> None:
        """Record progress within a step, or in a phase without steps."""
        self._write()

    def _write(self) -> None:
        if self._memory is not None:
            self._beats += 1
            begin = self._offset + self._beats % 2 * _RECORD_BYTES
            progress = (self._beats, self._steps, time.monotonic(), self._phase)
            record = _record(os.getpid(), self._rank, *progress)
            self._memory[begin : begin + _RECORD_BYTES] = record


class Heartbeats:
    """The launcher's side: reads the beats of the ranks of one node.

    Args:
        path: a file on this node, which this makes.
        ranks: how many ranks the node has.
    """

    def __init__(self, path: Path, ranks: int) -> None:
        self.path = path
        self._begin_s = time.monotonic()
        begin = _record(0, 0, 0, 0, self._begin_s, b"imports")
        with replacing(path) as partial:
            partial.write_bytes(2 * begin * ranks)
        with path.open("rb") as file:
            self._memory = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        # The last whole record of each rank, as its fields.
        self._last = [_FIELDS.unpack(begin[: _FIELDS.size])] * ranks

    def read(self) -> list[Beat]:
        """Return the last beat of each rank, by local rank.

        If both records of a rank are broken in every reading, this returns its previous beat.
        """
        for _ in range(_READINGS):
            memory, now = self._memory[:], time.monotonic()
            newest = [
                self._newest(memory[begin : begin + _RANK_BYTES], now)
                for begin in range(0, len(memory), _RANK_BYTES)
            ]
            self._last = [new or old for new, old in zip(newest, self._last, strict=True)]
            if all(newest):
                break
        return [
            Beat(pid, rank, beats, steps, phase.rstrip(b"\0").decode(), max(0.0, now - then))
            for pid, rank, beats, steps, then, phase in self._last
        ]

    def _newest(self, records: bytes, now: float) -> tuple[Any, ...] | None:
        """Return the fields of a rank's newer whole record; None if neither is whole.

        A record with a time before the launch or in the future cannot be real: it counts as broken.
        """
        whole = []
        for begin in (0, _RECORD_BYTES):
            fields = records[begin : begin + _FIELDS.size]
            (checksum,) = _CHECKSUM.unpack_from(records, begin + _FIELDS.size)
            record = _FIELDS.unpack(fields)
            if zlib.crc32(fields) == checksum and self._begin_s <= record[4] <= now:
                whole.append(record)
        return max(whole, key=lambda record: record[2], default=None)


def _record(*fields: Any) -> bytes:
    packed = _FIELDS.pack(*fields)
    return packed + _CHECKSUM.pack(zlib.crc32(packed))
