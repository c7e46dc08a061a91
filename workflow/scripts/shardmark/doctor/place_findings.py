"""The folders of a matrix and its data, as the machine that asks sees them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from shardmark.codebase import SCRIPTS
from shardmark.config import Config
from shardmark.doctor.finding import Finding, Level

# A cell leaves some megabytes; a full disk costs a matrix.
LITTLE_BYTES, NOTHING_BYTES = 10 * 2**30, 2**30
# A result counts as made meanwhile by its time on the file system, held against a machine's clock.
MOST_SKEW_S = 5.0


def writable(what: str, folder: Path) -> Iterator[Finding]:
    """Whether files can be made in a folder, how much room is left, and whether clocks agree."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            skew_s = Path(file.name).stat().st_mtime - time.time()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        advice = "name a folder that you may write to, or make room"
        yield Finding("FAIL", what, f"{folder}: {error.strerror}", advice)
        return
    room = f"{folder} is writable, {free / 2**30:.0f} GiB free"
    if free < LITTLE_BYTES:
        level: Level = "FAIL" if free < NOTHING_BYTES else "warn"
        yield Finding(level, what, room, "make room before the matrix fills it")
    else:
        yield Finding("ok", what, room)
    if abs(skew_s) > MOST_SKEW_S:
        yield Finding(
            "warn",
            "clock",
            f"the file system of {folder} is {skew_s:+.0f} s off this machine's clock",
            "let the administrators set it; Snakemake tells by it what is new",
        )


def data_sets(config: Config, root: Path) -> Iterator[Finding]:
    """Whether the files of every data set of the matrix are there, and whole."""
    names = sorted({config.workloads[name].dataset.name for name in config.matrix.workloads})
    for name in names:
        if name == "synthetic":
            yield Finding("ok", "data", "synthetic images are generated, nothing to fetch")
            continue
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, str(SCRIPTS / "fetch_data.py"), "--dataset", name]
            command += ["--dir", str(root / config.data.dir), "--download", "false"]
            command += ["--output", str(Path(folder, "found.json"))]
            asked = subprocess.run(command, capture_output=True, text=True)
        if asked.returncode == 0:
            yield Finding("ok", "data", f"{name} is whole in {config.data.dir}")
            continue
        level: Level = "warn" if config.data.download else "FAIL"
        found = f"{name} is not in {config.data.dir}, or its files are damaged"
        yield Finding(level, "data", found, "make fetch, where there is internet")
