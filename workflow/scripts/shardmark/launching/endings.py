"""What ended the processes of a cell, judged from what they left.

A failure of the training is data; processes that something else ended are not. Where one rank ends,
the others follow with errors of their own, so the first cause is looked for.
"""

from __future__ import annotations

import math
import signal
from typing import Any

from shardmark.cells import Cell
from shardmark.errors import UserError
from shardmark.launching.launch import Ended
from shardmark.metrics import Failure, Status
from shardmark.processes.last_signal import FROM_OUTSIDE

# torch.distributed.run looks at its ranks every 0.1 s and needs a while to end the others; one
# that it must kill because SIGTERM did not end it dies 30 s later.
SAME_MOMENT_S = 5.0
# A rank that dies of these did so by itself; its peers' errors follow.
CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)


# What to do if the machine failed and not the training.
REMEDIES = {"full_disk": "make room", "machine": "fix that"}


class Interrupted(UserError):
    """Something else than the training ended the processes: this is no result."""


def failure_of(cell: Cell, ended: Ended) -> tuple[Status, Failure] | None:
    """The status and failure of processes that did not end well; None if they did.

    Raises:
        UserError: for a mistake of the user's.
        Interrupted: where something else ended them, or nothing tells what did.
    """
    if ended.exit_code == 0 and not ended.failures:
        return None
    title = cell.title
    watched = _ended_by_watch(title, ended)
    if watched is not None:
        return watched
    deaths = _deaths_by_signal(ended)
    killed = [death for death in deaths if death["exit_code"] == -signal.SIGKILL]
    if killed:
        return _killed(title, killed[0]["rank"], ended)
    crashed = [death for death in deaths if -death["exit_code"] in CRASHES]
    if crashed:
        name = signal.Signals(-crashed[0]["exit_code"]).name
        return _failed(ended, "failed", None, crashed[0]["rank"], f"the process died of {name}")
    # A rank that exits non-zero without an exception is the culprit; the others died because of it.
    told = {failure["rank"] for failure in ended.failures}
    silent = [d for d in _deaths(ended) if d["exit_code"] > 0 and d["rank"] not in told]
    if silent:
        code, rank = silent[0]["exit_code"], silent[0]["rank"]
        if _never_began(rank, ended):
            raise Interrupted(
                f"{title}: rank {rank} ended with exit code {code} while it imported its "
                f"libraries: {(ended.log_tail or ['it printed nothing'])[-1]}. This is no result; "
                "fix that and run it again"
            )
        reason = f"the process ended with exit code {code} and left no exception"
        return _failed(ended, "failed", None, rank, reason)
    if outside := _signal_from_outside(ended):
        raise Interrupted(f"{title}: {outside}. This is no result; run it again")
    if ended.failures:
        return _raised(title, ended.failures[0], ended)
    others = [death for death in deaths if death["exit_code"] != -signal.SIGTERM]
    if others and -others[0]["exit_code"] in FROM_OUTSIDE:
        outside = _ended_by(others[0]["rank"], others[0]["exit_code"])
        raise Interrupted(f"{title}: {outside}. This is no result; run it again")
    if deaths and deaths[0]["exit_code"] != -signal.SIGTERM:
        name = signal.Signals(-deaths[0]["exit_code"]).name
        return _failed(ended, "failed", None, deaths[0]["rank"], f"the process died of {name}")
    raise Interrupted(_no_reason(title, ended))


def _raised(title: str, first: dict[str, Any], ended: Ended) -> tuple[Status, Failure]:
    """The outcome of an exception."""
    if first["kind"] == "user":
        raise UserError(first["message"])
    killed = "DataLoader worker" in first["exception"]
    if first["kind"] == "machine" and killed and any(node.oom_kills for node in ended.nodes):
        reason = f"the kernel's out-of-memory killer ended a process: {first['exception']}"
        return _failed(ended, "oom", first["phase"], first["rank"], reason)
    if first["kind"] in REMEDIES:
        raise Interrupted(
            f"{title}: {first['exception']} (rank {first['rank']}, {first['phase']}). This is no "
            f"result; {REMEDIES[first['kind']]} and run it again"
        )
    return _failed(ended, first["kind"], first["phase"], first["rank"], first["exception"])


