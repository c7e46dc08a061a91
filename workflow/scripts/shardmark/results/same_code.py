"""Which commits hold the same code."""

from __future__ import annotations

import pandas as pd


class SameCode:
    """Which commits hold the same code, as far as the cells can tell.

    A commit that changed only documentation is no reason to refuse a comparison. Two commits hold
    the same code if a cell of each has the same checksum over the files that it depends on. Cells
    whose commit is unknown say nothing.

    Args:
        cells: all cells of the table; this reads their git_commit and code_sha256.
    """

    def __init__(self, cells: pd.DataFrame) -> None:
        self._first: dict[str, str] = {}
        known = cells[cells["git_commit"].notna() & (cells["git_commit"] != "")]
        for _, same in known.groupby("code_sha256"):
            commits = list(same["git_commit"])
            for commit in commits[1:]:
                self._first[self.of(commit)] = self.of(commits[0])
        self._first = {commit: first for commit, first in self._first.items() if commit != first}

    def of(self, commit: str) -> str:
        """Return the commit that represents all commits with the same code."""
        while (before := self._first.get(commit, commit)) != commit:
            commit = before
        return commit
