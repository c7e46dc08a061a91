"""Which source files a result depends on, and one checksum over them.

A cell must run again when code that can affect it was edited, and only then. Time stamps cannot
show that (a checkout or a copy changes them), so the workflow passes each job the checksum of its
code as a parameter. This module does not import torch: the planner computes the checksum for every
cell.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from shardmark.cells import BatchSearch, Cell, ParityCase
from shardmark.config.schema import Workload
from shardmark.errors import UserError
from shardmark.strategies import spec_of

SCRIPTS = Path(__file__).resolve().parents[1]
GATE = SCRIPTS / "shardmark/parity"
# File beside a cell's result with the checksum of the code that made it; it is missing if the cell
# must run again.
STAMP = "code.sha256"


def sources(script: Path, without: Path | None = None) -> list[Path]:
    """Return a script and all library files and scripts that it imports, directly or indirectly.

    Imports inside functions count: they are late but not optional.

    Args:
        script: a file in the folder of the workflow's scripts.
        without: a folder to leave out, with what only its files import.

    Returns:
        Absolute paths, sorted.

    Raises:
        FileNotFoundError: if the script does not exist.
        SyntaxError: if it, or a module it imports, is not Python.
    """
    return sorted(_all_imported(script.resolve(), without))


@functools.cache
def _all_imported(script: Path, without: Path | None) -> frozenset[Path]:
    files = {script}
    unread = [script]
    while unread:
        for path in _imported_by_file(unread.pop(), script.parent) - files:
            if without not in path.parents:
                files.add(path)
                unread.append(path)
    return frozenset(files)


@functools.cache
def _imported_by_file(path: Path, root: Path) -> frozenset[Path]:
    """Return the files that one file imports from the scripts' folder or from ``root``."""
    files: set[Path] = set()
    for module in _imported_modules(path, root):
        parts = module.split(".")
        for folder in {SCRIPTS, root}:
            files.add(folder.joinpath(*parts).with_suffix(".py"))
            # Importing a module runs its packages first.
            files |= {
                folder.joinpath(*parts[:end], "__init__.py") for end in range(1, len(parts) + 1)
            }
    return frozenset(file for file in files if file.is_file())


def _imported_modules(path: Path, root: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_bytes(), filename=str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = () if not node.level else path.parents[node.level - 1].relative_to(root).parts
            module = ".".join((*parents, *filter(None, [node.module])))
            # ``from shardmark import cells`` imports a module, ``from shardmark.cells import Cell``
            # an attribute. Only the module has a file.
            yield from filter(None, (module, *(f"{module}.{alias.name}" for alias in node.names)))


@functools.cache
def _content_sha256(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


def code_sha256(paths: Iterable[Path]) -> str:
    """Return the SHA-256 over the names (relative to the scripts' folder) and contents of files.

    Each file is read once per process, so later edits do not change the checksum.
    """
    return _sha256_of(frozenset(paths))


@functools.cache
def _sha256_of(paths: frozenset[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        # A file of the user's own is known by its name alone, so a project may be moved.
        own = not path.is_relative_to(SCRIPTS)
        digest.update((path.name if own else path.relative_to(SCRIPTS).as_posix()).encode())
        digest.update(b"\0")
        digest.update(_content_sha256(path))
    return digest.hexdigest()


def code_of_cell(cell: Cell) -> frozenset[Path]:
    """Return the code that can change a cell's result.

    It is the launcher's, the training script's, and that of the user's own files, without the
    parity gate's: a rank imports the gate, but a cell does not use it.
    """
    return _with_training("run_cell.py", cell, without=GATE)


def code_of_parity(case: ParityCase) -> frozenset[Path]:
    """Return the code that can change a verdict of the parity gate, without the oracle's."""
    return _with_training("run_parity.py", case.cell)


def code_of_oracle(definition: Workload) -> frozenset[Path]:
    """Return the code that can change the oracle of a workload."""
    code = frozenset(sources(SCRIPTS / "make_oracle.py"))
    return code.union(*map(code_of_file, definition.own_code))


def code_of_search(search: BatchSearch) -> frozenset[Path]:
    """Return the code that can change the largest batch that a search finds."""
    return _with_training("find_largest_batch.py", search.cell, without=GATE)


def _with_training(script: str, cell: Cell, without: Path | None = None) -> frozenset[Path]:
    # The training script is launched by its name, so no import refers to it.
    code = _of_scripts((script, spec_of(cell.base).script), without)
    return code.union(*map(code_of_file, cell.own_code))


@functools.cache
def _of_scripts(scripts: Sequence[str], without: Path | None) -> frozenset[Path]:
    return frozenset(path for script in scripts for path in sources(SCRIPTS / script, without))


def code_of_file(file: str) -> frozenset[Path]:
    """Return a file of the user's own, and what it imports.

    Raises:
        UserError: if it cannot be read.
    """
    path = Path(file)
    try:
        return frozenset(sources(path))
    except (SyntaxError, ValueError):  # the check of the file says where, before any job
        return frozenset({path.resolve()})
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from error
