"""What ended a cell's processes, from what they left: a result, or none."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from parity_cases import case_of
from shardmark.cells import Cell
from shardmark.errors import UserError
from shardmark.launching.endings import Interrupted, find_failure
from shardmark.launching.launch import Ended
from shardmark.launching.node import NodeReport
from shardmark.launching.rank import failure_kind
from shardmark.processes.heartbeat import Beat

CELL: Cell = case_of("ddp", 2).cell


def died(rank: int, code: int, time: float = 100.0) -> dict[str, Any]:
    return {"rank": rank, "exit_code": code, "pid": 1000 + rank, "time": time}


def raised(rank: int, kind: str = "failed", time: float = 100.0) -> dict[str, Any]:
    words = {"phase": "training", "exception": "RuntimeError: it", "message": "it"}
    return {"rank": rank, "kind": kind, "time": time, **words}


def node(*failures: dict[str, Any], **fields: Any) -> NodeReport:
    report: dict[str, Any] = {
        "index": 0,
        "name": "n1",
        "exit_code": 1,
        "ended_by": None,
        "ended_since": 100.0 if fields.get("ended_by") else None,
        "failures": list(failures),
        "beats": [],
        "oom_kills": 0,
        "gpus": {},
        "seconds": 60.0,
        "at": 160.0,
    }
    return NodeReport(**(report | fields))


def ended(*nodes: NodeReport, failures: tuple[dict[str, Any], ...] = ()) -> Ended:
    code = next((node.exit_code for node in nodes if node.exit_code), 0 if nodes else 1)
    return Ended(code, list(failures), list(nodes), ["the last line"], 61.0)


def test_processes_that_ended_well_have_no_failure() -> None:
    assert find_failure(CELL, ended(node(exit_code=0))) is None


def test_an_exception_is_told_with_its_phase_rank_and_last_lines() -> None:
    outcome = find_failure(CELL, ended(node(died(1, 1)), failures=(raised(1),)))
    assert outcome is not None
    status, failure = outcome
    assert (status, failure.phase, failure.rank) == ("failed", "training", 1)
    assert failure.exception == "RuntimeError: it"
    assert failure.log_tail == ["the last line"]


def test_a_rank_killed_from_outside_is_no_result_though_its_peers_raise() -> None:
    left = ended(node(died(0, 1), died(1, -signal.SIGKILL)), failures=(raised(0),))
    with pytest.raises(Interrupted, match="something else killed rank 1"):
        find_failure(CELL, left)


def test_a_rank_killed_for_memory_is_a_result() -> None:
    killed = node(died(1, -signal.SIGKILL), died(0, 1), oom_kills=1)
    status, failure = find_failure(CELL, ended(killed, failures=(raised(0),))) or ("", None)
    assert status == "oom"
    assert failure is not None
    assert failure.rank == 1
    assert "out-of-memory killer" in failure.exception


def test_a_peer_that_torchrun_had_to_kill_is_not_the_cause() -> None:
    late = died(0, -signal.SIGKILL, time=131.0)
    outcome = find_failure(CELL, ended(node(died(1, 1), late), failures=(raised(1),)))
    assert outcome is not None
    assert (outcome[0], outcome[1].rank) == ("failed", 1)


def test_a_crash_of_one_rank_comes_before_the_errors_of_its_peers() -> None:
    crash = node(died(0, 1), died(1, -signal.SIGSEGV))
    outcome = find_failure(CELL, ended(crash, failures=(raised(0),)))
    assert outcome is not None
    assert (outcome[0], outcome[1].rank) == ("failed", 1)
    assert "SIGSEGV" in outcome[1].exception


def test_an_abort_after_an_exception_is_not_the_cause() -> None:
    """NCCL's own watchdog aborts the peers of a rank that raised."""
    outcome = find_failure(
        CELL, ended(node(died(1, 1), died(0, -signal.SIGABRT)), failures=(raised(1),))
    )
    assert outcome is not None
    assert outcome[1].rank == 1


def test_a_library_that_ends_the_process_is_a_failure() -> None:
    outcome = find_failure(CELL, ended(node(died(0, 3), died(1, -signal.SIGTERM))))
    assert outcome is not None
    assert outcome[1].exception == "the process ended with exit code 3 and left no exception"


def test_the_signal_that_srun_passes_on_to_the_other_node_is_not_the_cause() -> None:
    signalled = node(died(0, -signal.SIGTERM, time=102.0), ended_by="signal", ended_since=101.0)
    crashed = node(died(3, -signal.SIGSEGV), index=1, name="n2")
    outcome = find_failure(CELL, ended(signalled, crashed))
    assert outcome is not None
    assert (outcome[0], outcome[1].rank) == ("failed", 3)
    killed = node(died(3, -signal.SIGKILL), index=1, name="n2")
    with pytest.raises(Interrupted, match="something else killed rank 3"):
        find_failure(CELL, ended(signalled, killed))
    hung = node(died(3, -signal.SIGTERM, time=100.5), index=1, name="n2", ended_by="stall")
    outcome = find_failure(CELL, ended(signalled, hung))
    assert outcome is not None
    assert outcome[1].exception.startswith("hung")


