"""torchrun, whose ranks end with it and which leaves how each one failed.

What torchrun prints of a rank that died of a signal is for people; the launcher needs it as data.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from shardmark.atomic import write_text
from shardmark.command import one_message
from shardmark.processes.leaving import leave
from shardmark.processes.tether import tethered


def agent_command(report: Path, options: Sequence[str], script: Sequence[str]) -> list[str]:
    """The command of one node's torchrun.

    Args:
        report: where the failed ranks are left, ``[{"rank", "exit_code", "pid", "time"}]``; the
            exit code is the negative signal where one ended the rank.
        options: torchrun's own.
        script: a Python script and its arguments, to run as each rank.
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
    """Run torchrun with the arguments of the command line; exit 1 where a rank failed."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    report, *arguments = sys.argv[1:]
    at = arguments.index("--no-python") + 1
    ranks = tethered([sys.executable, *arguments[at:]])
    try:
        run(parse_args([*arguments[:at], *ranks]))  # type: ignore[no-untyped-call]
    except SignalException as asked:
        leave(128 + asked.sigval)
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
