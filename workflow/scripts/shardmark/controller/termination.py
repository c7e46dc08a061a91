"""End the Snakemake that runs a matrix on SIGTERM or SIGHUP, and say what goes on.

Snakemake itself silently waits for everything that runs or is queued, which takes hours when jobs
wait in Slurm's queue. The sender of SIGTERM seldom waits that long: Slurm kills a batch job after
30 s (KillWait), systemd a service after 90 s. Snakemake's lock then remains.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Container
from pathlib import Path
from typing import Any

import psutil

from shardmark.controller.record import FOLDER
from shardmark.errors import UserError
from shardmark.processes.ending import is_alive
from shardmark.slurm import queue

SIGNALS = (signal.SIGTERM, signal.SIGHUP)
# Time for a cell to end all its processes; a rank that hangs in a collective takes the longest.
LOCAL_END_S = 20.0
# Time for a running sbatch to finish submitting its job.
SUBMIT_S = 10.0
POLL_S = 0.1


class Termination:
    """Ends this Snakemake after SIGTERM or SIGHUP, so that its command can be given again.

    Cells on this machine end without a result. Slurm jobs go on, and the next Snakemake waits for
    them.

    Args:
        workflow: Snakemake's workflow.
        results: ``results/<run>``.
        comments: the comments of the matrix's Slurm jobs; None if cells run on this machine.
    """

    def __init__(self, workflow: Any, results: Path, comments: Container[str] | None) -> None:
        self.workflow = workflow
        self.results = results
        self.comments = comments
        self._begun = False

    def attach(self) -> None:
        """Handle the signals, except for ignored ones (nohup ignores SIGHUP)."""
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _: Any) -> None:
        if not self._begun:
            self._begun = True
            # In a thread, as the signal may come while the scheduler holds the locks needed here.
            threading.Thread(target=self._end, args=[signal.Signals(number).name]).start()

    def _end(self, name: str) -> None:
        scheduler = self.workflow.scheduler
        scheduler._user_kill = "graceful"  # Snakemake starts nothing more
        if self.comments is None:
            say(
                f"{name}: cells that run on this machine are ended, without a result, and no more "
                "are started. The same command runs them again"
            )
            end_children(LOCAL_END_S)
            # Snakemake sees the jobs fail and ends when none is left.
            scheduler._open_jobs.release()
            return
        say(f"{name}: this Snakemake ends. {self._jobs_that_stay()}")
        end_children(SUBMIT_S, spare="sbatch")
        # Snakemake's own shutdown would wait up to 180 s for its next check of the jobs.
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
    """Print a line below the progress bar, if there is one; the terminal may be gone."""
    with contextlib.suppress(OSError):
        print(f"\n{line}" if sys.stderr.isatty() else line, file=sys.stderr, flush=True)


def end_children(patience_s: float, spare: str | None = None) -> None:
    """End this process's descendants; those named ``spare`` may end by themselves in time."""
    below = psutil.Process().children(recursive=True)
    for process in below:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.name() != spare:
                process.terminate()
    deadline = time.monotonic() + patience_s
    # Not psutil.wait_procs, which takes a child's exit code: subprocess would then report 0 to the
    # thread that started it, and Snakemake would take the ended job for a success.
    while any(map(is_alive, below)) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    for process in filter(is_alive, below):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
