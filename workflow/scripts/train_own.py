"""A strategy of the user's own, in the file that the cell's options name."""

from __future__ import annotations

from shardmark.errors import UserError
from shardmark.launching.rank import failure_kind, main
from shardmark.own_file import describe_failure, load_class
from shardmark.training.strategy import Strategy, Task


def make_own(task: Task) -> Strategy:
    """Make the strategy that the file defines.

    Raises:
        UserError: if its constructor fails, unless memory or the machine is the cause.
    """
    file = task.cell.options["file"]
    kind = load_class(file, Strategy)  # type: ignore[type-abstract]
    try:
        return kind(task)
    except (Exception, SystemExit) as error:
        if failure_kind(error) != "failed":
            raise
        raise UserError(describe_failure(file, kind.__name__, error)) from error


if __name__ == "__main__":
    main(make_own)
