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
from shardmark.measurement.telemetry import node_name
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


def restore_record(record: Path, results: Iterable[Path]) -> str:
    """Make a damaged record again from the results of the block's cells; remove it without any.

    Snakemake itself cannot make it again: when it runs the rule of an ancient input whose file is
    there, it runs nothing else that depends on it, not even to make missing results.

    Args:
        record: the record; it may be missing.
        results: the block's metrics.json files; they may be missing.

    Returns:
        what was done, in words; empty if the record was missing or good.
    """
    try:
        read_nodes(record)
    except FileNotFoundError:
        if not record.is_file():
            return ""
    else:
        return ""
    for path in results:
        with contextlib.suppress(UserError):
            slurm = read_metrics(path).slurm
            nodes = slurm.nodes if slurm else [node_name()]
            write_nodes(record, nodes)
            return f"{record}: was damaged; {path} says that the nodes are {', '.join(nodes)}"
    record.unlink()
    return f"{record}: was damaged; the nodes of its block are chosen again"
