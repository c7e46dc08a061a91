"""Explain why no rule makes a target on the command line: it is not in the matrix."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from shardmark.config.messages import hint_at_allowed
from shardmark.config.schema import Config

_CELL = r"results/(?P<run>[^/]+)/(?P<workload>[^/]+)/(?P<strategy>[^/]+)/gpus(?P<gpus>[^/]+)/seed"
_CASE = r"results/(?P<run>[^/]+)/parity/(?P<workload>[^/]+)/(?P<strategy>[^/]+)/ranks(?P<gpus>.+)"
_SEARCH = (
    r"results/(?P<run>[^/]+)/largest_batch/(?P<workload>[^/]+)/(?P<strategy>[^/]+)/gpus(?P<gpus>.+)"
)
_FORMS = (
    re.compile(rf"{_CELL}(?P<seed>[^/]+)(?P<file>/[^/]+)?"),
    re.compile(rf"{_CASE}\.json"),
    re.compile(rf"{_SEARCH}\.json"),
)


def why_not_in_matrix(arguments: Iterable[str], config: Config) -> list[str]:
    """Say, for each cell or parity case among the arguments, why it is not in the matrix."""
    lines = []
    for argument in arguments:
        target = os.path.relpath(argument) if argument else ""
        for form in _FORMS:
            if match := form.fullmatch(target):
                cell = match.groupdict(default="")
                reasons = list(_reasons(cell, config))
                whole = target if cell.get("file", target) else f"{target}/metrics.json"
                if not reasons and (whole != target or Path(argument).is_absolute()):
                    reasons = [f"name its file from the project's folder on, {whole}"]
                lines += [f"{argument}: {'; '.join(reasons)}"] if reasons else []
    return lines


def _reasons(cell: dict[str, str], config: Config) -> Iterator[str]:
    if cell["run"] != config.run:
        yield f"the configuration's run is {config.run}; give that of {cell['run']} (--configfile)"
        return
    matrix, in_lists = config.matrix, True
    for what, key, allowed in (
        ("workload", "workloads", matrix.workloads),
        ("strategy", "strategies", matrix.strategies),
        ("gpus", "gpus", matrix.gpus),
        ("seed", "seeds", matrix.seeds),
    ):
        given = cell.get(what)
        if given is not None and given not in map(str, allowed):
            hint = hint_at_allowed(given, list(map(str, allowed)))
            yield f"{what} {given} is not in matrix.{key}; {hint}"
            in_lists = False
    seed = int(cell["seed"]) if in_lists and "seed" in cell else None
    if in_lists and not matrix.has(cell["workload"], cell["strategy"], int(cell["gpus"]), seed):
        yield "no entry of matrix.only allows it"