def _ended_by_watch(title: str, ended: Ended) -> tuple[Status, Failure] | None:
    """What a node's watch ended its ranks for."""
    causes = {node.ended_by: node for node in ended.nodes if node.ended_by}
    if "signal" in causes and _passed_on(ended):
        del causes["signal"]
    stopped = [name for node in ended.nodes for name in node.stopped]
    if stopped:
        raise Interrupted(
            f"{title}: hung, and {' and '.join(stopped)} had been stopped (SIGSTOP, or a "
            "debugger). This is no result; run it again"
        )
    for cause, words in (("signal", "asked to end"), ("orphaned", "left by what started it")):
        if cause in causes:
            raise Interrupted(
                f"{title}: was {words} (cancelled, preempted, out of Slurm's time, or its "
                "controller killed). This is no result; run it again"
            )
    since = min((node.ended_since for node in ended.nodes if node.ended_since), default=math.inf)
    if any(failure["time"] < since - SAME_MOMENT_S for failure in ended.failures):
        return None  # a rank failed, and the others waited for it
    beats = sorted((beat for node in ended.nodes for beat in node.beats), key=lambda b: b.beats)
    where = "; ".join(map(str, beats))
    behind = beats[0] if beats else None
    phase = behind.phase if behind else None
    if "stall" in causes:
        alone = behind is not None and (len(beats) == 1 or behind.beats < beats[1].beats)
        rank = behind.rank if behind and alone else None
        return _failed(ended, "failed", phase, rank, f"hung: no rank got further; {where}")
    if "time limit" in causes:
        seconds = causes["time limit"].seconds
        reason = f"the time limit ended it after {seconds:.0f} s; {where}"
        return _failed(ended, "timeout", phase, None, reason)
    return None


def _passed_on(ended: Ended) -> bool:
    """Whether the signal that ended a node was srun's, because another node had ended before.

    srun ends all tasks where one fails (--kill-on-bad-exit). Who cancels a job signals all nodes at
    once: what dies of that dies later, or of the signal.
    """
    asked = min(node.ended_since or 0.0 for node in ended.nodes if node.ended_by == "signal")
    others = [node for node in ended.nodes if node.ended_by != "signal"]
    died = [
        float(death["time"])
        for node in others
        for death in node.failures
        if node.ended_by is None and death["exit_code"] != -signal.SIGTERM
    ]
    given_up = [node.ended_since for node in others if node.ended_since is not None]
    return min([*died, *given_up], default=math.inf) < asked


def _killed(title: str, rank: int, ended: Ended) -> tuple[Status, Failure]:
    if any(node.oom_kills for node in ended.nodes):
        reason = "the kernel's out-of-memory killer ended the process: host memory ran out"
        return _failed(ended, "oom", None, rank, reason)
    raise Interrupted(
        f"{title}: something else killed rank {rank} (SIGKILL: the scheduler, or a person). This "
        "is no result; run it again"
    )


def _never_began(rank: int, ended: Ended) -> bool:
    """Whether a rank gave no sign of life, which comes after its imports.

    A rank that never started has reported no number, so it is inferred from those that did.
    """
    beats = [beat for node in ended.nodes for beat in node.beats]
    begun = {beat.rank for beat in beats if beat.pid}
    return len(begun) < len(beats) and rank not in begun


def _signal_from_outside(ended: Ended) -> str | None:
    """Which rank a signal ended before any rank failed by itself; None if none was.

    torchrun also ends the other ranks with SIGTERM, but after one has failed. The moments of two
    nodes are of two clocks, so a failure elsewhere must be clearly later.
    """
    asked = [-number for number in FROM_OUTSIDE]
    for node in ended.nodes:
        codes = {death["rank"]: death["exit_code"] for death in node.failures}
        moments = [(at, r) for r, at in node.signalled.items() if codes.get(r) in asked]
        crashed = any(code < 0 and code not in asked for code in codes.values())
        if not moments or crashed:
            continue
        at, rank = min(moments)
        if all(
            float(failure["time"]) > at + (0 if failure["rank"] in codes else SAME_MOMENT_S)
            for failure in ended.failures
        ):
            return _ended_by(rank, codes[rank])
    return None


def _ended_by(rank: int, exit_code: int) -> str:
    name = signal.Signals(-exit_code).name
    return f"something else ended rank {rank} ({name}: the scheduler, a limit, or a person)"


def _deaths(ended: Ended) -> list[dict[str, Any]]:
    return [failure for node in ended.nodes for failure in node.failures]


def _deaths_by_signal(ended: Ended) -> list[dict[str, Any]]:
    """Ranks that a signal ended when the first of all failed, and not torchrun after it."""
    deaths = _deaths(ended)
    first = min((float(death["time"]) for death in deaths), default=0.0)
    return [
        death
        for death in deaths
        if death["exit_code"] < 0 and float(death["time"]) - first < SAME_MOMENT_S
    ]


def _failed(
    ended: Ended, status: Status, phase: str | None, rank: int | None, reason: str
) -> tuple[Status, Failure]:
    failure = Failure(phase=phase, rank=rank, exception=reason, log_tail=ended.log_tail)
    return status, failure


def _no_reason(title: str, ended: Ended) -> str:
    return (
        f"{title}: its processes ended with exit code {ended.exit_code} and left no reason; "
        "something else ended them (the scheduler, a node that was lost, a person). This is no "
        "result; run it again"
    )
