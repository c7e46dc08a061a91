"""The CPUs that ranks may use, and how they share them out: affinity, quotas, threads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from real_cells import metrics_of_run
from shardmark.cells import Cell
from shardmark.launching import node
from shardmark.launching.launch import launch
from shardmark.measurement.cpus import CpuGroup, as_ranges, read_groups, usable_cpus
from shardmark.measurement.host import HostReading, host_use
from small_matrix import ROOT, cell_at

STAT = "usage_usec 7\nnr_periods {}\nnr_throttled {}\nthrottled_usec 5\n"
V2 = "31 23 0:28 {} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "33 31 0:30 {} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"


def system(root: Path, groups: str, mounts: str, **files: str) -> Path:
    """A machine's /proc and /sys; ``files`` by their paths with ``__`` for ``/``."""
    own = {"proc/self/cgroup": groups, "proc/self/mountinfo": mounts}
    for name, text in (own | files).items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def v2(root: Path, quota: str = "200000 100000", counts: tuple[int, int] = (97, 94)) -> Path:
    """A Slurm step whose job has the quota; the root has neither file."""
    step = "sys/fs/cgroup/slurm/job_7/step_0"
    return system(
        root,
        "0::/slurm/job_7/step_0\n",
        V2.format("/"),
        **{
            f"{step}/cpu.max": "max 100000\n",
            f"{step}/cpu.stat": STAT.format(0, 0),
            "sys/fs/cgroup/slurm/job_7/cpu.max": f"{quota}\n",
            "sys/fs/cgroup/slurm/job_7/cpu.stat": STAT.format(*counts),
            "sys/fs/cgroup/slurm/cpu.stat": "usage_usec 7\n",
        },
    )


def test_a_quota_of_a_group_above_limits_too(tmp_path: Path) -> None:
    groups = read_groups(v2(tmp_path))
    assert groups is not None
    assert list(groups.values()) == [CpuGroup(2.0, 97, 94)]
    assert read_groups(v2(tmp_path, "max 100000")) == {}


def v1(root: Path, quota: str, mounted: str = "/", own: str = "docker/7/") -> Path:
    folder = f"sys/fs/cgroup/cpu,cpuacct/{own}"
    (root / "sys/fs/cgroup/unified/docker/7").mkdir(parents=True, exist_ok=True)
    return system(
        root,
        "9:memory:/docker/7\n4:cpu,cpuacct:/docker/7\n0::/docker/7\n",
        V2.format("/").replace("cgroup rw", "cgroup/unified rw") + V1.format(mounted),
        **{
            f"{folder}cpu.cfs_quota_us": quota,
            f"{folder}cpu.cfs_period_us": "100000",
            f"{folder}cpu.stat": "nr_periods 10\nnr_throttled 4\nthrottled_time 3\n",
        },
    )


def test_version_1_has_the_quota_where_both_are_mounted(tmp_path: Path) -> None:
    groups = read_groups(v1(tmp_path, "50000"))
    assert groups is not None
    assert list(groups.values()) == [CpuGroup(0.5, 10, 4)]
    assert read_groups(v1(tmp_path, "-1")) == {}


def test_a_container_sees_its_own_group_where_a_machine_has_the_root(tmp_path: Path) -> None:
    groups = read_groups(v1(tmp_path, "50000", mounted="/docker/7", own=""))
    assert groups is not None
    assert list(groups.values()) == [CpuGroup(0.5, 10, 4)]


def test_what_cannot_be_read_is_unknown_and_not_without_a_quota(tmp_path: Path) -> None:
    assert read_groups(tmp_path / "nothing") is None
    assert read_groups(system(tmp_path / "unmounted", "0::/\n", "")) is None
    assert read_groups(system(tmp_path / "elsewhere", "0::/job\n", V2.format("/"))) is None
    uncounted = v2(tmp_path / "uncounted")
    (uncounted / "sys/fs/cgroup/slurm/job_7/cpu.stat").write_text("usage_usec 7\n")
    assert read_groups(uncounted) is None


def test_usable_are_the_cpus_of_the_affinity_within_the_quota(tmp_path: Path) -> None:
    allowed = len(os.sched_getaffinity(0))
    assert usable_cpus(v2(tmp_path, "max 100000")) == allowed
    assert usable_cpus(v2(tmp_path, "10000000 100000")) == allowed
    assert usable_cpus(v2(tmp_path, "100000 100000")) == 1
    assert usable_cpus(v2(tmp_path, "50000 100000")) == 1, "never none"
    assert usable_cpus(tmp_path / "nothing") == allowed


def test_cpus_are_written_as_taskset_writes_them() -> None:
    assert as_ranges({0, 1, 2, 3, 8, 10, 11}) == "0-3,8,10-11"
    assert as_ranges({5}) == "5"


