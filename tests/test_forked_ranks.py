"""Ranks that are forks of one process: what a test does to them spoils no other test."""

from __future__ import annotations

import os
import signal
import time

import pytest

import forked_ranks


def work(rank: int, failing: int | None) -> None:
    if rank == failing:
        raise ValueError
    if failing is not None:
        time.sleep(600)  # as in a collective whose other rank is gone


@pytest.mark.timeout(100)
def test_ranks_that_wait_for_one_that_failed_are_ended_and_it_is_named() -> None:
    with pytest.raises(AssertionError, match=r"failed: ranks \[1\]"):
        forked_ranks.spawn(work, [1], 2)


@pytest.mark.slow
def test_a_server_that_a_test_has_killed_is_started_anew() -> None:
    forked_ranks.spawn(work, [None], 1)
    pid = forked_ranks._start_server().pid
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    forked_ranks.spawn(work, [None], 1)
