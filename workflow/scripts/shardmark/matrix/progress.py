"""The matrix as it runs: the parity gate, cells done, running and failed, and the time left.

A terminal has a live bar. Elsewhere each finished cell is one plain line, and each parity case is
one when it starts and one when it ends. The display listens to Snakemake's own log records and
replaces its console messages while jobs run; Snakemake's log file keeps them all.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

from shardmark.cells import Cell, ParityCase
from shardmark.disk import why_no_room
from shardmark.errors import UserError
from shardmark.metrics import read_metrics, read_parity

REFRESH_S = 1.0
BAR_WIDTH = 24
LOG_TAIL_LINES = 5
REASON_LENGTH = 120
TRAIN = "train"
CHECK_PARITY = "check_parity"
USUAL_WIDTH = 80
# Snakemake's words where a cell fails that had no result before.
NOTHING_TO_RESTORE = ": no backup found."
# Above what the job's own Snakemake says of it at length.
_SLURM_ERROR = re.compile(r"(srun|sbatch|slurmstepd\S*): (error|fatal):")

# Workload, strategy, GPU count and seed.
Place = tuple[str, str, int, int]


class Progress(logging.Handler):
    """Shows the progress of a matrix from the records of Snakemake's logger.

    Args:
        planned: the cells that this run trains.
        gate: the parity cases that this run checks. With neither there is no bar, but failed jobs
            of other rules are still reported.
        stream: where to write.
    """

    def __init__(
        self,
        planned: Iterable[Cell],
        gate: Iterable[ParityCase] = (),
        stream: TextIO = sys.stderr,
    ) -> None:
        super().__init__(logging.INFO)
        self.planned = {place_of(cell): cell for cell in planned}
        self.cells = len(self.planned)
        self.gate = {
            case_title(case.cell.workload, case.cell.strategy, case.cell.gpus): case.file
            for case in gate
        }
        self.stream = stream
        self.live = stream.isatty() and bool(self.planned or self.gate)
        self.ended: dict[Place, str] = {}
        self.running: dict[int, Cell] = {}
        # Seconds in which a cell was running: up to the last look at the clock, and up to the last
        # end of a cell.
        self.cells_s = self.ended_s = 0.0
        self.looked = time.monotonic()
        # A parity case goes by its title. Its number is its place in the order of starting.
        self.numbers: dict[str, int] = {}
        self.checking: dict[int, str] = {}
        self.verdicts: dict[str, str] = {}
        self.others: dict[int, str] = {}
        # Not _closed, which is logging's own.
        self._over = threading.Event()
        if self.live:
            threading.Thread(target=self._keep_drawing, daemon=True).start()

    @classmethod
    def attach(
        cls, logger: logging.Logger, planned: Iterable[Cell], gate: Iterable[ParityCase] = ()
    ) -> Progress:
        """Take the place of the console handler's messages, warnings and errors left alone."""
        progress = cls(planned, gate)
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
            self._keep_time()
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
                if self.planned or self.gate:
                    self._say(self.state())
        super().close()

    def _started(self, job: dict[str, Any]) -> None:
        at = job["wildcards"]
        if job["rule_name"] == TRAIN:
            place = (at["workload"], at["strategy"], int(at["gpus"]), int(at["seed"]))
            self.running[job["jobid"]] = self.planned[place]
            self.ended.pop(place, None)  # a retry of a cell that failed
        elif job["rule_name"] == CHECK_PARITY:
            case = case_title(at["workload"], at["strategy"], at["ranks"])
            self.checking[job["jobid"]] = case
            self.numbers.setdefault(case, len(self.numbers) + 1)
            self.verdicts.pop(case, None)
            if not self.live:
                self._say(f"{self._numbered(case)}: started")
        else:
            self.others[job["jobid"]] = job["rule_name"]

    def _finished(self, jobid: int) -> None:
        self.others.pop(jobid, None)
        if jobid in self.running:
            cell = self.running.pop(jobid)
            status, figure = outcome(cell.folder / "metrics.json")
            self.ended[place_of(cell)] = status
            self.ended_s = self.cells_s
            self._say(f"{self.count()} {cell.title}: {status}{figure}")
        elif jobid in self.checking:
            case = self.checking.pop(jobid)
            self.verdicts[case], reason = verdict(self.gate[case])
            self._say(f"{self._numbered(case)}: {self.verdicts[case]}{reason}")

    def _failed(self, job: dict[str, Any]) -> None:
        self.others.pop(job["jobid"], None)
        title = str(job["rule_name"])
        cell = self.running.pop(job["jobid"], None)
        case = self.checking.pop(job["jobid"], None)
        if not (job.get("aux") or {}).get("submitted", True):
            return  # slurm/submission.py says why
        if cell is not None:
            self.ended[place_of(cell)] = "no result"
            self.ended_s = self.cells_s
            title = f"{self.count()} {cell.title}"
        elif case is not None:
            self.verdicts[case] = "no result"
            title = self._numbered(case)
        logs = [Path(log) for log in job["log"]]
        self._say(f"{title}: no result; see {', '.join(map(str, logs)) or 'the messages'}")
        for log in logs:
            if log.is_file():
                # A full disk takes no log that says so.
                if full := why_no_room(log.parent):
                    self._say(f"    {full}")
                for line in telling_lines(log.read_text(errors="replace")):
                    self._say(f"    {line}")

    @property
    def done(self) -> int:
        """Cells that have ended, however."""
        return len(self.ended)

    def count(self) -> str:
        """Cells ended of all that this run trains."""
        return fraction(self.done, self.cells)

    def left_s(self) -> float | None:
        """Seconds left at the pace of the cells so far; None before the first has ended.

        The pace counts only time in which a cell was running: the gate's time is no cell's time.
        What has passed since the last cell ended is time that those now running have behind them.
        """
        if not self.done:
            return None
        self._keep_time()
        left = self.ended_s / self.done * (self.cells - self.done)
        return max(0.0, left - (self.cells_s - self.ended_s))

    def state(self) -> str:
        """The whole run in one line: the gate first while it runs alone, then the cells."""
        titles = [cell.title for cell in self.running.values()]
        titles = titles or list(self.checking.values()) or list(self.others.values())[:1]
        more = f" and {len(titles) - 1} more" if len(titles) > 1 else ""
        running = f"running {titles[0]}{more}" if titles else ""
        cells = []
        if self.cells:
            cells = [f"cells {self.count()}", outcomes(self.ended) or "none ended yet"]
        gate = f"parity {fraction(len(self.verdicts), len(self.gate))}"
        seconds = self.left_s()
        left = f"about {duration(seconds)} left" if seconds else ""
        if self._gate_alone:
            parts = [gate, running, outcomes(self.verdicts), *cells, left]
        else:
            parts = [*cells, running, left, gate if self.checking else ""]
        return " | ".join(filter(None, parts))

    @property
    def _gate_alone(self) -> bool:
        """Whether parity cases run and no cell does, or no cell is planned."""
        return not self.cells or bool(self.checking and not self.running)

    def _numbered(self, case: str) -> str:
        return f"parity case {self.numbers[case]} of {len(self.gate)}, {case}"

    def _keep_time(self) -> None:
        now = time.monotonic()
        if self.running:
            self.cells_s += now - self.looked
        self.looked = now

    def _keep_drawing(self) -> None:
        while not self._over.wait(REFRESH_S):
            with self.lock or threading.RLock():
                if self._over.is_set():
                    return
                ended, planned = self.done, self.cells
                if self._gate_alone:
                    ended, planned = len(self.verdicts), len(self.gate)
                filled = BAR_WIDTH * ended // planned
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


