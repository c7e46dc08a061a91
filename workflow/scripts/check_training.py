"""Check a training of the user's own on one batch on the CPU, before a job is queued for it."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmark.command import one_message
from shardmark.config.saved import read_config
from shardmark.config.schema import OwnWorkload
from shardmark.launching.guarded_check import write_check
from shardmark.workload.own_check import check_training


@one_message
def main() -> None:
    """Check the training of the workload that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=read_config, required=True, help="the saved configuration")
    parser.add_argument("--workload", required=True, help="the user's own training")
    parser.add_argument("--output", type=Path, required=True, help="text to write")
    arguments = parser.parse_args()
    definition = arguments.config.workloads[arguments.workload]
    assert isinstance(definition, OwnWorkload)
    file = definition.file
    write_check(file, lambda: "\n".join(check_training(definition)) + "\n", arguments.output)
    for line in arguments.output.read_text().splitlines():
        print(f"[{arguments.workload}] {file}: {line}", flush=True)


if __name__ == "__main__":
    main()
