"""The matrix as it runs: cells done, running and failed, and the time left.

A live bar in a terminal, one plain line a finished cell where there is none. It listens to
Snakemake's own log records and takes the place of its console messages while cells run; Snakemake's
log file keeps them all.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from shardmark.cells import Cell
from shardmark.errors import UserError
from shardmark.metrics import read_metrics

REFRESH_S = 1.0
BAR_WIDTH = 24
LOG_TAIL_LINES = 5
TRAIN = "train"
USUAL_WIDTH = 80
# Above what the job's own Snakemake says of it at length.
_SLURM_ERROR = re.compile(r"(srun|sbatch|slurmstepd\S*): (error|fatal):")

# Workload, strategy, GPU count and seed.
Place = tuple[str, str, int, int]


class Progress(logging.Handler):
    """Shows the progress of a matrix from the records of Snakemake's logger.

    Args:
        planned: the cells that this run trains; with none there is no bar, and failed jobs of
            other rules are still told.
        stream: where to write.
    """

    def __init__(self, planned: Iterable[Cell], stream: TextIO = sys.stderr) -> None:
        super().__init__(logging.INFO)
        self.planned = {place_of(cell): cell for cell in planned}
        self.cells = len(self.planned)
        self.stream = stream
        self.live = stream.isatty() and self.cells > 0
        self.begin = time.monotonic()
        self.ended: dict[Place, str] = {}
        self.running: dict[int, Cell] = {}
        self.others: dict[int, str] = {}
        # Not _closed, which is logging's own.
        self._over = threading.Event()
        if self.live:
            threading.Thread(target=self._keep_drawing, daemon=True).start()

    @classmethod
    def attach(cls, logger: logging.Logger, planned: Iterable[Cell]) -> Progress:
        """Take the place of the console handler's messages, warnings and errors left alone."""
        progress = cls(planned)
        for handler in logger.handlers:
            if handler.name == "DefaultStreamHandler":
                handler.addFilter(needs_the_console)
        # First in line, so that the bar is cleared before anything else is written.
        logger.handlers.insert(0, progress)
        return progress

    def emit(self, record: logging.LogRecord) -> None:
        """Follow one record of Snakemake's logger."""
        try:
            event = str(getattr(record, "event", None) or "")
            if event == "job_info":
                self._started(record.__dict__)
            elif event == "job_finished":
                self._finished(record.__dict__["job_id"])
            elif event == "job_error":
                self._failed(record.__dict__)
            if self.live and needs_the_console(record):
                self._clear()
        except Exception:  # the display must not end the matrix
            self.handleError(record)

    def close(self) -> None:
        """Leave the last state on a line of its own."""
        with self.lock or threading.RLock():
            if not self._over.is_set():
                self._over.set()
                if self.cells:
                    self._say(self.state())
        super().close()

    def _started(self, job: dict[str, Any]) -> None:
        if job["rule_name"] == TRAIN:
            at = job["wildcards"]
            place = (at["workload"], at["strategy"], int(at["gpus"]), int(at["seed"]))
            self.running[job["jobid"]] = self.planned[place]
            self.ended.pop(place, None)  # a retry of a cell that failed
        else:
            self.others[job["jobid"]] = job["rule_name"]

    def _finished(self, jobid: int) -> None:
        self.others.pop(jobid, None)
        if jobid in self.running:
            cell = self.running.pop(jobid)
            status, figure = outcome(cell.folder / "metrics.json")
            self.ended[place_of(cell)] = status
            self._say(f"{self.count()} {cell.title}: {status}{figure}")

    def _failed(self, job: dict[str, Any]) -> None:
        self.others.pop(job["jobid"], None)
        title = str(job["rule_name"])
        cell = self.running.pop(job["jobid"], None)
        if cell is not None:
            self.ended[place_of(cell)] = "no result"
            title = f"{self.count()} {cell.title}"
        logs = [Path(log) for log in job["log"]]
        self._say(f"{title}: no result; see {', '.join(map(str, logs)) or 'the messages'}")
        for log in logs:
            if log.is_file():
                for line in telling_lines(log.read_text(errors="replace")):
                    self._say(f"    {line}")

    @property
    def done(self) -> int:
        """Cells that have ended, however."""
        return len(self.ended)

    def count(self) -> str:
        """Cells ended of all that this run trains."""
        return f"[{self.done:>{len(str(self.cells))}}/{self.cells}]"

    def left_s(self) -> float | None:
        """Seconds left at the pace of the cells so far; None before the first has ended."""
        if not self.done:
            return None
        return (time.monotonic() - self.begin) / self.done * (self.cells - self.done)

    def state(self) -> str:
        """The whole matrix in one line."""
        outcomes = Counter(self.ended.values()).most_common()
        counts = ", ".join(f"{number} {status}" for status, number in outcomes)
        parts = [f"cells {self.count()}", counts or "none ended yet"]
        if self.running:
            first = next(iter(self.running.values())).title
            more = f" and {len(self.running) - 1} more" if len(self.running) > 1 else ""
            parts.append(f"running {first}{more}")
        elif self.others:
            parts.append(f"running {next(iter(self.others.values()))}")
        left = self.left_s()
        if left:
            parts.append(f"about {duration(left)} left")
        return " | ".join(parts)

    def _keep_drawing(self) -> None:
        while not self._over.wait(REFRESH_S):
            with self.lock or threading.RLock():
                if self._over.is_set():
                    return
                filled = BAR_WIDTH * self.done // max(1, self.cells)
                bar = "#" * filled + "-" * (BAR_WIDTH - filled)
                self._clear()
                # A longer line would wrap, and only its last row would be cleared.
                self.stream.write(f"{bar} {self.state()}"[: terminal_width(self.stream) - 1])
                self.stream.flush()

    def _clear(self) -> None:
        self.stream.write("\r\x1b[K")
        self.stream.flush()

    def _say(self, line: str) -> None:
        if self.live:
            self._clear()
        self.stream.write(f"{line}\n")
        self.stream.flush()


