"""The job of a cell as Snakemake's executor would send it, for the doctor to try."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from snakemake_executor_plugin_slurm.submit_string import get_submit_command
from snakemake_executor_plugin_slurm.utils import set_gres_string

from shardmark.cells import cells_of
from shardmark.config import Config
from shardmark.config_files import check_file
from shardmark.matrix.progress import TRAIN
from shardmark.slurm.job_request import quoted_options, request_of
from shardmark.time_limits import limit_minutes


class Resources(dict[str, Any]):
    """As the executor reads them: by key and by attribute."""

    __getattr__ = dict.__getitem__


def resources_of_cell(config: Config, replicas: int, profile: Mapping[str, Any]) -> Resources:
    """What the job of a cell asks for: the profile's defaults, the rule's own, the profile's last.

    Args:
        config: the matrix; of its cells with so many GPUs it is the one with the longest limit.
        replicas: GPUs of the cell.
        profile: a Snakemake profile as a mapping.
    """
    cluster = config.cluster
    limit = max(limit_minutes(cluster, cell) for cell in cells_of(config) if cell.gpus == replicas)
    last = _pairs(profile.get("set-resources"))
    return Resources(
        {
            **_pairs(profile.get("default-resources")),
            **request_of(cluster, replicas, limit).resources(),
            "slurm_extra": quoted_options(cluster),
            **(last.get(TRAIN) or {}),
            **{
                name.removeprefix(f"{TRAIN}:"): value
                for name, value in last.items()
                if name.startswith(f"{TRAIN}:")
            },
        }
    )


def _pairs(given: Any) -> dict[str, Any]:
    """A profile's mapping, also where it is written as a list of ``name=value``."""
    if isinstance(given, list):
        return dict(str(entry).split("=", 1) for entry in given if "=" in str(entry))
    return dict(given or {})


def read_profile(folder: Path) -> dict[str, Any]:
    """A Snakemake profile.

    Raises:
        ConfigError: if it is not there, or no YAML.
    """
    return check_file(folder / "config.yaml")


def sbatch(resources: Resources, log: Path, command: str, *options: str) -> list[str]:
    """The sbatch that the executor would call for a job, with another command in it.

    Args:
        resources: what it asks for.
        log: where its output goes.
        command: a shell command.
        options: further options of sbatch.
    """
    names = {"account": "slurm_account", "partition": "slurm_partition"}
    sites = {
        option: f"--{option}={shlex.quote(str(resources[name]))}" if resources.get(name) else ""
        for option, name in names.items()
    }
    job = SimpleNamespace(resources=resources, threads=1)
    call = get_submit_command(
        job,
        {
            "run_uuid": "shardmark-doctor",
            "slurm_logfile": str(log),
            "comment_str": "shardmark doctor",
            "workdir": str(Path.cwd()),
            **sites,
        },
    )
    return [*shlex.split(call + set_gres_string(job)), *options, f"--wrap={command}"]