def case_title(workload: str, strategy: str, ranks: object) -> str:
    """What tells a parity case from the others of its matrix."""
    return f"{workload} {strategy} ranks{ranks}"


def fraction(ended: int, planned: int) -> str:
    """How many ended of how many."""
    return f"[{ended:>{len(str(planned))}}/{planned}]"


def outcomes(ended: Mapping[Any, str]) -> str:
    """How often each outcome occurs, the most frequent first."""
    counts = Counter(ended.values()).most_common()
    return ", ".join(f"{number} {status}" for status, number in counts)


def terminal_width(stream: TextIO) -> int:
    """Columns of the terminal that a stream writes to."""
    return os.get_terminal_size(stream.fileno()).columns or USUAL_WIDTH


def needs_the_console(record: logging.LogRecord) -> bool:
    """Whether a record of Snakemake's must reach the terminal beside the display.

    The display reports a failed job with the path of its log. Snakemake reports it twice, each time
    with the whole definition of the cell, and warns that there is no earlier result to restore.
    """
    if str(getattr(record, "event", "")) == "job_error":
        return False
    if getattr(record, "exception", "") == "RuleException":
        return "CalledProcessError" not in record.getMessage()
    if NOTHING_TO_RESTORE in record.getMessage():
        return False
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
        return metrics.status, in_brackets(metrics.failure.exception)
    return metrics.status, ""


def verdict(path: Path) -> tuple[str, str]:
    """A finished parity case's verdict, and its reason as the end of a line."""
    try:
        parity = read_parity(path)
    except UserError as error:
        return "unreadable", f" ({error})"
    return parity.status, in_brackets(parity.reason) if parity.reason else ""


def in_brackets(reason: str) -> str:
    """The first line of a reason, shortened, as the end of a line."""
    return f" ({reason.splitlines()[0][:REASON_LENGTH]})"


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
