"""How long the processes of a cell may take to start on this machine, as busy as it is."""

from __future__ import annotations

import functools
import subprocess
import sys
import time


@functools.cache
def stall_s() -> float:
    """A limit of silence that no rank reaches before its first beat, which follows its imports.

    A cell of two ranks takes about three times as long as one process takes to import torch. The
    machine may be busier when the cell starts than it is now, so the limit is at least 30 s.
    """
    begin = time.monotonic()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return max(30.0, 8 * (time.monotonic() - begin))
