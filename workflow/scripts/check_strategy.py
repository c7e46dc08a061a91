"""Check a strategy of the user's own by one step on the CPU, before a job is queued for it."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmark.cells import parity_case
from shardmark.command import one_message
from shardmark.config.saved import read_config
from shardmark.launching.guarded_check import write_check
from shardmark.parity.own_strategy_check import check_strategy


@one_message
def main() -> None:
    """Check the strategy and the workload that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=read_config, required=True, help="the saved configuration")
    parser.add_argument("--workload", required=True, help="what it trains")
    parser.add_argument("--strategy", required=True, help="the user's own strategy")
    parser.add_argument("--output", type=Path, required=True, help="text to write")
    arguments = parser.parse_args()
    config, name = arguments.config, arguments.strategy
    case = parity_case(config, arguments.workload, name, 1)
    file = case.cell.options["file"]
    device = config.cluster.device
    write_check(file, lambda: f"{check_strategy(case, device=device)}\n", arguments.output)
    words = arguments.output.read_text().strip()
    print(f"[{arguments.workload} {name}] {file}: {words}", flush=True)


if __name__ == "__main__":
    main()
