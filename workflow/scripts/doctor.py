"""Say what is wrong, and what to do about it, before a matrix is paid for.

One line for each thing that is looked at: ok, warn or FAIL. Exit status 0 where nothing fails,
else 1. With --slurm the nodes are looked at by a short job of the largest cell's size.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from shardmark.codebase import SCRIPTS
from shardmark.config import Config
from shardmark.config_files import load_files
from shardmark.doctor.finding import Finding
from shardmark.doctor.gpu_findings import gpus
from shardmark.doctor.link_findings import all_reduce
from shardmark.doctor.place_findings import data_sets, small_files, writable
from shardmark.doctor.site_findings import surroundings
from shardmark.doctor.slurm_findings import DONE, on_nodes, requests
from shardmark.doctor.software_findings import python_and_packages, torch_build
from shardmark.errors import ConfigError, UserError
from shardmark.measurement.telemetry import node_name
from shardmark.slurm import queue

PROJECT = SCRIPTS.parents[1]
KEPT = ("SLURM_JOB_ID", "SLURM_CONF", "SLURMD_NODENAME")


def matrix(config: Config) -> Finding:
    """What the configuration asks for."""
    shape, largest = config.matrix, max(config.matrix.gpus)
    cells = len(shape.workloads) * len(shape.strategies) * len(shape.gpus) * len(shape.seeds)
    nodes = -(-largest // config.cluster.gpus_per_node)
    kind = "GPUs" if config.cluster.device == "cuda" else "replicas on CPUs"
    found = f"valid: run {config.run}, {cells} cells, the largest of {largest} {kind}"
    return Finding("ok", "configuration", f"{found} on {nodes} node(s)")


def places(config: Config) -> Iterator[Finding]:
    """Where files come from and go."""
    yield from writable("results", Path("results"))
    yield from small_files()
    found = list(data_sets(config, Path()))
    yield from found
    # A folder that has all that is needed may well be read-only.
    if any(one.level != "ok" for one in found):
        yield from writable("data.dir", Path(config.data.dir))


def node(config: Config) -> Iterator[Finding]:
    """What a cell meets on this machine, and on all that the job of this process has."""
    largest = max(config.matrix.gpus)
    cuda = config.cluster.device == "cuda"
    here = min(largest, config.cluster.gpus_per_node)
    yield from surroundings(config.site)
    found = list(torch_build(here if cuda else 0))
    if cuda:
        found += gpus(here)
    yield from found
    failed = any(one.level == "FAIL" for one in found)
    if failed:
        yield Finding("warn", "all-reduce", "not tried, since what it needs fails", "see above")
    else:
        # Without Slurm there is one node.
        yield from all_reduce(config, largest if queue.job_id() else here)


def look(config: Config, arguments: argparse.Namespace) -> Iterator[Finding | str]:
    """Everything, in the order in which one thing needs the other."""
    yield from places(config)
    if arguments.on_node or not arguments.slurm:
        yield from node(config)
        return
    asked = list(requests(config, arguments.profile))
    yield from asked
    if any(one.level == "FAIL" for one in asked):
        return
    command = [sys.executable, str(SCRIPTS / "doctor.py"), "--on-node"]
    if arguments.configfile:
        command += ["--configfile", *map(str, arguments.configfile)]
    log = Path("results", config.run, "doctor.log").absolute()
    try:
        yield from on_nodes(config, arguments.profile, shlex.join(command), log)
    except UserError as error:
        yield Finding("FAIL", "job", str(error), "see the partition's limits and your account")


def examine(arguments: argparse.Namespace) -> Iterator[Finding | str]:
    """Look, as far as the configuration allows."""
    yield from python_and_packages(PROJECT / "pyproject.toml")
    try:
        config = load_files(arguments.configfile)
    except ConfigError as error:
        first, *rest = str(error).splitlines()
        # The first line of several counts the mistakes, or is one of a file's itself.
        mistakes = rest if rest and first.endswith(":") else [first, *rest]
        yield from (Finding("FAIL", "configuration", one, "mend it first") for one in mistakes)
        return
    yield matrix(config)
    yield from look(config, arguments)


def main() -> None:
    """Look at everything, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--configfile", type=Path, nargs="+", default=[], help="overlays, as Snakemake takes them"
    )
    parser.add_argument("--slurm", action="store_true", help="look at a cluster's nodes, by a job")
    parser.add_argument(
        "--profile", type=Path, default=Path("profiles/slurm"), help="whose partition and account"
    )
    parser.add_argument("--on-node", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.on_node:
        print(f"      on {node_name()}", flush=True)
        # As the job of a cell finds it: what srun would take from the rest is said to it.
        for name in [name for name in os.environ if name.startswith("SLURM") and name not in KEPT]:
            del os.environ[name]
    failed = 0
    for found in examine(arguments):
        print(found, flush=True)
        failed += str(found).startswith("FAIL")
    print(f"{DONE}{failed} FAIL" if arguments.on_node else summary(failed), flush=True)
    sys.exit(bool(failed))


def summary(failed: int) -> str:
    """The last line for a person."""
    return f"{failed} of these must be mended first" if failed else "nothing stands in the way"


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