def test_what_dies_after_a_cancellation_is_no_cause_of_it() -> None:
    signalled = node(ended_by="signal", ended_since=101.0)
    for death in (died(3, -signal.SIGTERM, time=100.9), died(3, 1, time=101.4)):
        other = node(death, index=1, name="n2")
        with pytest.raises(Interrupted, match="was asked to end"):
            find_failure(CELL, ended(signalled, other, failures=(raised(3, time=101.3),)))


@pytest.mark.parametrize("cause", ["signal", "orphaned"])
def test_a_cell_that_was_asked_to_end_is_no_result(cause: str) -> None:
    left = ended(node(died(0, 1), ended_by=cause), failures=(raised(0),))
    with pytest.raises(Interrupted, match="This is no result"):
        find_failure(CELL, left)


@pytest.mark.parametrize("name", ["SIGINT", "SIGQUIT", "SIGXCPU", "SIGUSR2"])
def test_a_signal_from_outside_during_the_imports_is_no_result(name: str) -> None:
    """Before a rank can leave a trace of it; torchrun ends the other one."""
    code = -signal.Signals[name]
    with pytest.raises(Interrupted, match=rf"something else ended rank 1 .{name}: .*no result"):
        find_failure(CELL, ended(node(died(1, code), died(0, -signal.SIGTERM))))


def test_a_process_that_was_stopped_is_no_hang() -> None:
    hung = node(died(1, -signal.SIGTERM), ended_by="stall", stopped=["rank 1"])
    with pytest.raises(Interrupted, match=r"hung, and rank 1 had been stopped .SIGSTOP"):
        find_failure(CELL, ended(node(), hung))


def test_a_node_that_left_no_report_is_no_result() -> None:
    with pytest.raises(Interrupted, match="a node that was lost"):
        find_failure(CELL, ended())


def test_ranks_that_only_were_ended_are_no_result() -> None:
    with pytest.raises(Interrupted):
        find_failure(CELL, ended(node(died(0, -signal.SIGTERM), died(1, -signal.SIGTERM))))


def test_a_full_disk_is_no_result() -> None:
    with pytest.raises(Interrupted, match="make room"):
        find_failure(CELL, ended(node(died(0, 1)), failures=(raised(0, "full_disk"),)))


def test_a_users_mistake_is_told_as_one() -> None:
    with pytest.raises(UserError, match=r"^it$"):
        find_failure(CELL, ended(node(died(0, 1)), failures=(raised(0, "user"),)))


def test_a_hang_names_the_rank_that_is_behind() -> None:
    one = node(ended_by="stall", beats=[Beat(10, 0, 17, 6, "training", 61.0)])
    other = node(index=1, name="n2", ended_by="stall", beats=[Beat(11, 1, 15, 5, "training", 61.2)])
    status, failure = find_failure(CELL, ended(one, other)) or ("", None)
    assert status == "failed"
    assert failure is not None
    assert (failure.rank, failure.phase) == (1, "training")
    assert "rank 1 in training, 5 steps, silent for 61 s" in failure.exception


def test_what_ranks_raise_when_their_hung_peers_are_ended_is_not_the_cause() -> None:
    beats = [Beat(10, 0, 17, 6, "training", 60.0)]
    waits = node(died(0, 1, time=101.5), beats=beats)
    hangs = node(index=1, ended_by="stall", beats=[Beat(11, 1, 15, 5, "training", 61.2)])
    outcome = find_failure(CELL, ended(waits, hangs, failures=(raised(0, time=101.0),)))
    assert outcome is not None
    assert outcome[1].rank == 1
    assert outcome[1].exception.startswith("hung: no rank got further; rank 1 in training")


def test_a_rank_that_raised_long_before_its_waiting_peers_were_ended_is_the_cause() -> None:
    waits = node(ended_by="stall", beats=[Beat(10, 0, 17, 6, "training", 61.0)])
    left = node(died(1, 1, time=40.5), index=1)
    outcome = find_failure(CELL, ended(waits, left, failures=(raised(1, time=40.0),)))
    assert outcome is not None
    assert (outcome[1].rank, outcome[1].exception) == (1, "RuntimeError: it")


def test_a_hang_of_ranks_that_are_level_accuses_none() -> None:
    beats = [Beat(10, 0, 15, 5, "training", 61.0), Beat(11, 1, 15, 5, "training", 61.2)]
    _, failure = find_failure(CELL, ended(node(ended_by="stall", beats=beats))) or ("", None)
    assert failure is not None
    assert failure.rank is None


