"""Ranks that never end, each with a child of its own, and that do not heed SIGTERM."""

import os
import signal
import subprocess
import sys
import time

signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
# One write, so that two ranks do not mix their lines.
line = f"rank {os.environ['RANK']} is {os.getpid()} and its child is {child.pid}\n"
os.write(sys.stdout.fileno(), line.encode())
time.sleep(600)
