"""Wrap the main function of a script."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

from shardmark.disk import disk_errors_explained
from shardmark.errors import UserError


def one_message(main: Callable[[], None]) -> Callable[[], None]:
    """Turn an error that the user can fix into one message and exit status 1."""

    @functools.wraps(main)
    def command() -> None:
        try:
            with disk_errors_explained():
                main()
        except UserError as error:
            sys.exit(f"shardmark: {error}")

    return command
