"""The record of the nodes on which all cells of a block run (cluster.block: pinned)."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from shardmark.errors import UserError
from shardmark.files import write_text
from shardmark.metrics import read_metrics

# Names become part of a command line.
_Node = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=255)]


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    nodes: list[_Node] = Field(min_length=1)


def write_nodes(record: Path, nodes: Sequence[str]) -> None:
    """Record a block's nodes."""
    write_text(record, _Record(nodes=list(nodes)).model_dump_json())


def read_nodes(record: Path) -> list[str]:
    """Return a block's nodes.

    Raises:
        FileNotFoundError: if the record is missing or damaged. Snakemake takes this as a value that
            it will know once the record is made.
    """
    try:
        return _Record.model_validate_json(record.read_bytes()).nodes
    except (OSError, ValueError):
        raise FileNotFoundError(errno.ENOENT, "no record of nodes", str(record)) from None


def nodes_of_results(
    results: Iterable[Path], local: Sequence[str]
) -> tuple[Path, Sequence[str]] | None:
    """Return the first result that says where its block ran, and the nodes; None if none does.

    Args:
        results: the metrics.json files of the block's cells that can run; they may be missing.
        local: the nodes of a result that did not run on Slurm; none if this run is on Slurm, which
            may not have them.
    """
    for path in results:
        with contextlib.suppress(UserError):
            slurm = read_metrics(path).slurm
            if nodes := slurm.nodes if slurm else local:
                return path, nodes
    return None


def restore_record(record: Path, results: Iterable[Path], local: Sequence[str]) -> str:
    """Make a missing or damaged record again from the results of the block's cells.

    Without such a result a damaged record is removed, so that the nodes are chosen again. Snakemake
    would run the finished cells again if the record was missing. If it is there but damaged,
    Snakemake cannot make it again: when it runs the rule of an ancient input whose file is there,
    it runs nothing else that depends on it, not even to make missing results.

    Args:
        record: the record.
        results: as for ``nodes_of_results``.
        local: the same.

    Returns:
        what was done, in words; empty if the record is good, or missing before any result.
    """
    with contextlib.suppress(FileNotFoundError):
        read_nodes(record)
        return ""
    damage = "damaged" if record.is_file() else "missing"
    if known := nodes_of_results(results, local):
        path, nodes = known
        write_nodes(record, nodes)
        return f"{record}: was {damage}; {path} says that the nodes are {', '.join(nodes)}"
    if damage == "missing":
        return ""
    record.unlink()
    return f"{record}: was damaged; the nodes of its block are chosen again"
