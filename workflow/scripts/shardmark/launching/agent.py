"""Run torchrun so that its ranks end with it and their failures are recorded.

torchrun reports a rank that died of a signal as text for people; the launcher needs it as data.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from shardmark.command import one_message
from shardmark.files import write_text
from shardmark.processes.ending import leave
from shardmark.processes.tether import tether


def agent_command(report: Path, options: Sequence[str], script: Sequence[str]) -> list[str]:
    """Return the command of one node's torchrun.

    Args:
        report: file for the failed ranks, ``[{"rank", "exit_code", "pid", "time"}]``; the exit code
            of a rank that a signal ended is the negative signal number.
        options: options of torchrun.
        script: a Python script and its arguments, which each rank runs.
    """
    return [
        sys.executable,
        "-m",
        "shardmark.launching.agent",
        str(report),
        *options,
        "--no-python",
        *script,
    ]


@one_message
def main() -> None:
    """Run torchrun with the arguments of the command line; exit 1 if a rank failed."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    # torchrun raises an exception for each signal. A second one may come while it logs the first,
    # and logging would print that as a fault.
    logging.raiseExceptions = False
    report, *arguments = sys.argv[1:]
    first_rank_argument = arguments.index("--no-python") + 1
    ranks = tether([sys.executable, *arguments[first_rank_argument:]])
    try:
        run(parse_args([*arguments[:first_rank_argument], *ranks]))  # type: ignore[no-untyped-call]
    except SignalException as received:
        leave(128 + received.sigval)
    except ChildFailedError as error:
        failures = [
            {
                "rank": rank,
                "exit_code": failure.exitcode,
                "pid": failure.pid,
                "time": failure.timestamp,
            }
            for rank, failure in error.failures.items()
        ]
        write_text(Path(report), json.dumps(failures))
        leave(1)
    leave()


if __name__ == "__main__":
    main()
