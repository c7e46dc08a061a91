"""Patch how Snakemake's Slurm executor submits and cancels jobs.

The parity gate's jobs go first. If sbatch refuses a job for a reason that may be temporary, this
waits and tries again. Any other refusal stops the matrix, since the other cells would be refused
too. Ctrl-C cancels every job of the run.

This patches private parts of snakemake-executor-plugin-slurm 2.8.0, which reports a refused
submission as a failed job, and without sbatch's reason. On Ctrl-C it cancels the jobs of a list.
During a status check that list is empty, and it never has the job that sbatch is just accepting.
Delete this module when a later version has none of these faults:
tests/slurm/test_slurm_submission.py then passes without it.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Container
from pathlib import Path
from typing import Any

from shardmark.errors import UserError
from shardmark.slurm import queue

# Seconds between two attempts to submit a job that was refused.
WAIT_S = 30.0
# sbatch's messages for a temporary refusal, as Slurm 22.05 prints them.
_MAY_PASS = re.compile(
    # The user or account has as many jobs queued as an association or a QOS allows.
    r"(Assoc|QOS)\w*SubmitJobs?\w*Limit"
    # slurmctld or slurmdbd is restarting, overloaded or unreachable.
    r"|Unable to contact slurm controller|Socket timed out|Zero Bytes were transmitted"
    r"|standby mode|Connection (refused|timed out|reset)|Resource temporarily unavailable"
    r"|temporarily unable to accept job|Unable to create job record, try again"
    r"|Unable to test the validity of the given"
    # wait_for_orphans asks squeue, which did not answer in time.
    r"|squeue cannot be asked \(.*timed out"
    # A partition or a node was taken out of service.
    r"|Required partition not available|Requested partition configuration not available now"
    r"|Invalid node name specified"
)
_SBATCH = re.compile(r"The error message was '(.*?)'\.\n    sbatch call", re.DOTALL)


def sbatch_message(message: str) -> str:
    """Extract sbatch's message, as one line, from the executor's report of a failed submission."""
    match = _SBATCH.search(message)
    words = match[1] if match else message.removeprefix("Job submission failed with exception: ")
    lines = [line.removeprefix("sbatch: error: ").strip() for line in words.splitlines()]
    return "; ".join(filter(None, lines)).replace(":; ", ": ")


def is_temporary(words: str) -> bool:
    """Whether the same submission may be accepted later."""
    return bool(_MAY_PASS.search(words))


class Submission:
    """Submits the jobs of an executor, one after the other, in the executor's own thread.

    Args:
        executor: Snakemake's executor for Slurm.
        scheduler: Snakemake's scheduler.
        gate_first: the comments of the matrix's jobs if this run checks parity cases; else None.
    """

    def __init__(self, executor: Any, scheduler: Any, gate_first: Container[str] | None) -> None:
        self.executor = executor
        self.scheduler = scheduler
        self.gate_first = gate_first
        self._run_job = executor.run_job
        self._refusal = ""
        self._last_said = ""
        self._ended = threading.Event()

    @classmethod
    def attach(cls, executor: Any, scheduler: Any, gate_first: Container[str] | None) -> None:
        """Replace the executor's own method to submit a job."""
        self = cls(executor, scheduler, gate_first)
        executor.run_job = self.submit
        executor._report_job_error_threadsafe = self._note
        executor.cancel_jobs = self._cancel_jobs
        # Both wait for pending submissions, and once either is called, nothing may be submitted.
        for name in ("cancel", "shutdown"):
            setattr(executor, name, self._ending(getattr(executor, name)))

    def submit(self, job: Any) -> None:
        """Submit a job; try again while Slurm refuses it for a temporary reason."""
        waited = False
        while not self._stopped:
            self._refusal = ""
            self._run_job(job)
            if not self._refusal:
                if not waited:
                    # The limit is no longer reached; if it is reached again, say so.
                    self._last_said = ""
                if self.gate_first is not None:
                    self._let_the_gate_pass(self.gate_first)
                return
            if not is_temporary(self._refusal):
                self._stop(job)
            elif self._refusal != self._last_said:
                self._last_said = self._refusal
                self.executor.logger.warning(
                    f"Slurm accepts no job at the moment ({self._refusal}). The jobs that are left "
                    "wait here, and are submitted as soon as it does"
                )
            self._ended.wait(0 if self._stopped else WAIT_S)
            waited = True
        job.log_error("not submitted", submitted=False)
        self.scheduler.error_callback(job)

    @property
    def _stopped(self) -> bool:
        """Whether to submit no more: after Ctrl-C, SIGTERM, on_failure: stop or a refusal."""
        return self._ended.is_set() or bool(self.scheduler._user_kill)

    def _note(self, _: Any, msg: str) -> None:
        self._refusal = sbatch_message(msg)

    def _stop(self, job: Any) -> None:
        submitted = "Jobs already submitted go on. " if self.executor.active_jobs else ""
        self.executor.logger.error(
            f"Slurm refuses the job for {job.output[0]}: {self._refusal}\nNo more jobs are "
            f"submitted. {submitted}Change what it names, and give the same command again"
        )
        # As in StopAtFailure.
        self.scheduler._user_kill = "graceful"

    def _ending(self, end: Any) -> Any:
        def end_submissions() -> None:
            self._ended.set()
            end()

        return end_submissions

    def _cancel_jobs(self, _: Any) -> None:
        """Cancel all jobs of this run; its id is their name."""
        # A job that sbatch is accepting now must be in the queue before it can be cancelled.
        self.executor._job_submission_executor.shutdown(wait=True)
        clusters = ["--clusters=all"] if self.executor._submitted_job_clusters else []
        command = ("scancel", f"--name={self.executor.run_uuid}", *clusters)
        try:
            queue.ask(*command)
        except UserError as error:
            self.executor.logger.error(
                f"Jobs of this run may go on: {error}\nTo end them: {' '.join(command)}"
            )

    def _let_the_gate_pass(self, comments: Container[str]) -> None:
        try:
            queue.let_gate_pass(Path(), comments)
        except UserError as error:
            self.executor.logger.warning(f"Parity cases may wait behind cells: {error}")
