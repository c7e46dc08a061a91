"""Checksums of the tables that are derived from the results.

A table that someone edited is newer than its inputs, so Snakemake would consider it up to date and
draw figures from it. The checksum file beside it reveals the edit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from shardmark.files import write_text

ENDING = ".sha256"


def record_checksums(tables: Iterable[Path], target: Path) -> None:
    """Write the checksums of tables into a file beside them, in the format of ``sha256sum -c``."""
    lines = [f"{_sha256(table)}  {table.name}\n" for table in tables]
    write_text(target, "".join(lines))


def edited_tables(folder: Path) -> Iterator[Path]:
    """Yield the tables in or below a folder that were changed after they were written."""
    for record in sorted(folder.rglob(f"*{ENDING}")):
        for line in record.read_text(errors="replace").splitlines():
            checksum, _, name = line.partition("  ")
            table = record.with_name(Path(name).name)
            if table.is_file() and _sha256(table) != checksum:
                yield table


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
