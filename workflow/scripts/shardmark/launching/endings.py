"""Find out why a cell's processes ended, from the files that they left.

A failure of the training is a result; an interruption from outside is not. When one rank fails, the
others follow with errors of their own, so this looks for the first cause.
"""

from __future__ import annotations

import math
import signal
from pathlib import Path
from typing import Any

from shardmark.cells import Cell
from shardmark.errors import UserError
from shardmark.launching.launch import Ended
from shardmark.metrics import Failure, Status
from shardmark.processes.last_signal import FROM_OUTSIDE

# torch.distributed.run polls its ranks every 0.1 s and needs a while to end the others. A rank that
# ignores SIGTERM is killed 30 s later.
SAME_MOMENT_S = 5.0
# A rank that dies of one of these crashed by itself; its peers' errors follow.
CRASHES = (signal.SIGSEGV, signal.SIGILL, signal.SIGFPE)


# What to do when the machine failed, not the training.
REMEDIES = {"full_disk": "make room", "machine": "fix that"}


# The beginning of the reason if no rank made progress any more.
HUNG = "hung: no rank got further"


class Interrupted(UserError):
    """Something other than the training ended the processes, so there is no result."""


class Killed(Interrupted):
    """SIGKILL ended a rank, and the kernel's out-of-memory killer did not send it."""


def find_failure(
    cell: Cell, ended: Ended, result: Path | None = None
) -> tuple[Status, Failure] | None:
    """Return the status and failure of processes that did not end well; None if they did.

    Args:
        cell: the cell.
        ended: how they ended.
        result: the file that they had to leave.

    Raises:
        UserError: for a mistake of the user's.
        Interrupted: if something other than the training ended them, or the cause is unknown.
    """
    if ended.exit_code == 0 and not ended.failures:
        if result is None or result.exists():
            return None
        reason = "the process ended with exit code 0 before the training was over"
        return _outcome(ended, "failed", None, None, reason)
    title = cell.title
    outcome_of_watch = _outcome_of_watch(title, ended)
    if outcome_of_watch is not None:
        return outcome_of_watch
    deaths = _deaths_by_signal(ended)
    killed = [death for death in deaths if death["exit_code"] == -signal.SIGKILL]
    if killed:
        return _outcome_of_sigkill(title, killed[0]["rank"], ended)
    for death in deaths:
        if death["exit_code"] == -signal.SIGBUS:
            raise Interrupted(
                f"{title}: rank {death['rank']} died of SIGBUS: /dev/shm or another disk of its "
                "node is full, a file that it had mapped became shorter, or memory is faulty. This "
                "is no result; make room and run it again"
            )
    crashed = [death for death in deaths if -death["exit_code"] in CRASHES]
    if crashed:
        name = signal.Signals(-crashed[0]["exit_code"]).name
        return _outcome(ended, "failed", None, crashed[0]["rank"], f"the process died of {name}")
    # A rank that exits non-zero without an exception is the culprit; the others died because of it.
    ranks_with_exception = {failure["rank"] for failure in ended.failures}
    culprits = [
        death
        for death in _deaths(ended)
        if death["exit_code"] > 0 and death["rank"] not in ranks_with_exception
    ]
    if culprits:
        code, rank = culprits[0]["exit_code"], culprits[0]["rank"]
        if _died_in_imports(rank, ended):
            raise Interrupted(
                f"{title}: rank {rank} ended with exit code {code} while it imported its "
                f"libraries: {(ended.log_tail or ['it printed nothing'])[-1]}. This is no result; "
                "fix that and run it again"
            )
        reason = f"the process ended with exit code {code} and left no exception"
        return _outcome(ended, "failed", None, rank, reason)
    if cause := _why_signalled(ended):
        raise Interrupted(f"{title}: {cause}. This is no result; run it again")
    if ended.failures:
        return _outcome_of_exception(title, ended.failures[0], ended)
    others = [death for death in deaths if death["exit_code"] != -signal.SIGTERM]
    if others and -others[0]["exit_code"] in FROM_OUTSIDE:
        cause = _signal_in_words(others[0]["rank"], others[0]["exit_code"])
        raise Interrupted(f"{title}: {cause}. This is no result; run it again")
    if deaths and deaths[0]["exit_code"] != -signal.SIGTERM:
        name = signal.Signals(-deaths[0]["exit_code"]).name
        return _outcome(ended, "failed", None, deaths[0]["rank"], f"the process died of {name}")
    raise Interrupted(_no_reason_message(title, ended))


def _outcome_of_exception(
    title: str, first: dict[str, Any], ended: Ended
) -> tuple[Status, Failure]:
    """Return the outcome of an exception.

    Raises:
        UserError: for a mistake of the user's.
        Interrupted: if the machine caused the exception, or a full disk did.
    """
    if first["kind"] == "user":
        raise UserError(first["message"])
    lost_worker = "DataLoader worker" in first["exception"]
    if first["kind"] == "machine" and lost_worker and any(node.oom_kills for node in ended.nodes):
        reason = f"the kernel's out-of-memory killer ended a process: {first['exception']}"
        return _outcome(ended, "oom", first["phase"], first["rank"], reason)
    if first["kind"] in REMEDIES:
        cause = first["exception"].strip()
        if "Original Traceback" in cause:  # of a DataLoader's worker: its last line is the error
            cause = cause.splitlines()[-1]
        raise Interrupted(
            f"{title}: {cause} (rank {first['rank']}, {first['phase']}). This is no "
            f"result; {REMEDIES[first['kind']]} and run it again"
        )
    return _outcome(ended, first["kind"], first["phase"], first["rank"], first["exception"])


