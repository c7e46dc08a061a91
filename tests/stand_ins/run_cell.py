"""Stands in for run_cell.py where the workflow is tested and not the training.

Notes that it ran. Fails, having spoilt its output, while a file FAIL is there; while there is a
file SAME, that is the result; while there is a file OOM, the cell that it names ran out of memory.
"""

import argparse
import os
import sys
import time
from pathlib import Path

from shardmark.cells import cell_of
from shardmark.codebase import code_of_cell, code_sha256
from shardmark.launching.site import SCRATCH_VARIABLE
from shardmark.metrics import Failure, Metrics
from shardmark.saved_config import read_config

parser = argparse.ArgumentParser()
parser.add_argument("--config", type=read_config)
parser.add_argument("--workload")
parser.add_argument("--strategy")
parser.add_argument("--gpus", type=int)
parser.add_argument("--seed", type=int)
parser.add_argument("--time-limit-minutes")
parser.add_argument("--place", type=int)
parser.add_argument("--stall-limit-minutes")
parser.add_argument("--output", type=Path)
arguments = parser.parse_args()
cell = cell_of(
    arguments.config, arguments.workload, arguments.strategy, arguments.gpus, arguments.seed
)
with Path("ran.log").open("a") as log:
    print(cell.title, file=log)
if Path("FAIL").exists():
    arguments.output.write_text("spoilt")
    sys.exit("the stand-in fails")
out_of_memory = Path("OOM").exists() and Path("OOM").read_text() == cell.title
metrics = Metrics(
    cell=cell,
    cell_sha256=cell.fingerprint(),
    code_sha256=code_sha256(code_of_cell(cell)),
    status="oom" if out_of_memory else "ok",
    failure=Failure.plain("memory ran out") if out_of_memory else None,
    provenance={
        "time": time.time(),
        "planned_place": arguments.place,
        "command": sys.argv,
        "scratch": os.environ.get(SCRATCH_VARIABLE),
    },
)
same = Path("SAME")
arguments.output.write_text(
    same.read_text() if same.exists() else metrics.model_dump_json(by_alias=True)
)
