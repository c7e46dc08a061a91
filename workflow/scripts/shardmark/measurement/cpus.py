"""Read which CPUs a process may use: its affinity, and the quota of its control groups.

A container cannot read a limit above its own root. This module does not import torch.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

SYSTEM = Path("/")


@dataclass(frozen=True)
class CpuGroup:
    """A control group that has a CPU quota.

    Attributes:
        quota: CPU time per wall-clock time that its processes may use together, in CPUs.
        periods: number of the quota's periods so far in which they ran.
        throttled: number of those in which the quota ran out, so that they had to wait.
    """

    quota: float
    periods: int
    throttled: int


def usable_cpus(system: Path = SYSTEM) -> int:
    """Return how many CPUs this process can keep busy: its affinity, limited by its quota."""
    quotas = [group.quota for group in (read_groups(system) or {}).values()]
    return max(1, int(min([len(os.sched_getaffinity(0)), *quotas])))


def as_ranges(cpus: Collection[int]) -> str:
    """Format CPU numbers as taskset and Slurm do, for example ``0-3,8``."""
    starts = [cpu for cpu in sorted(cpus) if cpu - 1 not in cpus]
    ends = [cpu for cpu in sorted(cpus) if cpu + 1 not in cpus]
    return ",".join(
        str(start) if start == end else f"{start}-{end}"
        for start, end in zip(starts, ends, strict=True)
    )


def read_groups(system: Path = SYSTEM) -> Mapping[str, CpuGroup] | None:
    """Read the control groups of this process that have a CPU quota, by folder.

    That includes its own group and all groups above, because each limits those below.

    Args:
        system: the file system's root.

    Returns:
        None if they cannot be read, so that it is unknown whether there is a quota.
    """
    try:
        top, own, version = _folders(system)
        levels = [own, *(above for above in own.parents if above.is_relative_to(top))]
        quotas = {level: _quota(level, version) for level in levels}
        return {
            str(level): CpuGroup(quota, **_periods(level))
            for level, quota in quotas.items()
            if quota is not None
        }
    except (OSError, ValueError):
        return None


def _folders(system: Path) -> tuple[Path, Path, int]:
    """Return the mount point of CPU control groups, this process's own group, and their version.

    Raises:
        ValueError: if they are not mounted here, or this process's own group is not.
    """
    groups: dict[int, PurePosixPath] = {}
    for line in (system / "proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "cpu" in controllers.split(","):
            groups[1] = PurePosixPath(path)
        elif not controllers:
            groups[2] = PurePosixPath(path)
    # If both versions are mounted, the CPU controller is in the one that names it.
    version = min(groups)
    for line in (system / "proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        root, mount_point = fields.split()[3:5]
        kind, _, options = rest.split(" ", 2)
        if kind == "cgroup2" if version == 2 else kind == "cgroup" and "cpu" in options.split(","):
            top, group = system / mount_point.lstrip("/"), groups[version]
            # A container may see only its own group, mounted where the root usually is.
            inside = group.is_relative_to(root)
            own = top / group.relative_to(root) if inside else top
            if own.is_dir():
                return top, own, version
    raise ValueError("no control group of this process is mounted")


def _quota(folder: Path, version: int) -> float | None:
    """Read a control group's quota, in CPUs; None if it has none."""
    try:
        if version == 2:
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text()
    except FileNotFoundError:  # the root, or a group without the CPU controller
        return None
    return None if quota in ("max", "-1") else int(quota) / int(period)


def _periods(folder: Path) -> dict[str, int]:
    """Read a control group's number of periods so far, and of those in which its quota ran out."""
    counts = dict(line.split() for line in (folder / "cpu.stat").read_text().splitlines())
    if not {"nr_periods", "nr_throttled"} <= counts.keys():
        raise ValueError(f"{folder}/cpu.stat counts no periods")
    return {"periods": int(counts["nr_periods"]), "throttled": int(counts["nr_throttled"])}
