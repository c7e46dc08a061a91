"""The library's packages have an order: each uses those before it, and its root the first alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
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
    """Packages of the library that a file imports from."""
    for node in ast.walk(ast.parse(path.read_text())):
        modules = []
        if isinstance(node, ast.ImportFrom) and node.module:
            modules += [f"{node.module}.{alias.name}" for alias in node.names]
        modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for first, *rest in (module.split(".") for module in modules):
            if first == "shardmark" and rest and rest[0] in ORDER:
                yield rest[0]


def test_every_package_has_its_place() -> None:
    assert {path.parent.name for path in LIBRARY.glob("*/__init__.py")} == set(ORDER)


def test_a_module_imports_only_what_stands_before_its_package() -> None:
    against = []
    for path in sorted(LIBRARY.rglob("*.py")):
        package = path.relative_to(LIBRARY).parts[0]
        allowed = ORDER[: ORDER.index(package) + 1] if package in ORDER else ORDER[:1]
        against += [f"{path.name} imports {name}" for name in imported(path) if name not in allowed]
    assert not against
