"""Every planned search for the largest batch, with its result or why there is none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shardmark.cells import BatchSearch, batch_searches_of
from shardmark.codebase import code_of_search, code_sha256
from shardmark.config.schema import Config
from shardmark.errors import UserError
from shardmark.escaping import for_terminal
from shardmark.largest_batch import LargestBatch
from shardmark.result_files import read_record

# How the last message of a script begins, if it ended without a result.
_MESSAGE = "shardmark: "


@dataclass(frozen=True)
class PlannedSearch:
    """One search of the matrix.

    Attributes:
        search: as the configuration defines it now.
        largest: its result; None if it is missing or refused.
        stale: whether other code than today's made the result; it still counts.
        refusal: why its file does not count; empty if it does.
        failure: why its last try left no result; empty if it left one, was not tried or was killed.
    """

    search: BatchSearch
    largest: LargestBatch | None = None
    stale: bool = False
    refusal: str = ""
    failure: str = ""


def read_searches(config: Config, root: Path = Path()) -> list[PlannedSearch]:
    """Return all planned searches in the configuration's order, with their results."""
    return [_read(search, root) for search in batch_searches_of(config)]


def log_path(search: BatchSearch) -> Path:
    """Return the log of a search, relative to the project."""
    return search.file.with_suffix(".log")


def _read(search: BatchSearch, root: Path) -> PlannedSearch:
    path = root / search.file
    if not path.exists():
        return PlannedSearch(search, failure=_why_failed(search, root))
    try:
        largest = read_record(path, LargestBatch)
    except UserError as error:
        return PlannedSearch(search, refusal=str(error))
    if largest.search_sha256 != search.fingerprint():
        reason = "its definition has changed since; the next run searches again"
        return PlannedSearch(search, refusal=f"{path}: {reason}")
    stale = largest.code_sha256 != code_sha256(code_of_search(search))
    return PlannedSearch(search, largest, stale)


def _why_failed(search: BatchSearch, root: Path) -> str:
    """Return the message with which the script of a search ended; empty if it left none."""
    try:
        text = (root / log_path(search)).read_text(errors="replace")
    except OSError:
        return ""
    _, found, message = f"\n{text}".rpartition(f"\n{_MESSAGE}")
    return for_terminal(message.strip()).removeprefix(f"{search.title}: ") if found else ""
