"""Measure an all-reduce over the replicas of the largest cell, launched like a cell."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shardmark.cells import Cell, cell_of
from shardmark.codebase import SCRIPTS
from shardmark.config.schema import Config
from shardmark.disk import disk_errors_explained
from shardmark.doctor.finding import Finding
from shardmark.errors import UserError
from shardmark.launching.endings import find_failure
from shardmark.launching.launch import launch
from shardmark.launching.scratch import scratch_folder
from shardmark.strategies import STRATEGIES

LIMIT_S = 90.0
# NCCL's log of each channel: 0[0] -> 1[1] via P2P/CUMEM, ... [send] via NET/IB/0
_VIA = re.compile(r" via ((?:P2P|SHM|NET)/\w+)")


def reduction_cell(config: Config, gpus: int) -> Cell:
    """Return a cell with this many replicas, one process per replica."""
    matrix = config.matrix
    cell = cell_of(config, matrix.workloads[0], matrix.strategies[0], gpus, matrix.seeds[0])
    options = STRATEGIES["ddp"].options().model_dump()
    return cell.model_copy(update={"base": "ddp", "options": options, "strategy": "doctor"})


def check_all_reduce(config: Config, gpus: int) -> Iterator[Finding]:
    """Check how fast the replicas all-reduce, and over which transport."""
    if gpus < 2:
        yield Finding("ok", "all-reduce", "one replica has nothing to reduce")
        return
    cell = reduction_cell(config, gpus)
    advice = "name the interface between nodes in NCCL_SOCKET_IFNAME, or GLOO_SOCKET_IFNAME"
    try:
        result = measure_all_reduce(cell, Path("results", config.run, "doctor.json"))
    except UserError as error:
        yield Finding("FAIL", "all-reduce", str(error), advice)
        return
    bus_gb_per_s = float(result["gb_per_s"])
    transports = " and ".join(result["via"]) or "unknown"
    speed = f"{bus_gb_per_s:.3g} GB/s of bus over {gpus} ranks, {result['backend']}"
    if cell.device == "cpu":
        yield Finding("ok", "all-reduce", speed)
    elif cell.nodes > 1 and "NET/Socket" in result["via"]:
        cause = "this is TCP: if the nodes have InfiniBand or RoCE, ask the site how NCCL finds it"
        yield Finding("warn", "all-reduce", f"{speed} via {transports}", cause)
    elif cell.nodes == 1 and any(not via.startswith("P2P") for via in result["via"]):
        cause = "GPUs that do not reach each other directly; see topology"
        yield Finding("warn", "all-reduce", f"{speed} via {transports}", cause)
    else:
        yield Finding("ok", "all-reduce", f"{speed} via {transports}")


def measure_all_reduce(cell: Cell, result: Path) -> dict[str, Any]:
    """Launch the ranks and read the result that they write.

    Args:
        cell: says how many ranks on how many nodes.
        result: the scratch folder lies beside this path; the file itself is not written.

    Returns:
        ``backend``; ``gb_per_s``, bus bandwidth; ``via``, NCCL's transports.

    Raises:
        UserError: if the ranks fail or the folder cannot be made, with the reason.
    """
    with disk_errors_explained(), scratch_folder(result) as scratch:
        (scratch / "cell.json").write_text(cell.model_dump_json(by_alias=True))
        arguments = ["--cell", str(scratch / "cell.json"), "--scratch", str(scratch)]
        log = {
            "NCCL_DEBUG": "INFO",
            "NCCL_DEBUG_SUBSYS": "INIT,P2P,NET",
            "NCCL_DEBUG_FILE": str(scratch.absolute() / "nccl.%h.%p.log"),
        }
        with contextlib.redirect_stdout(io.StringIO()):
            ended = launch(
                SCRIPTS / "measure_all_reduce.py",
                arguments,
                cell,
                scratch,
                limit_s=LIMIT_S,
                extra_env=log,
            )
        failure = find_failure(cell, ended)
        if failure is not None:
            raise UserError(f"{failure[0]}: {failure[1].exception}")
        measured: dict[str, Any] = json.loads((scratch / "all_reduce.json").read_text())
        logs = "".join(path.read_text(errors="replace") for path in scratch.glob("nccl.*.log"))
    return measured | {"via": sorted(set(_VIA.findall(logs)))}
