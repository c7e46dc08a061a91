"""Train the parity gate's oracle for one workload and replica count, and measure its noise."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import torch

from shardmark.cells import oracle_cases
from shardmark.command import one_message
from shardmark.config.saved import read_config
from shardmark.config.schema import OwnWorkload, Workload
from shardmark.errors import UserError
from shardmark.launching.site import enter
from shardmark.parity.oracles import make_oracles, others_use_memory
from shardmark.parity.side_by_side import alone_file, is_taken, turn_file
from shardmark.parity.trajectory_files import write_plain
from shardmark.processes.ending import leave
from shardmark.workload.own import load_training


def _advice(workload: Workload) -> str:
    """What to do if the oracle, which is one process, runs out of a GPU's memory."""
    if others_use_memory(torch.device("cuda")):
        return "the parity gate's oracle ran out of memory beside other processes; run it again"
    words = "the parity gate's oracle does not fit on one GPU: "
    if not isinstance(workload, OwnWorkload):
        return f"{words}lower parity.per_gpu_batch"
    if load_training(workload).small_options is None:
        return f"{words}define small_options in {workload.file}, and it trains a smaller model"
    return f"{words}make small_options in {workload.file} smaller, or lower parity.per_gpu_batch"


@one_message
def main() -> None:
    """Write the oracle of the workload and replica count that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=read_config, required=True, help="the saved configuration")
    parser.add_argument("--workload", required=True, help="what is trained")
    parser.add_argument("--ranks", type=int, required=True, help="replicas that are emulated")
    parser.add_argument("--output", type=Path, required=True, help="file to write (torch.save)")
    arguments = parser.parse_args()
    # The same value as the launcher sets for the ranks; it is read when CUDA starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    cases = oracle_cases(arguments.config, arguments.workload, arguments.ranks)
    cell = cases[0].cell
    folders = [arguments.output.parent, Path(cell.data_dir)]
    enter(cell.site, cuda=cell.device == "cuda", folders=folders)
    if cell.device == "cuda":
        alone = alone_file(turn_file(arguments.output.absolute().parents[2]))
        while is_taken(alone):
            time.sleep(1.0)
    try:
        oracles = make_oracles(cases, torch.device(cell.device))
    except torch.OutOfMemoryError as error:
        raise UserError(f"{cell.workload}: {_advice(cell.definition)} ({error})") from error
    write_plain(oracles, arguments.output)
    real, left_out = oracles.pop("real") or {}, oracles.pop("left_out")
    if left_out:
        print(f"oracle: {left_out}")
    for name, oracle in oracles.items():
        print(f"oracle {name}: noise floor {oracle['floor']}")
    for name, oracle in real.items():
        print(f"oracle {name}, real model: noise floor {oracle['floor']}")
    leave()


if __name__ == "__main__":
    main()
