"""Which source files a result depends on, and one checksum over them.

A cell must run again when code that can affect it was edited, and only then. Time stamps cannot
say that (a checkout or a copy touches files), so the workflow hands each job the checksum of its
code as a parameter. Free of torch: the planner computes it for every cell.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

from shardmark.cells import Cell, ParityCase
from shardmark.strategies import STRATEGIES

SCRIPTS = Path(__file__).resolve().parents[1]
PACKAGE = "shardmark"
# Beside a cell's result: the checksum of the code that made it, gone where the cell is owed a run.
STAMP = "code.sha256"


def sources(script: Path) -> list[Path]:
    """A script and all of the library and of the scripts that it imports, directly or not.

    Imports inside functions count: they are late, not optional.

    Args:
        script: a file in the folder of the workflow's scripts.

    Returns:
        Absolute paths, sorted.

    Raises:
        FileNotFoundError: if the script does not exist.
        SyntaxError: if it, or a module it imports, is not Python.
    """
    return sorted(_closure(script.resolve()))


@functools.cache
def _closure(script: Path) -> frozenset[Path]:
    found = {script}
    left = [script]
    while left:
        for path in _imported(left.pop()) - found:
            found.add(path)
            left.append(path)
    return frozenset(found)


@functools.cache
def _imported(path: Path) -> frozenset[Path]:
    """The library's files, and the scripts, that one file imports."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_bytes(), filename=str(path))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            # ``from shardmark import cells`` names a module where ``from shardmark.cells import
            # Cell`` names an attribute; a file exists for the first only.
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    files: set[Path] = set()
    for module in modules:
        parts = module.split(".")
        files.add(SCRIPTS.joinpath(*parts).with_suffix(".py"))
        if parts[0] == PACKAGE:
            # Importing a module runs its packages first.
            files |= {SCRIPTS.joinpath(*parts[:end], "__init__.py") for end in range(1, len(parts))}
    return frozenset(file for file in files if file.is_file())


@functools.cache
def _content_sha256(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


def code_sha256(paths: Iterable[Path]) -> str:
    """SHA-256 over the names (relative to the scripts' folder) and contents of files.

    A file is read once in a process: the checksum is of the code as it was when first asked for.
    """
    digest = hashlib.sha256()
    for path in sorted(set(paths)):
        digest.update(path.relative_to(SCRIPTS).as_posix().encode())
        digest.update(b"\0")
        digest.update(_content_sha256(path))
    return digest.hexdigest()


def code_of_cell(cell: Cell) -> list[Path]:
    """The code that can change a cell's result: the launcher's and its training script's."""
    return _with_training(cell, "run_cell.py")


def code_of_parity(case: ParityCase) -> list[Path]:
    """The code that can change a verdict of the parity gate, the oracle's left out."""
    return _with_training(case.cell, "run_parity.py")


def _with_training(cell: Cell, script: str) -> list[Path]:
    # The training script is launched by its name, which no import shows.
    training = SCRIPTS / STRATEGIES[cell.base].script
    return sorted({*sources(SCRIPTS / script), *sources(training)})
