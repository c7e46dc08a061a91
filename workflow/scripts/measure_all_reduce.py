"""One rank of the doctor's all-reduce test; it joins the process group like a cell's rank."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch.distributed as dist

from shardmark.cells import Cell
from shardmark.files import write_text
from shardmark.launching.rank import record_failure
from shardmark.processes.ending import leave
from shardmark.training.probe import all_reduce_gb_per_s
from shardmark.training.runtime import start_runtime


def main() -> None:
    """Measure, and write all_reduce.json (rank 0) or the rank's failure to the scratch folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cell", type=Path, required=True, help="file with the cell's JSON")
    parser.add_argument("--scratch", type=Path, required=True, help="the scratch folder")
    arguments = parser.parse_args()
    try:
        runtime = start_runtime(Cell.model_validate_json(arguments.cell.read_text()))
        result = {"backend": runtime.backend, "gb_per_s": all_reduce_gb_per_s(runtime)}
        if runtime.rank == 0:
            write_text(arguments.scratch / "all_reduce.json", json.dumps(result))
    except Exception as error:
        record_failure(error, "all-reduce", arguments.scratch)
        # Exit at once, because the other ranks may wait for this one forever.
        leave(1)
    dist.destroy_process_group()
    leave()


if __name__ == "__main__":
    main()