def test_a_window_has_the_quota_that_ran_out_most_often_in_it() -> None:
    begin = HostReading(
        0.0, 0.0, 0.0, 0, 0.0, {"pod": CpuGroup(4, 100, 50), "own": CpuGroup(2, 9, 9)}
    )
    end = HostReading(
        1.0, 0.0, 0.0, 0, 0.0, {"pod": CpuGroup(4, 110, 57), "own": CpuGroup(2, 19, 9)}
    )
    use = host_use(0, begin, end, torch_threads=3)
    assert (use.cpu_quota, use.cpu_periods, use.cpu_periods_throttled) == (4, 10, 7)
    assert use.torch_threads == 3
    assert (use.cpus, use.cpu_list) == (
        len(os.sched_getaffinity(0)),
        as_ranges(os.sched_getaffinity(0)),
    )


def test_no_quota_and_an_unknown_one_are_two_things() -> None:
    def at(second: float, groups: dict[str, CpuGroup] | None) -> HostReading:
        return HostReading(second, 0.0, 0.0, 0, 0.0, groups)

    free = host_use(0, at(0, {}), at(1, {}))
    assert (free.cpu_quota, free.cpu_periods, free.cpu_periods_throttled) == (None, 0, 0)
    for begin, end in ((None, None), ({}, None), ({}, {"new": CpuGroup(1, 0, 0)})):
        unknown = host_use(0, at(0, begin), at(1, end))
        assert (unknown.cpu_quota, unknown.cpu_periods) == (None, None)


def test_the_affinity_of_the_process_counts_and_not_the_machines_cores() -> None:
    first = min(os.sched_getaffinity(0))
    code = (
        f"import os; os.sched_setaffinity(0, {{{first}}})\n"
        "from shardmark.measurement.host import host_use, read_host\n"
        "from shardmark.measurement.cpus import usable_cpus\n"
        "use = host_use(0, read_host(), read_host())\n"
        "print(use.cpus, use.cpu_list, usable_cpus())"
    )
    child = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT / "workflow/scripts",
        capture_output=True,
        text=True,
        check=True,
    )
    assert child.stdout.split() == ["1", str(first), "1"]


WRITE_VARIABLES = """import json, os, pathlib, sys
names = ("OMP_NUM_THREADS", "TORCH_NCCL_ASYNC_ERROR_HANDLING")
variables = {name: os.environ.get(name) for name in names}
pathlib.Path(sys.argv[1], f"rank{os.environ['RANK']}.json").write_text(json.dumps(variables))
"""


def rank_variables(cell: Cell, folder: Path) -> list[dict[str, str | None]]:
    """What each rank of a cell finds among its variables."""
    folder.mkdir()
    script = folder / "tell.py"
    script.write_text(WRITE_VARIABLES)
    ended = launch(script, [str(folder)], cell, folder)
    assert ended.exit_code == 0, ended.log_tail
    files = [folder / f"rank{rank}.json" for rank in range(cell.processes)]
    return [json.loads(file.read_text()) for file in files]


def test_every_cell_has_the_variables_that_torchrun_sets_for_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_NUM_THREADS", "TORCH_NCCL_ASYNC_ERROR_HANDLING"):
        monkeypatch.delenv(name, raising=False)
    (alone,) = rank_variables(cell_at(), tmp_path / "alone")
    both = rank_variables(cell_at(gpus=2), tmp_path / "both")
    assert both[0] == both[1]
    assert alone.keys() == both[0].keys()
    cpus = usable_cpus()
    assert (alone["OMP_NUM_THREADS"], both[0]["OMP_NUM_THREADS"]) == (
        str(cpus),
        str(max(1, cpus // 2)),
    )
    assert alone["TORCH_NCCL_ASYNC_ERROR_HANDLING"] == both[0]["TORCH_NCCL_ASYNC_ERROR_HANDLING"]
    site = cell_at(gpus=2, site__environment={"OMP_NUM_THREADS": "7"})
    assert rank_variables(site, tmp_path / "site")[0]["OMP_NUM_THREADS"] == "7"


@pytest.mark.parametrize(
    ("strategy", "processes", "threads"), [("ddp", 4, 16), ("ddp", 1, 64), ("dp", 1, 64)]
)
def test_the_cores_of_a_node_with_gpus_are_shared_out_alike(
    strategy: str, processes: int, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(node, "usable_cpus", lambda: 64)
    cell = cell_at(strategy, processes, cluster__device="cuda")
    plan = node.Plan(
        cell=cell,
        script=tmp_path,
        arguments=[],
        scratch=tmp_path,
        environment={},
        telemetry=None,
        limit_s=None,
        stall_s=None,
        grace_s=5,
    )
    variables = node._rank_environment(plan, processes, tmp_path, None)
    assert variables["OMP_NUM_THREADS"] == str(threads)


def test_a_cell_records_what_its_ranks_may_use() -> None:
    host = metrics_of_run("ddp", launched=True).host
    assert {use.cpus for use in host} == {len(os.sched_getaffinity(0))}
    assert {use.torch_threads for use in host} == {max(1, usable_cpus() // 2)}
    assert {use.cpu_periods is None for use in host} == {read_groups() is None}
