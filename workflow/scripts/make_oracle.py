"""Train the parity gate's oracle for one workload and replica count, and measure its noise."""

from __future__ import annotations

import argparse
import contextlib
import os
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from shardmark.cells import ParityCase, oracle_cases
from shardmark.command import one_message
from shardmark.config.saved import read_config
from shardmark.config.schema import OwnWorkload, Workload
from shardmark.errors import UserError
from shardmark.launching.site import enter
from shardmark.parity.gpu_turn import give_memory_back, wait_for_most
from shardmark.parity.oracles import make_oracles, others_use_memory
from shardmark.parity.side_by_side import alone_file, is_taken, oracle_file, take, turn_file
from shardmark.parity.trajectory_files import write_plain
from shardmark.processes.ending import leave
from shardmark.workload.own import load_training


def take_gpu(turn: Path, name: str, held: contextlib.ExitStack) -> torch.device:
    """Choose a GPU, and wait until no other oracle uses it and no case of the gate runs alone.

    Args:
        turn: the file of the turn on this machine.
        name: the oracle's name; oracles of different names spread over the GPUs.
        held: until it closes, no other oracle takes the GPU.
    """
    gpu = zlib.crc32(name.encode()) % torch.cuda.device_count()
    while is_taken(alone_file(turn)) or not take(oracle_file(turn, gpu), held):
        time.sleep(1.0)
    torch.cuda.set_device(gpu)
    return torch.device("cuda", gpu)


def train_twice(cases: Sequence[ParityCase], device: torch.device) -> dict[str, Any]:
    """Train the oracles; if they run out of memory, again when others have left some.

    Raises:
        UserError: if they do not fit then either.
    """
    with contextlib.suppress(torch.OutOfMemoryError):
        return make_oracles(cases, device, last=False)
    print("oracle: out of memory; tries again when most of the GPU's memory is free", flush=True)
    give_memory_back()
    if device.type == "cuda":
        wait_for_most(device)
    try:
        return make_oracles(cases, device)
    except torch.OutOfMemoryError as error:
        cell = cases[0].cell
        advice = _advice(cell.definition, device)
        raise UserError(f"{cell.workload}: {advice} ({error})") from error


def _advice(workload: Workload, device: torch.device) -> str:
    """What to do if the oracle, which is one process, runs out of a GPU's memory."""
    if others_use_memory(device):
        return (
            "the parity gate's oracle ran out of memory, and other processes use its GPU; end "
            "them, and run it again"
        )
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
    with contextlib.ExitStack() as held:
        device = torch.device(cell.device)
        if device.type == "cuda":
            turn = turn_file(arguments.output.absolute().parents[2])
            device = take_gpu(turn, f"{arguments.workload} {arguments.ranks}", held)
        oracles = train_twice(cases, device)
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
