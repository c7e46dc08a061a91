"""A full or read-only disk is named with its path, costs no result, and leaves nothing behind."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from built_pages import build
from gpu_matrix import config_of, write_matrix
from parity_cases import ROOT, case_of, make_oracle
from saved_cells import cell_arguments, oracle_arguments, saved
from shardmark.config.schema import Config
from shardmark.disk import disk_errors_explained, is_full, require_room
from shardmark.doctor.place_findings import check_caches
from shardmark.errors import UserError
from small_disk import needs_mounts, on_small_disk
from test_survival import RUN_CELL, SCRIPT, cell_of
from test_workflow import CONFIG, DDP_CELL, SCRIPTS, Project, copy_project

FULL = "No space left on device; make room and give the same command again"
PYTHONPATH = {"PYTHONPATH": str(ROOT / SCRIPTS)}


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    folder = tmp_path / "disk"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    """A project whose results have their tables, figures and page."""
    root = tmp_path_factory.mktemp("built")
    config = config_of(strategies=["ddp", "fsdp2"], seeds=[0, 1])
    write_matrix(config, root)
    build(config, root)
    return config, root


def command_of(script: str, config: Config, disk: Path) -> list[str]:
    """A script as its rule calls it, with its tables and outputs on the disk."""
    tables = ["--tables", str(disk)]
    arguments = {
        "collect": [*tables, "--config", saved(config)],
        "summarise": [*tables, "--baseline", "ddp"],
        "compare_strategies": [*tables, "--baseline", "ddp", "--margin", "0.02"],
        "export_tables": tables,
        "plot": [
            *(*tables, "--workload", "w", "--group", "measured", "--width-mm", "180"),
            *("--output", str(disk)),
        ],
        "report_page": [
            *("--command", "snakemake"),
            *("--results", f"results/{config.run}", "--margin", "0.02"),
            *("--output", f"{disk}/report.html"),
        ],
    }[script]
    return [sys.executable, str(ROOT / SCRIPTS / f"{script}.py"), *arguments]


def check_message(stderr: str, disk: Path) -> None:
    """One message, with the path and what to do."""
    (message,) = stderr.strip().splitlines()
    assert message.startswith(f"shardmark: {disk}/")
    assert message.endswith(FULL)


@needs_mounts
@pytest.mark.parametrize(
    "script",
    ["collect", "summarise", "compare_strategies", "export_tables", "plot", "report_page"],
)
def test_what_reads_results_names_the_full_disk(
    script: str, built: tuple[Config, Path], disk: Path
) -> None:
    config, root = built
    command = command_of(script, config, disk)
    before = f'cp -r results/{config.run}/tables/* "$0"'
    done = on_small_disk(
        command, disk, size="2m", before=before, full=True, after='ls -A "$0"', cwd=root
    )
    assert done.returncode == 1
    check_message(done.stderr, disk)
    assert "partial" not in done.stdout, "nothing half-written"


@needs_mounts
def test_a_merge_onto_a_full_disk_leaves_nothing(built: tuple[Config, Path], disk: Path) -> None:
    config, root = built
    command = [sys.executable, str(ROOT / SCRIPTS / "merge_runs.py"), f"results/{config.run}"]
    command += ["--into", str(disk / "joined")]
    done = on_small_disk(command, disk, full=True, after='ls -A "$0"', cwd=root)
    assert done.returncode == 1
    assert done.stderr.startswith(f"shardmark: {disk}/")
    assert done.stderr.strip().endswith(FULL)
    assert done.stdout.split() == ["filler"]


@needs_mounts
def test_a_comparison_names_the_full_disk_and_is_no_outcome(
    built: tuple[Config, Path], disk: Path
) -> None:
    config, root = built
    run = f"results/{config.run}"
    command = [sys.executable, str(ROOT / SCRIPTS / "compare_runs.py"), run, run]
    done = on_small_disk([*command, "--output", str(disk / "compared")], disk, full=True, cwd=root)
    assert done.returncode == 3
    check_message(done.stderr, disk)


def cell_command(disk: Path, gpus: int = 1) -> list[str]:
    cell = cell_of(gpus=gpus)
    command = [sys.executable, str(RUN_CELL), *cell_arguments(cell)]
    return [*command, "--output", str(disk / "metrics.json")]


@needs_mounts
def test_a_full_disk_leaves_the_previous_result_and_no_scratch_folder(disk: Path) -> None:
    before = 'echo previous > "$0/metrics.json"'
    after = 'ls -A "$0"; cat "$0/metrics.json"'
    done = on_small_disk(cell_command(disk), disk, before=before, full=True, after=after)
    assert done.returncode == 1
    check_message(done.stderr, disk)
    assert done.stdout.split() == ["filler", "metrics.json", "previous"]


@pytest.mark.slow
@needs_mounts
@pytest.mark.parametrize("gpus", [1, 2])
def test_a_disk_that_fills_while_a_cell_trains_is_no_failure_of_it(gpus: int, disk: Path) -> None:
    # The strategy's own script, but for what its last rank does in the fourth step.
    code = (
        "import functools, sys; from pathlib import Path; import run_cell as cells; "
        f"sys.argv[0] = cells.__file__; script = Path({str(SCRIPT)!r}); "
        "cells.run_cell = functools.partial(cells.run_cell, script=script); cells.main()"
    )
    command = [sys.executable, "-c", code, *cell_command(disk, gpus)[2:]]
    env = os.environ | PYTHONPATH
    env |= {"MISBEHAVIOUR": "fill the disk", "FILLER": str(disk / "filler")}
    done = on_small_disk(command, disk, size="2m", after='ls -A "$0"', env=env)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == f"shardmark: {disk}/.metrics.run: {FULL}"
    assert done.stdout.split()[-1] == "filler"


@needs_mounts
def test_a_full_local_disk_is_no_failure_of_the_cell(disk: Path, tmp_path: Path) -> None:
    env = os.environ | {"SHARDMARK_SCRATCH": str(disk)}
    done = on_small_disk(cell_command(tmp_path), disk, full=True, env=env)
    assert done.returncode == 1
    assert done.stderr.startswith(f"shardmark: {disk}/")
    assert FULL in done.stderr
    assert not (tmp_path / "metrics.json").exists()


@needs_mounts
def test_a_full_shared_memory_is_no_failure_of_the_cell(tmp_path: Path) -> None:
    dataset = {"name": "synthetic", "train_images": 256, "loader": "dataloader"}
    cell = case_of("ddp", 1, dataset=dataset).cell
    command = [sys.executable, str(RUN_CELL), *cell_arguments(cell)]
    command += ["--output", str(tmp_path / "metrics.json")]
    # Room for two batches, while the loader's workers prefetch more.
    done = on_small_disk(command, Path("/dev/shm"), size="200k")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "No space left on device" in last
    assert last.endswith("This is no result; make room and run it again")
    assert not (tmp_path / "metrics.json").exists()


@pytest.mark.slow
@needs_mounts
def test_a_full_disk_is_no_verdict_of_the_gate(
    disk: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    case = case_of("ddp", 1)
    oracle = make_oracle(case, tmp_path_factory.getbasetemp())
    arguments = [*oracle_arguments(case), "--strategy=ddp", "--oracle", str(oracle)]
    arguments += ["--output", str(disk / "ddp/ranks1.json")]
    command = [sys.executable, str(ROOT / SCRIPTS / "run_parity.py"), *arguments]
    # Room for all but the weights that the strategy leaves.
    done = on_small_disk(command, disk, size="200k", after='ls -A "$0/ddp"')
    assert done.returncode == 1
    assert done.stderr.startswith("shardmark: ")
    assert "No space left on device" in done.stderr
    assert done.stdout.splitlines()[-1] != "ranks1.json"


@needs_mounts
def test_a_full_disk_takes_no_oracle(disk: Path) -> None:
    case = case_of("ddp", 1)
    arguments = [*oracle_arguments(case), "--output", str(disk / "r1.pt")]
    command = [sys.executable, str(ROOT / SCRIPTS / "make_oracle.py"), *arguments]
    done = on_small_disk(command, disk, full=True, after='ls -A "$0"')
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == f"shardmark: {disk}/r1.pt: {FULL}"
    assert done.stdout.split() == ["filler"]


@needs_mounts
def test_a_sampler_names_the_full_disk(disk: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from shardmark.measurement.telemetry import sampling\n"
        "with sampling(Path(sys.argv[1]), 0.1, None): time.sleep(5)"
    )
    command = [sys.executable, "-c", code, str(disk / "telemetry.csv")]
    done = on_small_disk(command, disk, full=True, env=os.environ | PYTHONPATH)
    assert f"UserError: {disk}: {FULL}" in done.stderr


SNAKEMAKE = [sys.executable, "-m", "snakemake", "--profile", "profiles/local"]
SNAKEMAKE += ["--configfile", CONFIG]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return copy_project(tmp_path)


@needs_mounts
def test_a_matrix_does_not_start_on_a_full_disk(project: Project) -> None:
    results = project.folder / "results"
    results.mkdir()
    done = on_small_disk(SNAKEMAKE, results, full=True, cwd=project.folder)
    assert done.returncode == 1
    assert f"results/t: {FULL}" in done.stderr
    assert "Traceback" not in done.stderr
    assert project.ran() == []


@needs_mounts
def test_a_disk_that_fills_is_named_though_no_log_fits(project: Project) -> None:
    results = project.folder / "results"
    results.mkdir()
    cell = project.folder / SCRIPTS / "run_cell.py"
    fill = (
        "import contextlib\nwith contextlib.suppress(OSError), open('results/fill', 'ab', 0) as f:"
    )
    cell.write_text(f"{fill}\n    while True: f.write(bytes(4096))\n{cell.read_text()}")
    done = on_small_disk([*SNAKEMAKE, "--", DDP_CELL], results, size="4m", cwd=project.folder)
    assert done.returncode == 1
    where = "results/t/small/ddp/gpus2/seed1"
    assert f"no result; see {where}/job.log\n    {where}: {FULL}" in done.stderr


@needs_mounts
def test_a_project_that_is_read_only_is_one_line(project: Project) -> None:
    lock = 'mount --bind . . && mount -o remount,ro,bind . && cd "$PWD"'
    resources = project.folder / "resources"
    done = on_small_disk(SNAKEMAKE, resources, before=lock, cwd=project.folder)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last == ".snakemake: Read-only file system; shardmark must be able to write there"
    assert "Traceback" not in done.stderr


@needs_mounts
def test_a_results_folder_that_is_read_only_is_one_line(project: Project) -> None:
    results = project.folder / "results"
    results.mkdir()
    lock = 'mount -o remount,ro "$0"'
    done = on_small_disk(SNAKEMAKE, results, before=lock, cwd=project.folder)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last == "results/t: Read-only file system; shardmark must be able to write there"
    assert "Traceback" not in done.stderr


@needs_mounts
def test_the_doctor_names_a_full_home_and_temporary_folder(disk: Path) -> None:
    code = (
        "from shardmark.doctor.place_findings import check_caches\n"
        "print(*check_caches(), sep='\\n')"
    )
    env = os.environ | PYTHONPATH | {"XDG_CACHE_HOME": str(disk)}
    done = on_small_disk([sys.executable, "-c", code], disk, full=True, env=env)
    cache, temporary = done.stdout.splitlines()
    assert cache.startswith("FAIL  cache")
    assert f"{disk}: {FULL} -> or name another folder in XDG_CACHE_HOME" in cache
    assert temporary.startswith("ok")


# Python looks for a folder for temporary files in each of these, and in the working folder.
NO_OTHER_FOLDER = """
for folder in /tmp /var/tmp /usr/tmp; do
    [ ! -d $folder ] || { mount --rbind $folder $folder && mount -o remount,ro,bind $folder; }
