"""What a site wants around the processes of a cell: a set-up, variables, an image, a local disk.

Read by the launcher of each node, and free of torch.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from shardmark.codebase import SCRIPTS
from shardmark.config import CellSite
from shardmark.errors import UserError

ROOT = SCRIPTS.parents[1]
# Set by the workflow and not part of a cell: where caches lie changes no result.
SCRATCH_VARIABLE = "SHARDMARK_SCRATCH"
# Marks a process that has its site's surroundings already.
ENTERED_VARIABLE = "SHARDMARK_ENTERED"
SETUP_S = 300.0
# A line that fails ends the set-up, named by its own number: this stands before its first line, on
# the same line. Not within a file that the set-up sources, and not for such a file's own exit code,
# if it is there: a file that ends with `[ -d x ] && . x` has done all it should.
_ON_ERROR = (
    "trap 'shardmark_code=$?; "
    'if [ -z "${BASH_SOURCE[0]:-}" ]; then shardmark_file=; '
    'case $BASH_COMMAND in ". "*|"source "*) eval "shardmark_file=(${BASH_COMMAND#* })";; esac; '
    'if [ -r "$shardmark_file" ] || type -P -- "$shardmark_file" > /dev/null; then '
    'echo "site.setup: line $LINENO ($BASH_COMMAND) ended with exit code $shardmark_code"; '
    'else echo "site.setup: line $LINENO ($BASH_COMMAND) failed"; exit $shardmark_code; fi; fi'
    "' ERR; "
)
# Of an image: its own, with the packages that it has.
PYTHON_OF_IMAGE = "python3"
# Apptainer shows the image the user's home, whose packages are not its own.
IN_IMAGE = {"PYTHONNOUSERSITE": "1"}
CACHES = {
    "CUDA_CACHE_PATH": "cuda",
    "MPLCONFIGDIR": "matplotlib",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TORCH_EXTENSIONS_DIR": "extensions",
    "TRITON_CACHE_DIR": "triton",
    "XDG_CACHE_HOME": "cache",
}


def environment_at(site: CellSite, base: Mapping[str, str]) -> dict[str, str]:
    """The variables of a process at a site: after its set-up, with its own.

    The set-up runs once, in a shell of its own, so that no shell stands between the launcher and
    what it has to end. It runs like the user's shell, except that a failing line ends it.

    Args:
        site: the site.
        base: the variables that the set-up starts from.

    Raises:
        UserError: if the set-up fails, or a secret is not set.
    """
    env = _after_setup(site.setup, base) if site.setup else dict(base)
    if missing := [name for name in site.secret_environment if name not in env]:
        raise UserError(
            f"site.secret_environment: {', '.join(missing)} not set on {os.uname().nodename}; "
            "export it where Snakemake is started, or in site.setup"
        )
    return env | site.environment


def setup_script(setup: str) -> str:
    """A set-up for bash, which prints the variables it leaves, and all else to stderr."""
    return f"exec 3>&1 >&2; {_ON_ERROR}{setup}\n\ntrap - ERR\nexec /usr/bin/env -0 >&3\n"


def _after_setup(setup: str, base: Mapping[str, str]) -> dict[str, str]:
    """The variables that a set-up leaves; what it prints is printed.

    Raises:
        UserError: if it fails.
    """
    where = os.uname().nodename
    # Files and no pipes: what a set-up leaves running would hold a pipe open.
    with tempfile.TemporaryFile() as variables, tempfile.TemporaryFile() as said:
        try:
            done = subprocess.run(
                ["bash", "-c", setup_script(setup), "site.setup"],
                env=dict(base),
                stdin=subprocess.DEVNULL,
                stdout=variables,
                stderr=said,
                timeout=SETUP_S,
            )
        except OSError as error:
            raise UserError(f"site.setup: cannot be run on {where} ({error})") from None
        except subprocess.TimeoutExpired:
            raise UserError(f"site.setup: took more than {SETUP_S:.0f} s on {where}") from None
        said.seek(0)
        words = said.read().decode(errors="replace").strip()
        variables.seek(0)
        found = os.fsdecode(variables.read())
    if words:
        print(words, file=sys.stderr, flush=True)
    if done.returncode:
        last = (words.splitlines() or ["it printed nothing"])[-1].removeprefix("site.setup: ")
        raise UserError(
            f"site.setup: failed with exit code {done.returncode} on {where}: {last}; it must run "
            "in bash on every node"
        )
    if not found:
        raise UserError(
            f"site.setup: exited on {where} before its last line; remove `exit`, or close an open "
            "quote or here-document"
        )
    return dict(entry.split("=", 1) for entry in found.split("\0") if "=" in entry)


def why_not_at_site(site: CellSite) -> str:
    """Why cells cannot run at the site, as seen from this machine; empty if they can.

    The set-up is for the nodes. It runs here only where it may bring apptainer.

    Raises:
        UserError: if it fails, or a secret is not set.
    """
    if site.container is None and site.setup:
        return ""
    return why_not_in_image(site, environment_at(site, os.environ))


def why_not_in_image(site: CellSite, env: Mapping[str, str]) -> str:
    """Why this machine cannot run the site's image; empty if it can, or there is none.

    Args:
        site: the site.
        env: as environment_at gives it.
    """
    if site.container is None:
        return ""
    where = os.uname().nodename
    if shutil.which("apptainer", path=env.get("PATH")) is None:
        return (
            f"site.container: there is no apptainer on the PATH of {where} after site.setup; load "
            "its module there, or set site.container to null"
        )
    if not Path(site.container).exists():
        return f"site.container: {site.container} is not there on {where}"
    return ""


def contained(
    site: CellSite, command: Sequence[str], *, cuda: bool, folders: Iterable[Path]
) -> list[str]:
    """A Python command as it runs at a site: in its image, if it has one.

    Args:
        site: the site.
        command: begins with this interpreter, which the image's own takes the place of.
        cuda: whether it needs the GPUs and the driver.
        folders: what it reads and writes beside the project, the data and the results.
    """
    if site.container is None:
        return list(command)
    here = Path.cwd()
    seen = {ROOT, here, here.resolve(), Path("results").resolve(), *(f.resolve() for f in folders)}
    binds = [f"--bind={folder}" for folder in sorted(seen) if folder.exists()]
    options = [*(["--nv"] if cuda else []), *binds, f"--pwd={here}"]
    image = str(Path(site.container).resolve())
    return ["apptainer", "exec", *options, image, PYTHON_OF_IMAGE, *command[1:]]


def local_folder(named: str | None) -> Path | None:
    """The folder for caches and temporary files on this node; None for the system's own.

    Args:
        named: ``site.scratch``.

    Raises:
        UserError: if it cannot be made.
    """
    if not named:
        return None
    folder = Path(os.path.expandvars(named)).expanduser()
    if "$" in str(folder):
        raise UserError(
            f"site.scratch: {named} names a variable that is not set on {os.uname().nodename}"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"site.scratch: {folder} cannot be made on {os.uname().nodename} ({error.strerror})"
        ) from None
    return folder


def caches_in(folder: Path) -> dict[str, str]:
    """The variables that put caches and temporary files into a folder.

    Of a cell's own, empty at first: no cell finds what another has compiled, whatever the order.
    """
    folders = {name: folder / place for name, place in (CACHES | {"TMPDIR": "tmp"}).items()}
    for path in folders.values():
        path.mkdir()
    return {name: str(path) for name, path in folders.items()}


def enter(site: CellSite, *, cuda: bool, folders: Iterable[Path]) -> None:
    """Become the same process at its site, unless it is there already.

    Raises:
        UserError: if the set-up fails, or there is no apptainer.
    """
    if site == CellSite() or ENTERED_VARIABLE in os.environ:
        return
    env = environment_at(site, os.environ) | {ENTERED_VARIABLE: "1"}
    if site.container is not None:
        if reason := why_not_in_image(site, env):
            raise UserError(reason)
        env |= IN_IMAGE
        env["PYTHONPATH"] = str(SCRIPTS)
    command = contained(site, [sys.executable, *sys.argv], cuda=cuda, folders=folders)
    os.execvpe(command[0], command, env)
