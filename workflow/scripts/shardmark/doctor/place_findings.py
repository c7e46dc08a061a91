"""Check the folders, data sets and site of a matrix, as this machine sees them."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from shardmark.config.schema import Config, Site
from shardmark.datasets import FETCHED
from shardmark.disk import require_room, why_no_room, why_no_temporary_room
from shardmark.doctor.finding import Finding, Level
from shardmark.doctor.limited_run import run_limited
from shardmark.errors import UserError
from shardmark.launching.site import make_local_folder, site_environment, why_not_in_image
from shardmark.workload.vision.data_files import fetch_command

# Free space below which the doctor warns, and below which it fails. A cell writes some megabytes; a
# full disk ruins a matrix.
LITTLE_BYTES, NOTHING_BYTES = 10 * 2**30, 2**30
# New results are recognised by comparing their time on the file system with a machine's clock.
MOST_SKEW_S = 5.0
# Time limit for reading a data set; on a slow file system that takes minutes.
CHECKSUMS_S = 600.0


def check_folder(what: str, folder: Path) -> Iterator[Finding]:
    """Check whether a folder is writable and has room, and whether its clock agrees with ours."""
    try:
        require_room(folder)
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            skew_s = Path(file.name).stat().st_mtime - time.time()
        free = shutil.disk_usage(folder).free
    except (UserError, OSError) as error:
        yield Finding("FAIL", what, str(error))
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


def check_caches() -> Iterator[Finding]:
    """Check whether Snakemake and the libraries can write their caches and temporary files."""
    caches = os.environ.get("XDG_CACHE_HOME")
    folder = Path(caches) if caches else Path.home() / ".cache"
    if reason := why_no_room(folder):
        yield Finding("FAIL", "cache", reason, "or name another folder in XDG_CACHE_HOME")
    else:
        yield Finding("ok", "cache", f"{folder} is writable")
    if reason := why_no_temporary_room():
        yield Finding("FAIL", "temporary", reason)
    else:
        yield Finding("ok", "temporary", f"{tempfile.gettempdir()} is writable")


def check_data_sets(config: Config, root: Path) -> Iterator[Finding]:
    """Check whether every data set of the matrix is there and complete."""
    workloads = [config.workloads[name] for name in config.matrix.workloads]
    own = {workload.dataset.name for workload in workloads if workload.own_files}
    for name in sorted({workload.dataset.name for workload in workloads}):
        if name not in FETCHED:
            what = "is the user's own file" if name in own else "data are generated"
            yield Finding("ok", "data", f"{name} {what}, nothing to fetch")
            continue
        command = fetch_command(name, root / config.data.dir, download=False)
        check = run_limited(command, f"computing the checksums of {name}", CHECKSUMS_S)
        if check.returncode == 0:
            yield Finding("ok", "data", f"{name} is whole in {config.data.dir}")
            continue
        level: Level = "warn" if config.data.download else "FAIL"
        message = (check.stderr.strip().splitlines() or ["fetch_data.py failed"])[-1]
        problem = message.removeprefix("shardmark: data.dir: ").split("; ")[0]
        yield Finding(level, "data", problem, "make fetch, where there is internet")


def check_site(site: Site) -> Iterator[Finding]:
    """Check whether the set-up and the image run here, and whether the local disk is writable."""
    settings = [name for name in Site.model_fields if getattr(site, name)]
    if not settings:
        return
    try:
        env = site_environment(site, os.environ, end_left=True)
        reason = why_not_in_image(site, env)
        folder = make_local_folder(site.scratch)
    except UserError as error:
        reason = str(error)
    if reason:
        yield Finding("FAIL", "site", reason, "mend site: in the configuration")
        return
    yield Finding("ok", "site", f"{', '.join(settings)} can be used")
    if folder is not None:
        yield from check_folder("site.scratch", folder)
