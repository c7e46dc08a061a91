"""The end of a process that has torch in its memory."""

from __future__ import annotations

import os
import sys
from typing import NoReturn


def leave(code: int = 0) -> NoReturn:
    """End this process at once, all that it wrote being closed.

    The interpreter's orderly end takes apart every module of torch and torch._dynamo: a second of
    each process (measured, torch 2.15), in which nothing of use happens.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
