"""Find the parity gate's current verdict on a case."""

from __future__ import annotations

from pathlib import Path

from shardmark.cells import ParityCase
from shardmark.parity_result import Parity, read_parity


def current_verdict(case: ParityCase, root: Path) -> Parity | None:
    """Return the verdict on a case as it is defined today, or None.

    Raises:
        UserError: if the verdict's file is damaged.
    """
    path = root / case.file
    if not path.exists():
        return None
    verdict = read_parity(path)
    return verdict if verdict.case_sha256 == case.fingerprint() else None
