"""How jobs are submitted to Slurm, with stand-ins for the executor and for Slurm's commands."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from parity_cases import case_of
from shardmark.errors import UserError
from shardmark.slurm import queue, submission
from shardmark.slurm.allocation import Allocation, step_command
from shardmark.slurm.executor import leave_lost_nodes_to_slurm
from shardmark.slurm.submission import Submission, is_temporary

LIMIT = "AssocMaxSubmitJobLimit"


def test_a_limit_is_said_once_and_again_only_after_a_job_was_accepted_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refusals: Iterator[str] = iter([LIMIT, LIMIT, "", LIMIT, "", "", LIMIT, ""])
    warnings: list[str] = []

    def run_job(job: object) -> None:
        if refusal := next(refusals):
            executor._report_job_error_threadsafe(job, refusal)

    executor = SimpleNamespace(
        run_job=run_job,
        cancel=None,
        shutdown=None,
        logger=SimpleNamespace(warning=warnings.append),
    )
    monkeypatch.setattr(submission, "WAIT_S", 0)
    Submission.attach(executor, SimpleNamespace(_user_kill=None), None)
    for total in (1, 1, 1, 2):
        executor.run_job("any")
        assert len(warnings) == total


def test_ctrl_c_cancels_a_job_that_sbatch_is_accepting_and_those_of_a_status_check(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order: list[object] = []
    accepting = threading.Event()

    def run_job(_: object) -> None:
        accepting.set()
        time.sleep(0.2)
        order.append("accepted")

    executor = SimpleNamespace(
        run_job=run_job,
        # The executor's own gives its list of jobs, which is empty during a status check.
        cancel=lambda: executor.cancel_jobs([]),
        shutdown=None,
        run_uuid="shardmark_7",
        _submitted_job_clusters=set(),
        _job_submission_executor=ThreadPoolExecutor(1),
    )
    monkeypatch.setattr(queue, "ask", lambda *command: order.append(command))
    Submission.attach(executor, SimpleNamespace(_user_kill=None), None)
    executor._job_submission_executor.submit(executor.run_job, "any")
    accepting.wait()
    executor.cancel()
    assert order == ["accepted", ("scancel", "--name=shardmark_7")]


def test_a_squeue_that_does_not_answer_in_time_may_answer_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(queue, "ASK_S", 0.1)
    with pytest.raises(UserError) as slow:
        queue.ask(sys.executable, "-c", "import time; time.sleep(9)")
    assert is_temporary(str(slow.value).replace(sys.executable, "squeue", 1))
    with pytest.raises(UserError) as missing:
        queue.ask("squeue-that-is-not-installed")
    assert not is_temporary(str(missing.value))


POLICY = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"


@pytest.mark.parametrize(
    ("words", "passes"),
    [
        (f"QOSMaxSubmitJobPerUserLimit; Batch job submission failed: {POLICY}", True),
        (f"AssocGrpSubmitJobsLimit; Batch job submission failed: {POLICY}", True),
        (f"QOSMaxWallDurationPerJobLimit; Batch job submission failed: {POLICY}", False),
        ("Unable to contact slurm controller (connect failure)", True),
        ("Socket timed out on send/recv operation", True),
        ("Zero Bytes were transmitted or received", True),
        ("Slurm backup controller in standby mode", True),
        ("Connection refused", True),
        ("Resource temporarily unavailable", True),
        ("Slurm temporarily unable to accept job, sleeping and retrying", True),
        ("Unable to create job record, try again", True),
        ("Unable to test the validity of the given account 'lab'", True),
        ("Required partition not available (inactive or drain)", True),
        ("Requested partition configuration not available now", True),
        # A pinned block's node was taken out of slurm.conf.
        ("Invalid node name specified", True),
        ("Requested node configuration is not available", False),
        ("Invalid account or account/partition combination specified", False),
        ("Invalid partition name specified", False),
        ("Requested time limit is invalid (missing or exceeds some limit)", False),
    ],
)
def test_refusals_that_may_pass_are_told_from_those_that_cannot(words: str, passes: bool) -> None:
    assert is_temporary(words) == passes


def test_the_gate_goes_before_cells_and_searches_which_keep_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = {"7": "find_largest_batch", "8": "train", "9": "check_parity"}
    priorities = {"7": 30, "8": 20, "9": 10}
    comments = {job: queue.comment_of(rule, ["t", "small"]) for job, rule in rules.items()}
    changes = []

    def ask(*command: str) -> str:
        if command[0] == "squeue":
            rows = ((job, priorities[job], 0, comments[job], tmp_path) for job in rules)
            return "".join("|".join(map(str, row)) + "\n" for row in rows)
        changes.append(command)
        return ""

    monkeypatch.setattr(queue, "ask", ask)
    queue.let_gate_pass(tmp_path, comments.values())
    assert changes == [("scontrol", "update", "jobid=7,8", "nice=21")]


def test_a_lost_node_of_a_pinned_block_is_not_excluded() -> None:
    settings = SimpleNamespace(requeue=False)
    workflow = SimpleNamespace(executor_settings=settings)
    executor = SimpleNamespace(_failed_nodes={"n7"}, workflow=workflow)
    leave_lost_nodes_to_slurm(executor)
    executor._failed_nodes.add("n1")
    assert executor._failed_nodes == {"n7"}, "what the user excludes"


@pytest.mark.parametrize(("granted", "asked"), [(4, ["--gres=gpu:2"]), (0, [])])
def test_srun_asks_for_the_gpus_that_its_job_was_granted(granted: int, asked: list[str]) -> None:
    cell = case_of("ddp", 4).cell.model_copy(update={"gpus_per_node": 2, "nodes": 2})
    command = step_command(cell, Allocation("7", ("n1", "n2"), 16, granted))
    assert [option for option in command if "gpu" in option] == asked
