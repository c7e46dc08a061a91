"""Prepare a cell's processes for their site: its set-up, variables, image and local disk.

The launcher of each node imports this; it does not import torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from shardmark.cells import Cell
from shardmark.codebase import SCRIPTS
from shardmark.config.schema import CellSite
from shardmark.disk import why_no_temporary_room
from shardmark.errors import UserError

ROOT = SCRIPTS.parents[1]
# The workflow sets it. It is not part of a cell, because the place of caches changes no result.
SCRATCH_VARIABLE = "SHARDMARK_SCRATCH"
# Marks a process that already runs in its site's environment.
ENTERED_VARIABLE = "SHARDMARK_ENTERED"
SETUP_S = 300.0
END_S = 5.0
_PR_SET_CHILD_SUBREAPER, _PR_GET_CHILD_SUBREAPER = 36, 37  # linux/prctl.h
# A line that fails ends the set-up, and the error gives its number. To keep the numbers right, this
# trap goes on the same line as the set-up's first. It ignores failures inside a sourced file, and
# the exit code of a sourced file that exists: one that ends with `[ -d x ] && . x` is fine.
_ON_ERROR = (
    "trap 'shardmark_code=$?; "
    'if [ -z "${BASH_SOURCE[0]:-}" ]; then shardmark_file=; '
    'case $BASH_COMMAND in ". "*|"source "*) eval "shardmark_file=(${BASH_COMMAND#* })";; esac; '
    'if [ -r "$shardmark_file" ] || type -P -- "$shardmark_file" > /dev/null; then '
    'echo "site.setup: line $LINENO ($BASH_COMMAND) ended with exit code $shardmark_code"; '
    'else echo "site.setup: line $LINENO ($BASH_COMMAND) failed"; exit $shardmark_code; fi; fi'
    "' ERR; "
)
# The image's own interpreter, which has the image's packages.
PYTHON_OF_IMAGE = "python3"
# Apptainer mounts the user's home in the image; packages there must not shadow the image's.
IN_IMAGE = {"PYTHONNOUSERSITE": "1"}
CACHES = {
    "CUDA_CACHE_PATH": "cuda",
    "MPLCONFIGDIR": "matplotlib",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TORCH_EXTENSIONS_DIR": "extensions",
    "TRITON_CACHE_DIR": "triton",
    "XDG_CACHE_HOME": "cache",
}


def site_environment(
    site: CellSite, base: Mapping[str, str], *, end_left: bool = False
) -> dict[str, str]:
    """Return the environment of a process at a site: after the set-up, plus the site's variables.

    The set-up runs once, in a separate shell, so that no shell sits between the launcher and the
    processes that it must end. It runs like the user's shell, except that a failing line ends it.

    Args:
        site: the site.
        base: the variables that the set-up starts from.
        end_left: whether to end the processes that the set-up leaves running.

    Raises:
        UserError: if the set-up fails, or a secret is not set.
    """
    env = dict(base)
    if site.setup:
        with _name_left_processes(end_left=end_left):
            env = _run_setup(site.setup, base)
    if missing_secrets := [name for name in site.secret_environment if name not in env]:
        raise UserError(
            f"site.secret_environment: {', '.join(missing_secrets)} not set on "
            f"{os.uname().nodename}; export it where Snakemake is started, or in site.setup"
        )
    return env | site.environment


@contextlib.contextmanager
def _name_left_processes(*, end_left: bool) -> Iterator[None]:
    """On exit, print which processes of the context still run although their parent has ended.

    Such processes become children of this one (prctl(2), PR_SET_CHILD_SUBREAPER).
    """
    this, prctl = psutil.Process(), ctypes.CDLL(None).prctl
    earlier, was_subreaper = this.children(), ctypes.c_int()
    prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(was_subreaper))
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        prctl(_PR_SET_CHILD_SUBREAPER, was_subreaper.value)
        left = [
            child
            for child in this.children()
            if child not in earlier and child.status() != psutil.STATUS_ZOMBIE
        ]
        if left:
            names = ", ".join(f"{child.name()} ({child.pid})" for child in left)
            line = f"site.setup: left running on {os.uname().nodename}: {names}"
            print(line, file=sys.stderr, flush=True)
        if end_left:
            for child in left:
                child.kill()
            psutil.wait_procs(left, END_S)


def setup_script(setup: str) -> str:
    """Return a bash script that runs a set-up and prints its variables; other output to stderr."""
    return f"exec 3>&1 >&2; {_ON_ERROR}{setup}\n\ntrap - ERR\nexec /usr/bin/env -0 >&3\n"


def _run_setup(setup: str, base: Mapping[str, str]) -> dict[str, str]:
    """Run a set-up, print its output, and return the variables that it leaves.

    Raises:
        UserError: if it fails, or there is no room for temporary files.
    """
    node = os.uname().nodename
    if reason := why_no_temporary_room():
        raise UserError(f"{node}: {reason}")
    # Files, because a process that the set-up leaves running would hold a pipe open.
    with tempfile.TemporaryFile() as variables, tempfile.TemporaryFile() as output:
        try:
            shell = subprocess.run(
                ["bash", "-c", setup_script(setup), "site.setup"],
                env=dict(base),
                stdin=subprocess.DEVNULL,
                stdout=variables,
                stderr=output,
                timeout=SETUP_S,
            )
        except OSError as error:
            raise UserError(f"site.setup: cannot be run on {node} ({error})") from None
        except subprocess.TimeoutExpired:
            raise UserError(f"site.setup: took more than {SETUP_S:.0f} s on {node}") from None
        output.seek(0)
        printed = output.read().decode(errors="replace").strip()
        variables.seek(0)
        variables_text = os.fsdecode(variables.read())
    if printed:
        print(printed, file=sys.stderr, flush=True)
    # The set-up may have filled the disk itself.
    if (shell.returncode or not variables_text) and (reason := why_no_temporary_room()):
        raise UserError(f"{node}: {reason}")
    if shell.returncode:
        last = (printed.splitlines() or ["it printed nothing"])[-1].removeprefix("site.setup: ")
        raise UserError(
            f"site.setup: failed with exit code {shell.returncode} on {node}: {last}; it must run "
            "in bash on every node"
        )
    if not variables_text:
        raise UserError(
            f"site.setup: exited on {node} before its last line; remove `exit`, or close an open "
            "quote or here-document"
        )
    return dict(entry.split("=", 1) for entry in variables_text.split("\0") if "=" in entry)


def why_not_at_site(site: CellSite) -> str:
    """Say why cells cannot run at the site, as seen from this machine; empty if they can.

    The set-up is meant for the nodes. It runs here only when it may provide apptainer.

    Raises:
        UserError: if the set-up fails, or a secret is not set.
    """
    if site.container is None and site.setup:
        return ""
    return why_not_in_image(site, site_environment(site, os.environ))


def why_not_in_image(site: CellSite, env: Mapping[str, str]) -> str:
    """Say why this machine cannot run the site's image; empty if it can, or there is none.

    Args:
        site: the site.
        env: the result of site_environment.
    """
    if site.container is None:
        return ""
    node = os.uname().nodename
    if shutil.which("apptainer", path=env.get("PATH")) is None:
        return (
            f"site.container: there is no apptainer on the PATH of {node} after site.setup; load "
            "its module there, or set site.container to null"
        )
    if not Path(site.container).exists():
        return f"site.container: {site.container} is not there on {node}"
    return ""


def command_at_site(
    site: CellSite, command: Sequence[str], *, cuda: bool, folders: Iterable[Path]
) -> list[str]:
    """Return a Python command as it runs at a site: in the site's image, if it has one.

    Args:
        site: the site.
        command: begins with this interpreter, which is replaced by the image's own.
        cuda: whether it needs the GPUs and the driver.
        folders: folders that it needs beside the project, the working folder and the results.
    """
    if site.container is None:
        return list(command)
    here = Path.cwd()
    visible = {
        ROOT,
        here,
        here.resolve(),
        Path("results").resolve(),
        *(folder.resolve() for folder in folders),
    }
    binds = [f"--bind={folder}" for folder in sorted(visible) if folder.exists()]
    options = [*(["--nv"] if cuda else []), *binds, f"--pwd={here}"]
    image = str(Path(site.container).resolve())
    return ["apptainer", "exec", *options, image, PYTHON_OF_IMAGE, *command[1:]]


def make_local_folder(setting: str | None) -> Path | None:
    """Make the folder for caches and temporary files on this node; None for the system's own.

    Args:
        setting: ``site.scratch``.

    Raises:
        UserError: if the folder cannot be made, or its name has a variable that is not set.
    """
    if not setting:
        return None
    folder = Path(os.path.expandvars(setting)).expanduser()
    if "$" in str(folder):
        raise UserError(
            f"site.scratch: {setting} names a variable that is not set on {os.uname().nodename}"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"site.scratch: {folder} cannot be made on {os.uname().nodename} ({error.strerror})"
        ) from None
    return folder


def make_caches(folder: Path) -> dict[str, str]:
    """Return the variables that put caches and temporary files into a folder.

    Each cell gets its own empty folder, so that no cell profits from what another has compiled.
    For torch.compile, compile_cache takes precedence.
    """
    folders = {name: folder / place for name, place in (CACHES | {"TMPDIR": "tmp"}).items()}
    for path in folders.values():
        path.mkdir()
    return {name: str(path) for name, path in folders.items()}


def compile_cache(cell: Cell) -> dict[str, str]:
    """Return the variables that put torch.compile's cache into the run's folder of results.

    All cells of a matrix share it: the first seed compiles, the others load what it compiled. That
    changes how long compilation takes, which is a phase of its own, and nothing that is compared.
    """
    if cell.compilation == "none":
        return {}
    folder = Path("results", cell.run, ".compiled").absolute()
    return {
        "TORCHINDUCTOR_CACHE_DIR": str(folder),
        "TRITON_CACHE_DIR": str(folder / "triton"),
    }


def enter(site: CellSite, *, cuda: bool, folders: Iterable[Path]) -> None:
    """Restart this process in its site's environment, unless it already runs there.

    Raises:
        UserError: if the set-up fails, or there is no apptainer.
    """
    if site == CellSite() or ENTERED_VARIABLE in os.environ:
        return
    env = site_environment(site, os.environ) | {ENTERED_VARIABLE: "1"}
    if site.container is not None:
        if reason := why_not_in_image(site, env):
            raise UserError(reason)
        env |= IN_IMAGE
        env["PYTHONPATH"] = str(SCRIPTS)
    command = command_at_site(site, [sys.executable, *sys.argv], cuda=cuda, folders=folders)
    os.execvpe(command[0], command, env)
