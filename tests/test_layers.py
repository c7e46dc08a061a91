"""The library's packages have an order: each uses those before it, and its root the first alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

LIBRARY = Path(__file__).resolve().parents[1] / "workflow/scripts/shardmark"
ORDER = (
    "config",
    "processes",
    "workload",
    "measurement",
    "training",
    "parity",
    "slurm",
    "launching",
    "results",
    "controller",
    "status",
    "statistics",
    "figures",
    "report",
    "doctor",
)


def imported(path: Path) -> Iterator[str]:
    """Yield what a file imports from the library, late imports and those for types included."""
    for node in ast.walk(ast.parse(path.read_text())):
        modules = []
        if isinstance(node, ast.ImportFrom) and node.module:
            modules += [f"{node.module}.{alias.name}" for alias in node.names]
        modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for first, _, rest in (module.partition(".") for module in modules):
            if first == "shardmark" and rest:
                yield rest


def imported_files(path: Path) -> Iterator[Path]:
    for name in imported(path):
        # Of shardmark.cells.Cell, the last part is no file.
        for file in (LIBRARY.joinpath(*name.split(".")), LIBRARY.joinpath(*name.split(".")[:-1])):
            if file.with_suffix(".py").is_file():
                yield file.with_suffix(".py")


def test_every_package_has_its_place() -> None:
    assert {path.parent.name for path in LIBRARY.glob("*/__init__.py")} == set(ORDER)


def test_a_module_imports_only_what_stands_before_its_package() -> None:
    against = []
    for path in sorted(LIBRARY.rglob("*.py")):
        package = path.relative_to(LIBRARY).parts[0]
        allowed = ORDER[: ORDER.index(package) + 1] if package in ORDER else ORDER[:1]
        used = {name.partition(".")[0] for name in imported(path)} & set(ORDER)
        against += [f"{path.name} imports {name}" for name in used if name not in allowed]
    assert not against


def test_no_modules_import_each_other() -> None:
    graph = {path: set(imported_files(path)) for path in LIBRARY.rglob("*.py")}
    TopologicalSorter(graph).prepare()
