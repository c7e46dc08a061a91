"""SIGTERM and SIGHUP to the Snakemake that runs a matrix: what ends, what goes on, and the words.

Snakemake by itself waits for all that runs or is queued, for hours where Slurm's jobs wait, and
does not say so. Who sends SIGTERM seldom waits that long: Slurm kills a batch job 30 s after it
(KillWait), systemd a service after 90 s, and the lock then stays.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import threading
from collections.abc import Container
from pathlib import Path
from typing import Any

import psutil

from shardmark.errors import UserError
from shardmark.matrix.controller import FOLDER
from shardmark.slurm import queue

SIGNALS = (signal.SIGTERM, signal.SIGHUP)
# For a cell to end all its processes; a rank that hangs in a collective takes the longest.
LOCAL_END_S = 20.0
# For sbatch to have submitted the job that it is at.
SUBMIT_S = 10.0


class Termination:
    """Ends this Snakemake after SIGTERM or SIGHUP, so that its command can be given again.

    Cells on this machine end without a result. Jobs that Slurm has go on, and the next Snakemake
    waits for them.

    Args:
        workflow: Snakemake's.
        results: ``results/<run>``.
        comments: of the matrix's jobs on Slurm; None where cells run on this machine.
    """

    def __init__(self, workflow: Any, results: Path, comments: Container[str] | None) -> None:
        self.workflow = workflow
        self.results = results
        self.comments = comments
        self._begun = False

    def attach(self) -> None:
        """Take the signals; not one that is ignored, as nohup does with SIGHUP."""
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _: Any) -> None:
        if not self._begun:
            self._begun = True
            # In a thread: the signal may come while the scheduler holds the locks needed here.
            threading.Thread(target=self._end, args=[signal.Signals(number).name]).start()

    def _end(self, name: str) -> None:
        scheduler = self.workflow.scheduler
        scheduler._user_kill = "graceful"  # nothing more is started
        if self.comments is None:
            say(
                f"{name}: cells that run on this machine are ended, without a result, and no more "
                "are started. The same command runs them again"
            )
            end_children(LOCAL_END_S)
            # Snakemake sees the jobs fail, and ends once none is left.
            scheduler._open_jobs.release()
            return
        say(f"{name}: this Snakemake ends. {self._jobs_that_stay()}")
        end_children(SUBMIT_S, spare="sbatch")
        # Snakemake's own end would wait up to 180 s for its next look at the jobs.
        self.workflow.persistence.unlock()
        shutil.rmtree(self.results / FOLDER, ignore_errors=True)
        os._exit(1)

    def _jobs_that_stay(self) -> str:
        assert self.comments is not None
        again = "The same command waits for them and starts none of them again"
        try:
            jobs = [job.job_id for job in queue.jobs_of(Path(), self.comments)]
        except UserError as error:
            return f"Its jobs go on, if there are any ({error}). {again}"
        if not jobs:
            return "None of its jobs is queued or running. The same command goes on with the others"
        return (
            f"{len(jobs)} job(s) stay queued or running. {again}. To end them too: "
            f"scancel {' '.join(jobs)}"
        )


def say(line: str) -> None:
    """Print a line to a terminal that may be gone, below a bar that may be there."""
    with contextlib.suppress(OSError):
        print(f"\n{line}" if sys.stderr.isatty() else line, file=sys.stderr, flush=True)


def end_children(patience_s: float, spare: str | None = None) -> None:
    """End the processes below this one; one of the name to spare may end by itself."""
    below = psutil.Process().children(recursive=True)
    for process in below:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.name() != spare:
                process.terminate()
    _, living = psutil.wait_procs(below, timeout=patience_s)
    for process in living:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
