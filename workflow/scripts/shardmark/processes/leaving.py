"""End a process that has imported torch."""

from __future__ import annotations

import os
import sys
from typing import NoReturn


def leave(code: int = 0) -> NoReturn:
    """End this process at once; all its files must be closed.

    An orderly exit of the interpreter tears down every module of torch and torch._dynamo. That
    takes each process a second (measured, torch 2.15) and has no use.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
