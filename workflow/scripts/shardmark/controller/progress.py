"""Show the progress of a running matrix: the parity gate, the cells by outcome, the time left.

A terminal gets a live bar. Elsewhere each finished cell prints one plain line, and each parity case
prints one when it starts and one when it ends. The display follows Snakemake's log records and
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

from shardmark.cells import Cell, ParityCase, search_title
from shardmark.disk import why_no_room
from shardmark.errors import UserError
from shardmark.largest_batch import LargestBatch
from shardmark.metrics import read_metrics
from shardmark.parity_result import read_parity
from shardmark.result_files import read_record
from shardmark.results.outcome import Outcome

REFRESH_S = 1.0
BAR_WIDTH = 24
LOG_TAIL_LINES = 5
REASON_LENGTH = 120
TRAIN = "train"
CHECK_PARITY = "check_parity"
FIND_LARGEST_BATCH = "find_largest_batch"
USUAL_WIDTH = 80
# Part of Snakemake's warning when a cell fails that had no earlier result.
NOTHING_TO_RESTORE = ": no backup found."
# Slurm's error lines, which stand above the long report of the job's own Snakemake.
_SLURM_ERROR = re.compile(r"(srun|sbatch|slurmstepd\S*): (error|fatal):")

# Workload, strategy, GPU count and seed.
Place = tuple[str, str, int, int]


class Progress(logging.Handler):
    """Shows the progress of a matrix from the records of Snakemake's logger.

    Args:
        planned: the cells that this run trains.
        gate: the parity cases that this run checks. Without cells and cases there is no bar, but
            failed jobs of other rules are still reported.
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
        # Seconds in which at least one cell was running: until the clock was last read, and until
        # a cell last ended.
        self.cells_s = self.ended_s = 0.0
        self.looked = time.monotonic()
        # Parity cases, by title. A case's number is its place in the order of starting.
        self.numbers: dict[str, int] = {}
        self.checking: dict[int, str] = {}
        self.verdicts: dict[str, str] = {}
        self.others: dict[int, str] = {}
        # Searches for a largest batch: the title and the file of the result.
        self.searches: dict[int, tuple[str, Path]] = {}
        # Not named _closed, which logging uses itself.
        self._over = threading.Event()
        if self.live:
            threading.Thread(target=self._keep_drawing, daemon=True).start()

    @classmethod
    def attach(
        cls, logger: logging.Logger, planned: Iterable[Cell], gate: Iterable[ParityCase] = ()
    ) -> Progress:
        """Replace the console handler's messages, except for its warnings and errors."""
        progress = cls(planned, gate)
        for handler in logger.handlers:
            if handler.name == "DefaultStreamHandler":
                handler.addFilter(needs_the_console)
        # First in line, so that the bar is cleared before anything else is written.
        logger.handlers.insert(0, progress)
        return progress

    def emit(self, record: logging.LogRecord) -> None:
        """Update the display from one record of Snakemake's logger."""
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
        """Print the last state on a line of its own."""
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
        elif job["rule_name"] == FIND_LARGEST_BATCH:
            title = search_title(at["workload"], at["strategy"], at["gpus"])
            self.searches[job["jobid"]] = title, Path(job["output"][0])
            self.others[job["jobid"]] = title
        else:
            self.others[job["jobid"]] = job["rule_name"]

    def _finished(self, jobid: int) -> None:
        self.others.pop(jobid, None)
        if jobid in self.searches:
            title, path = self.searches.pop(jobid)
            self._say(f"{title}: {describe_batch(path)}")
        elif jobid in self.running:
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
        title = self.others.pop(job["jobid"], str(job["rule_name"]))
        self.searches.pop(job["jobid"], None)
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
                # On a full disk, the log cannot contain the error.
                if full := why_no_room(log.parent):
                    self._say(f"    {full}")
                for line in telling_lines(log.read_text(errors="replace")):
                    self._say(f"    {line}")

    @property
    def done(self) -> int:
        """Number of cells that have ended, with any outcome."""
        return len(self.ended)

    def count(self) -> str:
        """Return how many of this run's cells have ended."""
        return fraction(self.done, self.cells)

    def left_s(self) -> float | None:
        """Estimate the seconds left from the pace of the cells; None before the first has ended.

        The pace counts only time in which a cell was running, so the gate does not distort it. The
        time since a cell last ended is subtracted, since the running cells have used it already.
        """
        if not self.done:
            return None
        self._keep_time()
        left = self.ended_s / self.done * (self.cells - self.done)
        return max(0.0, left - (self.cells_s - self.ended_s))

    def state(self) -> str:
        """Return the whole run in one line: first the gate while it runs alone, then the cells."""
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
        """Whether only parity cases are running, or no cell is planned."""
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
    """Return what identifies a cell in its matrix."""
    return cell.workload, cell.strategy, cell.gpus, cell.seed


