"""A strategy of the user's own, in the file that the cell's options name."""

from __future__ import annotations

from shardmark.launching.rank import main
from shardmark.own_file import call_own, load_class
from shardmark.training.strategy import Strategy, Task


def make_own(task: Task) -> Strategy:
    """Make the strategy that the file defines."""
    file = task.cell.options["file"]
    kind = load_class(file, Strategy)  # type: ignore[type-abstract]
    return call_own(file, kind.__name__, lambda: kind(task))


if __name__ == "__main__":
    main(make_own)
