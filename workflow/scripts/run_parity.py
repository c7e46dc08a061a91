"""Compare one strategy at one replica count with the oracle, and write the verdict as JSON.

The exit status is 0 even if the strategy fails the gate, because that is a result. It is 1 if there
is no result.
"""

from __future__ import annotations

import argparse
import zipfile
import zlib
from pathlib import Path

from shardmark.cells import Cell, ParityCase, parity_case
from shardmark.codebase import SCRIPTS
from shardmark.command import one_message
from shardmark.config.saved import read_config
from shardmark.errors import UserError
from shardmark.files import write_text
from shardmark.launching.endings import find_failure
from shardmark.launching.launch import launch
from shardmark.launching.scratch import scratch_folder
from shardmark.measurement.telemetry import gpu_indices, visible_gpus
from shardmark.metrics import Failure
from shardmark.parity.side_by_side import ALONE_VARIABLE, TURN_VARIABLE, turn_file
from shardmark.parity_result import Parity, parity_result
from shardmark.processes.ending import leave
from shardmark.processes.gpu_sharing import SHARED_DEVICE
from shardmark.strategies import spec_of


def run_parity(
    case: ParityCase,
    oracle: Path,
    result: Path,
    *,
    stall_s: float | None = None,
    script: Path | None = None,
) -> Parity:
    """Run the strategy's own training script through the gate and judge it.

    Args:
        case: the strategy, the replica count and the gate's settings.
        oracle: the file that make_oracle.py wrote for the same workload and replica count.
        result: where the verdict will be written; the scratch folder is created beside it.
        stall_s: end the processes if no rank makes progress for so many seconds.
        script: a script to run instead of the strategy's own; tests pass one that trains wrongly.

    Raises:
        UserError: if there is no verdict.
    """
    cell = case.cell
    if cell.unsupported:
        return parity_result(case, status="unsupported", reason=cell.unsupported)
    require_whole(oracle)
    attempts: list[dict[str, str]] = [{}]
    if cell.device == "cuda" and cell.nodes == 1:
        variables = gpu_variables(cell, result.absolute().parents[2])
        # Nobody knows beforehand how much memory the cases beside it need.
        attempts = [variables, variables | {ALONE_VARIABLE: "1"}]
    shared = SHARED_DEVICE in attempts[0]
    for variables in attempts:
        with scratch_folder(result) as scratch:
            write_text(scratch / "case.json", case.model_dump_json(by_alias=True))
            arguments = ["--case", str(scratch / "case.json"), "--oracle", str(oracle.absolute())]
            ended = launch(
                script or SCRIPTS / spec_of(cell.base).script,
                [*arguments, "--scratch", str(scratch)],
                cell,
                scratch,
                stall_s=stall_s,
                extra_env=variables,
            )
            failed = find_failure(cell, ended, scratch / "trajectories.pt")
            if failed is None:
                return _judged(case, scratch / "trajectories.pt", oracle, shared)
        status, failure = failed
        if status != "oom":
            break
        if variables is not attempts[-1]:
            again = "out of memory: runs again when most of the GPUs' memory is free"
            print(f"[parity of {cell.title}] {again}", flush=True)
    return parity_result(case, status="error", reason=_why(failure), shared_device=shared)


def require_whole(oracle: Path) -> None:
    """Check before ranks start that an oracle's file is complete; remove it if it is damaged.

    torch.save writes a zip archive with a checksum of each part.

    Raises:
        UserError: if the oracle is missing or damaged. The same command then makes it again.
    """
    try:
        with zipfile.ZipFile(oracle) as archive:
            damaged = archive.testzip() is not None
    except FileNotFoundError:
        raise UserError(f"{oracle}: is missing; the same command makes it anew") from None
    except (zipfile.BadZipFile, EOFError, ValueError):
        damaged = True
    if damaged:
        oracle.unlink(missing_ok=True)
        raise UserError(
            f"{oracle}: was damaged and has been removed; the same command makes it anew"
        )


def gpu_variables(cell: Cell, gate: Path) -> dict[str, str]:
    """The environment variables for a case's ranks on one node: which GPUs to use, how to share.

    Cases run side by side, so each strategy starts at another GPU. If there are too few GPUs, all
    ranks share one.

    Args:
        cell: the case's cell.
        gate: the folder of all results of the gate.
    """
    there = visible_gpus()
    variables = {
        TURN_VARIABLE: str(turn_file(gate)),
        # Each rank of the gate gets one core (rules/common.smk, parity_threads).
        "OMP_NUM_THREADS": "1",
    }
    if len(there) < cell.gpus:
        return variables | {SHARED_DEVICE: "1"}
    first = zlib.crc32(cell.strategy.encode()) % len(there)
    chosen = (there[first:] + there[:first])[: cell.gpus]
    return variables | {"CUDA_VISIBLE_DEVICES": gpu_indices(chosen)}


def _why(failure: Failure) -> str:
    where = [failure.phase, None if failure.rank is None else f"rank {failure.rank}"]
    return ", ".join(filter(None, where)) + f": {failure.exception}"


def _judged(case: ParityCase, trajectories_file: Path, oracle_file: Path, shared: bool) -> Parity:
    # Imported only now, so that the launcher does not hold torch in memory while it waits.
    from shardmark.parity.cases import precisions_of, surrogate_name_of
    from shardmark.parity.judgement import judge, judge_real_model
    from shardmark.parity.trajectory_files import read_oracles, read_trajectories

    trained, oracle = read_trajectories(trajectories_file), read_oracles(oracle_file)
    precisions = [
        judge(precision, trained[precision], oracle, case) for precision in precisions_of(case)
    ]
    real = None
    if oracle["real"] is not None:
        real = judge_real_model(trained["real"], oracle["real"], case)
    reasons = [result.reason for result in precisions if result.reason]
    if real is not None and not real.passed:
        reasons.append(
            f"{real.precision}: the first steps of the real model "
            f"deviate by {real.deviation:.1e}, tolerance {real.tolerance:.1e}"
        )
    return parity_result(
        case,
        status="failed" if reasons else "passed",
        reason="; ".join(filter(None, [*reasons, oracle["left_out"]])) or None,
        backend=trained["backend"],
        shared_device=shared,
        surrogate=surrogate_name_of(case),
        steps=case.gate.steps,
        losses=trained["fp32"].losses,
        oracle_losses=oracle["fp32"]["trajectory"].losses,
        precisions=precisions,
        real_model=real,
    )


@one_message
def main() -> None:
    """Judge the case that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=read_config, required=True, help="the saved configuration")
    parser.add_argument("--workload", required=True, help="the case's, and so on")
    parser.add_argument("--strategy", required=True)
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--oracle", type=Path, required=True, help="what make_oracle.py wrote")
    parser.add_argument("--output", type=Path, required=True, help="JSON to write")
    parser.add_argument(
        "--stall-limit-minutes", type=float, help="end the case after this time without progress"
    )
    arguments = parser.parse_args()
    stall = arguments.stall_limit_minutes
    case = parity_case(arguments.config, arguments.workload, arguments.strategy, arguments.ranks)
    parity = run_parity(
        case, arguments.oracle, arguments.output, stall_s=stall * 60 if stall else None
    )
    write_text(arguments.output, parity.model_dump_json(indent=1, by_alias=True))
    print(f"[parity of {case.cell.title}] {parity.status} {parity.reason or ''}", flush=True)
    leave()


if __name__ == "__main__":
    main()