def _outcome_of_watch(title: str, ended: Ended) -> tuple[Status, Failure] | None:
    """Return the outcome if a node's watch ended its ranks; None if a rank failed by itself.

    Raises:
        Interrupted: if the watch ended them because of something outside the training.
    """
    causes = {node.ended_by: node for node in ended.nodes if node.ended_by}
    if "signal" in causes and _srun_sent_the_signal(ended):
        del causes["signal"]
    stopped = [name for node in ended.nodes for name in node.stopped]
    if stopped:
        raise Interrupted(
            f"{title}: hung, and {' and '.join(stopped)} had been stopped (SIGSTOP, or a "
            "debugger). This is no result; run it again"
        )
    for cause, description in (("signal", "asked to end"), ("orphaned", "left by what started it")):
        if cause in causes:
            raise Interrupted(
                f"{title}: was {description} (cancelled, preempted, out of Slurm's time, or its "
                "controller killed). This is no result; run it again"
            )
    since = min((node.ended_since for node in ended.nodes if node.ended_since), default=math.inf)
    if any(failure["time"] < since - SAME_MOMENT_S for failure in ended.failures):
        return None  # a rank failed first, and the others waited for it
    beats = sorted(
        (beat for node in ended.nodes for beat in node.beats), key=lambda beat: beat.beats
    )
    where = "; ".join(map(str, beats))
    slowest = beats[0] if beats else None
    phase = slowest.phase if slowest else None
    if "stall" in causes:
        is_behind = slowest is not None and (len(beats) == 1 or slowest.beats < beats[1].beats)
        rank = slowest.rank if slowest and is_behind else None
        return _outcome(ended, "failed", phase, rank, f"{HUNG}; {where}")
    if "time limit" in causes:
        seconds = causes["time limit"].seconds
        reason = f"the time limit ended it after {seconds:.0f} s; {where}"
        return _outcome(ended, "timeout", phase, None, reason)
    return None


def _srun_sent_the_signal(ended: Ended) -> bool:
    """Whether srun sent the signal that ended a node, because another node had ended before.

    srun ends all tasks when one fails (--kill-on-bad-exit). When a job is cancelled, all nodes get
    the signal at once, so a rank that dies because of it dies later, or of the signal itself.
    """
    signalled_at = min(node.ended_since or 0.0 for node in ended.nodes if node.ended_by == "signal")
    others = [node for node in ended.nodes if node.ended_by != "signal"]
    death_times = [
        float(death["time"])
        for node in others
        for death in node.failures
        if node.ended_by is None and death["exit_code"] != -signal.SIGTERM
    ]
    intervention_times = [node.ended_since for node in others if node.ended_since is not None]
    return min([*death_times, *intervention_times], default=math.inf) < signalled_at


def _outcome_of_sigkill(title: str, rank: int, ended: Ended) -> tuple[Status, Failure]:
    if any(node.oom_kills for node in ended.nodes):
        reason = "the kernel's out-of-memory killer ended the process: host memory ran out"
        return _outcome(ended, "oom", None, rank, reason)
    raise Killed(
        f"{title}: something else killed rank {rank} (SIGKILL: the scheduler, or a person). This "
        "is no result; run it again"
    )


def _died_in_imports(rank: int, ended: Ended) -> bool:
    """Whether a rank never gave its first beat, which comes after its imports.

    Such a rank has not reported its number, so this infers it from the ranks that have.
    """
    beats = [beat for node in ended.nodes for beat in node.beats]
    began = {beat.rank for beat in beats if beat.pid}
    return len(began) < len(beats) and rank not in began


def _why_signalled(ended: Ended) -> str | None:
    """Say which rank a signal ended before any rank failed by itself; None if there was none.

    torchrun also ends ranks with SIGTERM, but only after one has failed. Two nodes have two clocks,
    so a failure on another node must be clearly later.
    """
    exit_codes = [-number for number in FROM_OUTSIDE]
    for node in ended.nodes:
        codes = {death["rank"]: death["exit_code"] for death in node.failures}
        signalled = [
            (at, rank) for rank, at in node.signalled.items() if codes.get(rank) in exit_codes
        ]
        has_crash = any(code < 0 and code not in exit_codes for code in codes.values())
        if not signalled or has_crash:
            continue
        at, rank = min(signalled)
        if all(
            float(failure["time"]) > at + (0 if failure["rank"] in codes else SAME_MOMENT_S)
            for failure in ended.failures
        ):
            return _signal_in_words(rank, codes[rank])
    return None


def _signal_in_words(rank: int, exit_code: int) -> str:
    name = signal.Signals(-exit_code).name
    return f"something else ended rank {rank} ({name}: the scheduler, a limit, or a person)"


def _deaths(ended: Ended) -> list[dict[str, Any]]:
    return [failure for node in ended.nodes for failure in node.failures]


def _deaths_by_signal(ended: Ended) -> list[dict[str, Any]]:
    """Return the ranks that a signal ended at the first failure; torchrun ends others later."""
    deaths = _deaths(ended)
    first = min((float(death["time"]) for death in deaths), default=0.0)
    return [
        death
        for death in deaths
        if death["exit_code"] < 0 and float(death["time"]) - first < SAME_MOMENT_S
    ]


def _outcome(
    ended: Ended, status: Status, phase: str | None, rank: int | None, reason: str
) -> tuple[Status, Failure]:
    failure = Failure(phase=phase, rank=rank, exception=reason, log_tail=ended.log_tail)
    return status, failure


def _no_reason_message(title: str, ended: Ended) -> str:
    return (
        f"{title}: its processes ended with exit code {ended.exit_code} and left no reason; "
        "something else ended them (the scheduler, a node that was lost, a person). This is no "
        "result; run it again"
    )
