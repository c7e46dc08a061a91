"""Check what could make a matrix fail, before it costs anything, and say what to do about it.

Prints one line per check: ok, warn or FAIL. The exit status is 1 if a check fails, else 0. With
--slurm, a short job of the largest cell's size checks the nodes.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from shardmark.cells import batch_searches_of, cells_of
from shardmark.codebase import SCRIPTS
from shardmark.config.files import load_files
from shardmark.config.schema import Config
from shardmark.doctor.finding import Finding
from shardmark.doctor.gpu_findings import check_gpus
from shardmark.doctor.link_findings import check_all_reduce
from shardmark.doctor.place_findings import check_caches, check_data_sets, check_folder, check_site
from shardmark.doctor.slurm_findings import DONE, check_requests, run_on_nodes
from shardmark.doctor.software_findings import check_packages, check_torch
from shardmark.errors import ConfigError, UserError
from shardmark.measurement.telemetry import node_name
from shardmark.slurm import queue

PROJECT = SCRIPTS.parents[1]
KEPT_VARIABLES = ("SLURM_JOB_ID", "SLURM_CONF", "SLURMD_NODENAME")


def summarise_matrix(config: Config) -> Finding:
    """Summarise what the configuration asks for."""
    largest, cells = max(config.matrix.gpus), len(list(cells_of(config)))
    searches = len(list(batch_searches_of(config)))
    nodes = -(-largest // config.cluster.gpus_per_node)
    kind = "GPUs" if config.cluster.device == "cuda" else "replicas on CPUs"
    text = f"valid: run {config.run}, {cells} cells, the largest of {largest} {kind}"
    searched = f", and {searches} searches for the largest batch" if searches else ""
    return Finding("ok", "configuration", f"{text} on {nodes} node(s){searched}")


def name_own_code(config: Config) -> Iterator[Finding]:
    """Say that nothing here runs the user's own code."""
    trainings = [config.workloads[name].own_code for name in config.matrix.workloads]
    strategies = [
        config.strategies[name].file
        for name in config.matrix.strategies
        if name in config.strategies
    ]
    files = dict.fromkeys([*itertools.chain(*trainings), *strategies])
    if files:
        later = "not run here; a run checks it before its first job"
        yield Finding("ok", "your own code", f"{', '.join(files)}: {later}")


def check_places(config: Config) -> Iterator[Finding]:
    """Check the folders for results, data and temporary files."""
    yield from check_folder("results", Path("results"))
    yield from check_caches()
    data_findings = list(check_data_sets(config, Path()))
    yield from data_findings
    # A data folder that is complete may be read-only.
    if any(one.level != "ok" for one in data_findings):
        yield from check_folder("data.dir", Path(config.data.dir))


def check_node(config: Config) -> Iterator[Finding]:
    """Check what a cell needs on this machine, and the links between all nodes of this job."""
    largest = max(config.matrix.gpus)
    cuda = config.cluster.device == "cuda"
    here = min(largest, config.cluster.gpus_per_node)
    yield from check_site(config.site)
    findings = list(check_torch(here if cuda else 0))
    if cuda:
        findings += check_gpus(here)
    yield from findings
    has_failed = any(one.level == "FAIL" for one in findings)
    if has_failed:
        yield Finding("warn", "all-reduce", "not tried, since what it needs fails", "see above")
    else:
        # Without Slurm there is only one node.
        yield from check_all_reduce(config, largest if queue.job_id() else here)


def check_matrix(config: Config, arguments: argparse.Namespace) -> Iterator[Finding | str]:
    """Run the checks of a matrix; each check comes after those that it depends on."""
    yield from check_places(config)
    if arguments.on_node or not arguments.slurm:
        yield from check_node(config)
        return
    slurm_findings = list(check_requests(config, arguments.profile))
    yield from slurm_findings
    if any(one.level == "FAIL" for one in slurm_findings):
        return
    command = [sys.executable, str(SCRIPTS / "doctor.py"), "--on-node"]
    if arguments.configfile:
        command += ["--configfile", *map(str, arguments.configfile)]
    log = Path("results", config.run, "doctor.log").absolute()
    try:
        yield from run_on_nodes(config, arguments.profile, shlex.join(command), log)
    except UserError as error:
        yield Finding("FAIL", "job", str(error), "see the partition's limits and your account")


def run_checks(arguments: argparse.Namespace) -> Iterator[Finding | str]:
    """Run all checks, or only those that need no configuration if it has mistakes."""
    yield from check_packages(PROJECT / "pyproject.toml")
    try:
        config = load_files(arguments.configfile)
    except ConfigError as error:
        first, *rest = str(error).splitlines()
        # If there are several lines, the first may be a heading that ends with a colon.
        mistakes = rest if rest and first.endswith(":") else [first, *rest]
        yield from (Finding("FAIL", "configuration", one, "mend it first") for one in mistakes)
        return
    yield summarise_matrix(config)
    yield from name_own_code(config)
    yield from check_matrix(config, arguments)


def main() -> None:
    """Run all checks and print one line for each."""
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
        # As in a cell's job: srun must get its counts as options, not from SLURM_* variables.
        for name in [
            name for name in os.environ if name.startswith("SLURM") and name not in KEPT_VARIABLES
        ]:
            del os.environ[name]
    failed = 0
    for finding in run_checks(arguments):
        print(finding, flush=True)
        failed += str(finding).startswith("FAIL")
    print(f"{DONE}{failed} FAIL" if arguments.on_node else last_line(failed), flush=True)
    sys.exit(bool(failed))


def last_line(failed: int) -> str:
    """Return the last line for the user."""
    if not failed:
        return "All checks passed."
    return f"Fix the {'failed check' if failed == 1 else f'{failed} failed checks'} first."


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)  # a reader of the pipe (head) closed it, so not all checks were printed
