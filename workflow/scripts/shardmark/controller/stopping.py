"""Implement ``on_failure: stop``: when the first cell fails, start no others.

On Slurm, waiting cells start by themselves, and Snakemake checks its jobs only every 40 to 180 s,
so this module checks the results in between.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

from shardmark.cells import Cell
from shardmark.controller.progress import TRAIN, place_of
from shardmark.errors import UserError
from shardmark.metrics import read_metrics
from shardmark.slurm import queue

GOOD = ("ok", "unsupported")
# Seconds between two checks of the results of cells on Slurm.
LOOK_S = 5.0


class StopAtFailure(logging.Handler):
    """Stops a matrix at its first failed cell; a handler of Snakemake's logger.

    Args:
        planned: the cells that this run trains.
        scheduler: Snakemake's scheduler.
        comments: the comments of the matrix's Slurm jobs; None if it does not run on Slurm.
    """

    def __init__(
        self, planned: Iterable[Cell], scheduler: Any, comments: Container[str] | None
    ) -> None:
        super().__init__(logging.INFO)
        self.planned = {place_of(cell): cell for cell in planned}
        self.scheduler = scheduler
        self.comments = comments
        self.jobs: dict[int, Cell] = {}
        self.since: dict[int, float] = {}
        self.stopped = False
        self._one_look = threading.Lock()
        if comments is not None:
            threading.Thread(target=self._keep_looking, daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Note which cells start and end, from one record of Snakemake's logger."""
        event = str(getattr(record, "event", None) or "")
        job = record.__dict__
        if event == "job_info" and job["rule_name"] == TRAIN:
            at = job["wildcards"]
            place = (at["workload"], at["strategy"], int(at["gpus"]), int(at["seed"]))
            self.since[job["jobid"]] = time.time()
            self.jobs[job["jobid"]] = self.planned[place]
        elif event == "job_finished" and job["job_id"] in self.jobs:
            self._look_at(self.jobs.pop(job["job_id"]))

    def _keep_looking(self) -> None:
        while not self.stopped:
            time.sleep(LOOK_S)
            for number, cell in list(self.jobs.items()):
                # The cell's earlier result stays there until the new one replaces it.
                with contextlib.suppress(OSError):
                    written = (cell.folder / "metrics.json").stat().st_mtime
                    if written > self.since[number]:
                        self._look_at(cell)

    def _look_at(self, cell: Cell) -> None:
        try:
            status = read_metrics(cell.folder / "metrics.json").status
        except UserError:
            return
        with self._one_look:
            first, self.stopped = not self.stopped, self.stopped or status not in GOOD
        if first and status not in GOOD:
            print(
                f"on_failure: stop: {cell.title} ended as {status}. No more cells are started; the "
                "same command goes on with the others",
                file=sys.stderr,
                flush=True,
            )
            # As after SIGTERM, Snakemake then starts nothing more and waits for running jobs. Its
            # SIGTERM handler cannot be called here: it takes a lock that the scheduler holds, in
            # this same thread, while it logs this cell, and would wait for ever.
            self.scheduler._user_kill = "graceful"
            if self.comments is not None:
                self._cancel_waiting(self.comments)

    def _cancel_waiting(self, comments: Container[str]) -> None:
        try:
            own = queue.jobs_of(Path(), comments)
            waiting = [job.job_id for job in own if job.state == "PENDING"]
            if waiting:
                # --state: a job that has started meanwhile goes on.
                queue.ask("scancel", "--state=PENDING", *waiting)
        except UserError as error:
            print(f"on_failure: stop: what waits is left: {error}", file=sys.stderr, flush=True)