def place_of(cell: Cell) -> Place:
    """What tells a cell from the others of its matrix."""
    return cell.workload, cell.strategy, cell.gpus, cell.seed


def terminal_width(stream: TextIO) -> int:
    """Columns of the terminal that a stream writes to."""
    return os.get_terminal_size(stream.fileno()).columns or USUAL_WIDTH


def needs_the_console(record: logging.LogRecord) -> bool:
    """Whether a record of Snakemake's must reach the terminal beside the display.

    A failed job is told by the display with the path of its log; Snakemake tells it twice, each
    time with the whole definition of the cell.
    """
    if str(getattr(record, "event", "")) == "job_error":
        return False
    if getattr(record, "exception", "") == "RuleException":
        return "CalledProcessError" not in record.getMessage()
    return record.levelno >= logging.WARNING


def telling_lines(log: str) -> list[str]:
    """What of a failed job's log is shown: Slurm's errors and the launcher's, or its last lines."""
    lines = log.splitlines()
    errors = [line for line in lines if _SLURM_ERROR.match(line)]
    if not errors:
        return lines[-LOG_TAIL_LINES:]
    # srun tells of the tasks that it ended; why, the launcher says last.
    return [*errors, *(line for line in lines[-1:] if line.startswith("shardmark: "))]


def outcome(path: Path) -> tuple[str, str]:
    """A finished cell's status, and its main figure or reason as the end of a line."""
    try:
        metrics = read_metrics(path)
    except UserError as error:
        return "unreadable", f" ({error})"
    if metrics.throughput is not None:
        loss = metrics.loss.final if metrics.loss else None
        end = "" if loss is None else f", loss {loss:.4g}"
        return metrics.status, f", {metrics.throughput.images_per_s:,.0f} images/s{end}"
    if metrics.failure is not None:
        return metrics.status, f" ({metrics.failure.exception.splitlines()[0][:120]})"
    return metrics.status, ""


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
