"""One cluster for all tests of this folder, and a project for each."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import Cluster, run, running, why_not_here
from slurm_project import SlurmProject
from waiting import until


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    if reason := why_not_here():
        pytest.skip(reason)
    # A shell's background command ignores it, and so would every Snakemake that is started here.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Not pytest's own folder, which is nobody's but the user's: the daemons change users.
    folder = Path(tempfile.mkdtemp(prefix="shardmark-slurm-"))
    folder.chmod(0o755)
    with running(folder) as up:
        yield up
    shutil.rmtree(folder)


@pytest.fixture
def project(cluster: Cluster, tmp_path: Path) -> Iterator[SlurmProject]:
    """The project of a user who has changed the profile's lines. Its jobs end with the test."""
    yield SlurmProject(tmp_path)
    if run("squeue", "--noheader"):
        run("scancel", "--user=root")
        until(lambda: not run("squeue", "--noheader"), "empty queue")
