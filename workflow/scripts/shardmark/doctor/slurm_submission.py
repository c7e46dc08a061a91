"""Build the jobs of a matrix as Snakemake's executor would submit them, for the doctor to try."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from snakemake_executor_plugin_slurm.submit_string import get_submit_command
from snakemake_executor_plugin_slurm.utils import parse_time_to_minutes, set_gres_string

from shardmark.cells import batch_searches_of, cells_of
from shardmark.config.files import read_config_file
from shardmark.config.schema import Cluster, Config
from shardmark.controller.progress import FIND_LARGEST_BATCH
from shardmark.slurm.job_request import PIN_MINUTES, build_request, quoted_options
from shardmark.slurm.queue import TRAIN
from shardmark.time_limits import GATE_MINUTES, limit_minutes


class Resources(dict[str, Any]):
    """Resources that can be read by key and by attribute, as the executor does."""

    __getattr__ = dict.__getitem__


def jobs_of_matrix(config: Config, profile: Mapping[str, Any]) -> dict[str, Resources]:
    """Return the resources of each kind of job of the matrix, largest first."""
    cluster, jobs = config.cluster, {}
    options = quoted_options(cluster)
    gate = {"slurm_extra": options if cluster.gpus_unassigned else ""}
    pin = {"slurm_extra": options, "runtime": PIN_MINUTES}
    searched = {search.cell.gpus for search in batch_searches_of(config)}
    for gpus in sorted(config.matrix.gpus, reverse=True):
        jobs[f"{gpus}-GPU cells"] = resources_of_cell(config, gpus, profile)
        jobs[f"{gpus}-rank parity"] = resources_of("check_parity", cluster, gpus, profile, gate)
        if cluster.block == "pinned":
            jobs[f"{gpus}-GPU blocks"] = resources_of("pin_block", cluster, gpus, profile, pin)
        if gpus in searched:
            jobs[f"{gpus}-GPU searches"] = resources_of(
                FIND_LARGEST_BATCH,
                cluster,
                gpus,
                profile,
                {"slurm_extra": options},
                cluster.time_limit_minutes,
            )
    jobs["the oracle"] = resources_of("make_oracle", cluster, 1, profile, gate)
    return jobs


def resources_of_cell(config: Config, replicas: int, profile: Mapping[str, Any]) -> Resources:
    """Return the resources of a cell's job, or of a group's job if the profile groups cells.

    Args:
        config: the matrix. Of its cells with this many GPUs, the one with the longest time limit
            counts.
        replicas: GPUs of the cell.
        profile: a Snakemake profile as a mapping.
    """
    cluster = config.cluster
    limit = max(limit_minutes(cluster, cell) for cell in cells_of(config) if cell.gpus == replicas)
    extra = {"slurm_extra": quoted_options(cluster)}
    resources = resources_of(TRAIN, cluster, replicas, profile, extra, limit)
    if group := _as_mapping(profile.get("groups")).get(TRAIN):
        resources["runtime"] *= int(_as_mapping(profile.get("group-components")).get(group, 1))
    return resources


def resources_of(
    rule: str,
    cluster: Cluster,
    replicas: int,
    profile: Mapping[str, Any],
    own: Mapping[str, Any],
    limit: int = GATE_MINUTES,
) -> Resources:
    """Return the resources of a rule's job.

    The rule's own resources override the profile's default-resources; set-resources override both.

    Args:
        rule: its name.
        cluster: the machines.
        replicas: GPUs of the job.
        profile: a Snakemake profile as a mapping.
        own: what the rule asks for beside its machines.
        limit: minutes until the job ends itself.
    """
    overrides = _as_mapping(profile.get("set-resources"))
    resources = Resources(
        {
            **_as_mapping(profile.get("default-resources")),
            **build_request(cluster, replicas, limit).resources(),
            **own,
            **(overrides.get(rule) or {}),
            **{
                name.removeprefix(f"{rule}:"): value
                for name, value in overrides.items()
                if name.startswith(f"{rule}:")
            },
        }
    )
    resources["runtime"] = parse_time_to_minutes(resources["runtime"])
    return resources


def _as_mapping(setting: Any) -> dict[str, Any]:
    """Return a profile's entry as a mapping, even if it is a list of ``name=value``."""
    if isinstance(setting, list):
        return dict(str(entry).split("=", 1) for entry in setting if "=" in str(entry))
    return dict(setting or {})


def read_profile(folder: Path) -> dict[str, Any]:
    """Read a Snakemake profile.

    Raises:
        ConfigError: if it is missing or is not YAML.
    """
    return read_config_file(folder / "config.yaml")


def sbatch_command(
    resources: Resources, profile: Mapping[str, Any], log: Path, command: str, *options: str
) -> list[str]:
    """Return the sbatch call that the executor would make for a job, but with another command.

    Args:
        resources: the job's resources.
        profile: a Snakemake profile as a mapping.
        log: file for its output.
        command: a shell command.
        options: further options of sbatch.
    """
    names = {"account": "slurm_account", "partition": "slurm_partition"}
    site_options = {
        option: f"--{option}={shlex.quote(str(resources[name]))}" if resources.get(name) else ""
        for option, name in names.items()
    }
    settings = {
        name: profile.get(f"slurm-{name.replace('_', '-')}")
        for name in ("requeue", "no_requeue", "qos", "reservation")
    }
    job = SimpleNamespace(resources=resources, threads=1)
    call = get_submit_command(
        job,
        {
            "run_uuid": "shardmark-doctor",
            "slurm_logfile": str(log),
            "comment_str": "shardmark doctor",
            "workdir": str(Path.cwd()),
            **site_options,
        },
        SimpleNamespace(**settings),
    )
    return [*shlex.split(call + set_gres_string(job)), *options, f"--wrap={command}"]