def case_title(workload: str, strategy: str, ranks: object) -> str:
    """Return what identifies a parity case in its matrix."""
    return f"{workload} {strategy} ranks{ranks}"


def fraction(ended: int, planned: int) -> str:
    """Return ``[ended/planned]``."""
    return f"[{ended:>{len(str(planned))}}/{planned}]"


def outcomes(ended: Mapping[Any, str]) -> str:
    """Return the number of each outcome, most frequent first."""
    counts = Counter(ended.values()).most_common()
    return ", ".join(f"{number} {status}" for status, number in counts)


def terminal_width(stream: TextIO) -> int:
    """Return the columns of the terminal that a stream writes to."""
    return os.get_terminal_size(stream.fileno()).columns or USUAL_WIDTH


def needs_the_console(record: logging.LogRecord) -> bool:
    """Whether one of Snakemake's log records must reach the terminal beside the display.

    Records about a failed job need not, because the display reports it with the path of its log.
    Snakemake reports it twice, each time with the cell's whole definition, and warns that there is
    no earlier result to restore.
    """
    if str(getattr(record, "event", "")) == "job_error":
        return False
    if getattr(record, "exception", "") == "RuleException":
        return "CalledProcessError" not in record.getMessage()
    if NOTHING_TO_RESTORE in record.getMessage():
        return False
    return record.levelno >= logging.WARNING


def telling_lines(log: str) -> list[str]:
    """Select lines of a failed job's log: Slurm's and the launcher's errors, or the last lines."""
    lines = log.splitlines()
    errors = [line for line in lines if _SLURM_ERROR.match(line)]
    if not errors:
        return lines[-LOG_TAIL_LINES:]
    # srun reports the tasks that it ended; the launcher's last line says why.
    return [*errors, *(line for line in lines[-1:] if line.startswith("shardmark: "))]


def outcome(path: Path) -> tuple[str, str]:
    """Return a finished cell's status, and its main figure or reason as the end of a line."""
    try:
        metrics = read_metrics(path)
    except UserError as error:
        return Outcome.REFUSED, f" ({error})"
    if metrics.throughput is not None:
        status = Outcome.DEVICE_FAULT if metrics.device_faults else metrics.status
        loss = metrics.loss.final if metrics.loss else None
        end = "" if loss is None else f", loss {loss:.4g}"
        return (
            status,
            f", {metrics.throughput.items_per_s:,.0f} {metrics.throughput.unit}/s{end}",
        )
    if metrics.failure is not None:
        return metrics.status, in_brackets(metrics.failure.exception)
    return metrics.status, ""


def verdict(path: Path) -> tuple[str, str]:
    """Return a finished parity case's verdict, and its reason as the end of a line."""
    try:
        parity = read_parity(path)
    except UserError as error:
        return "unreadable", f" ({error})"
    return parity.status, in_brackets(parity.reason) if parity.reason else ""


def describe_batch(path: Path) -> str:
    """Return the largest batch in a search's result in words, or its status."""
    try:
        largest = read_record(path, LargestBatch)
    except UserError as error:
        return f"{Outcome.REFUSED} ({error})"
    if largest.measured is None:
        return largest.batch_in_words
    speed = f"{largest.measured.items_per_s:,.0f} {largest.measured.unit}/s"
    return f"{largest.batch_in_words} per GPU, {speed}"


def in_brackets(reason: str) -> str:
    """Return the first line of a reason, shortened and in brackets; empty if there is none."""
    first = next(iter(reason.splitlines()), "")
    return f" ({first[:REASON_LENGTH]})" if first else ""


def duration(seconds: float) -> str:
    """Format seconds for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