done
cd "$0"
"""


@needs_mounts
def test_the_doctor_names_the_folders_if_no_temporary_folder_has_room(disk: Path) -> None:
    code = (
        "from shardmark.doctor.place_findings import check_caches\n"
        "print(*check_caches(), sep='\\n')"
    )
    command = [sys.executable, "-c", code]
    env = os.environ | PYTHONPATH | {"TMPDIR": str(disk)}
    done = on_small_disk(command, disk, before=NO_OTHER_FOLDER, full=True, env=env)
    _, temporary = done.stdout.splitlines()
    assert temporary.startswith("FAIL  temporary")
    assert "No usable temporary directory found in" in temporary
    assert str(disk) in temporary
    assert "name another folder in TMPDIR" in temporary


@needs_mounts
@pytest.mark.parametrize("full", [True, False], ids=["full before", "filled by the set-up"])
def test_a_full_temporary_folder_is_no_fault_of_the_setup(full: bool, disk: Path) -> None:
    code = (
        "from shardmark.config.schema import CellSite\n"
        "from shardmark.errors import UserError\n"
        "from shardmark.launching.site import site_environment\n"
        "import os\n"
        "setup = 'head -c 9000000 /dev/zero > $TMPDIR/filler || true'\n"
        "try: site_environment(CellSite(setup=setup), os.environ)\n"
        "except UserError as error: print(error)"
    )
    command = [sys.executable, "-c", code]
    env = os.environ | PYTHONPATH | {"TMPDIR": str(disk)}
    before = NO_OTHER_FOLDER
    done = on_small_disk(command, disk, size="4m", before=before, full=full, env=env)
    (message,) = done.stdout.splitlines()
    assert "site.setup" not in message
    assert "No usable temporary directory" in message if full else f"{disk}: {FULL}" in message
    assert "name another folder in TMPDIR" in message


def test_the_doctor_looks_at_the_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    cache, _ = check_caches()
    assert cache.level == "FAIL"
    assert "something else is in its place" in cache.detail


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_seen_through_what_wraps_it(number: int) -> None:
    plain = OSError(number, os.strerror(number))
    assert is_full(plain)
    wrapped = RuntimeError("the compiler failed")
    wrapped.__cause__ = plain
    assert is_full(wrapped)
    assert is_full(RuntimeError(f"backend: {plain}"))
    assert not is_full(RuntimeError("the compiler failed"))


def test_an_error_that_is_no_disks_stays_as_it_is() -> None:
    with pytest.raises(FileNotFoundError), disk_errors_explained():
        Path("no/such/file").read_text()


@pytest.mark.parametrize("link", ["results", "nowhere"])
def test_results_that_are_a_link_to_nothing(link: str, project: Project) -> None:
    (project.folder / "results").symlink_to(link)
    done = project.matrix()
    assert done.returncode == 1
    assert "results: is no folder, or a link that leads to none; move it away" in done.stdout
    assert "Traceback" not in done.stdout


@pytest.mark.parametrize("place", ["small", "other/ddp", "parity/small", "tables"])
def test_a_file_in_the_place_of_a_results_folder_is_one_line(place: str, project: Project) -> None:
    (project.folder / "results/t" / place).parent.mkdir(parents=True)
    (project.folder / "results/t" / place).touch()
    done = project.matrix()
    assert done.returncode == 1
    last = done.stdout.strip().splitlines()[-1]
    assert last == f"results/t/{place}: is no folder, or a link that leads to none; move it away"
    assert project.ran() == []


def test_a_folder_in_the_place_of_a_result_is_named_before_its_cell_trains(
    project: Project,
) -> None:
    (project.folder / DDP_CELL).mkdir(parents=True)
    done = project.matrix()
    assert done.returncode == 1
    last = done.stdout.strip().splitlines()[-1]
    assert last == f"{DDP_CELL}: is a folder where a file belongs; move it away"
    assert project.ran() == []


def test_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "results").touch()
    with pytest.raises(UserError, match="results: File exists; something else is in its place"):
        require_room(tmp_path / "results")
    with pytest.raises(UserError, match="Not a directory"):
        require_room(tmp_path / "results/t")