def test_a_cell_out_of_time_says_how_far_it_came() -> None:
    late = node(ended_by="time limit", beats=[Beat(10, 0, 1500, 500, "measurement", 0.1)])
    status, failure = find_failure(CELL, ended(late)) or ("", None)
    assert status == "timeout"
    assert failure is not None
    assert failure.phase == "measurement"
    assert "after 60 s" in failure.exception


def test_a_rank_that_a_signal_ended_is_no_result_though_its_peers_raise() -> None:
    # A peer's collective breaks a moment later, and torchrun then ends what is left.
    asked = node(died(0, 1), died(1, -signal.SIGTERM), signalled={1: 100.3})
    left = ended(asked, failures=(raised(0, time=100.4),))
    with pytest.raises(Interrupted, match=r"something else ended rank 1 .SIGTERM"):
        find_failure(CELL, left)


def test_a_rank_that_torchrun_ended_is_not_the_cause() -> None:
    asked = node(died(0, 1), died(1, -signal.SIGTERM), signalled={1: 100.1})
    left = ended(asked, failures=(raised(0, time=100.0),))
    status, failure = find_failure(CELL, left) or ("", None)
    assert failure is not None
    assert (status, failure.rank) == ("failed", 0)


def test_a_rank_that_aborts_is_the_cause_and_not_the_peer_that_torchrun_ended() -> None:
    aborts = node(died(0, -signal.SIGABRT), died(1, -signal.SIGTERM), signalled={1: 100.4})
    status, failure = find_failure(CELL, ended(aborts)) or ("", None)
    assert failure is not None
    assert (status, failure.rank, failure.exception) == ("failed", 0, "the process died of SIGABRT")


def test_a_signal_that_was_ignored_ended_nobody() -> None:
    left = ended(node(died(0, 1), signalled={0: 99.0}), failures=(raised(0, "oom", time=100.0),))
    assert (find_failure(CELL, left) or ("", None))[0] == "oom"


def test_the_clocks_of_two_nodes_are_not_compared_closely() -> None:
    raises = node(died(0, 1))
    asked = node(died(1, -signal.SIGTERM), index=1, name="n2", signalled={1: 98.5})
    status, failure = find_failure(CELL, ended(raises, asked, failures=(raised(0),))) or ("", None)
    assert failure is not None
    assert (status, failure.rank) == ("failed", 0)


def test_a_fault_of_the_machine_is_no_result_and_says_what_to_do() -> None:
    with pytest.raises(Interrupted, match=r"rank 1, training.*fix that and run it again"):
        find_failure(CELL, ended(node(died(1, 1)), failures=(raised(1, kind="machine"),)))


def test_a_worker_that_the_kernel_killed_for_memory_is_a_result() -> None:
    killed = node(died(1, 1), oom_kills=1)
    worker = raised(1, kind="machine") | {
        "exception": "RuntimeError: DataLoader worker (pid 8) Killed"
    }
    outcome = find_failure(CELL, ended(killed, failures=(worker,)))
    assert outcome is not None
    assert (outcome[0], outcome[1].rank) == ("oom", 1)
    # The kernel counts for the whole machine: it may have killed somebody else's process.
    with pytest.raises(Interrupted, match="fix that"):
        find_failure(CELL, ended(killed, failures=(raised(1, kind="machine"),)))


def test_a_rank_that_ends_in_its_imports_is_no_result() -> None:
    with pytest.raises(Interrupted, match=r"rank 0 .* imported its libraries: the last line"):
        find_failure(CELL, ended(node(died(0, 1), beats=[Beat(0, 0, 0, 0, "imports", 9.0)])))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (PermissionError(13, "Permission denied", "results/x"), "machine"),
        (OSError(36, "File name too long"), "machine"),
        (OSError("AF_UNIX path too long"), "machine"),
        (OSError(28, "No space left on device"), "full_disk"),
        (ModuleNotFoundError("No module named 'deepspeed'"), "machine"),
        (ImportError("libcudart.so.13: cannot open shared object file"), "machine"),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), "machine"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "failed"),
        (RuntimeError("PTXAS: [Errno 28] No space left on device"), "full_disk"),
        (KeyError("getpwuid(): uid not found: 4711"), "machine"),
        (RuntimeError("DataLoader worker (pid 812) is killed by signal: Killed. "), "machine"),
        (
            RuntimeError("DataLoader worker (pid 8) is killed by signal: Segmentation fault"),
            "failed",
        ),
        (OSError(12, "Cannot allocate memory"), "oom"),
        (RuntimeError("DataLoader worker (pid(s) 812) exited unexpectedly"), "machine"),
        # A worker's own exception is the training's.
        (ValueError("Caught ValueError in DataLoader worker process 0."), "failed"),
        # These follow from another rank's end.
        (ConnectionResetError(104, "Connection reset by peer"), "failed"),
        (TimeoutError("timed out"), "failed"),
        (RuntimeError("shape mismatch"), "failed"),
    ],
)
def test_kinds_of_exceptions(error: Exception, kind: str) -> None:
    assert failure_kind(error) == kind
