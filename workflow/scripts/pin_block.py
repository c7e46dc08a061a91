"""Record this job's nodes; all cells of the block will run on them."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmark.command import one_message
from shardmark.measurement.telemetry import node_name
from shardmark.slurm import allocation, queue
from shardmark.slurm.pinned_nodes import write_nodes


@one_message
def main() -> None:
    """Write the names of this job's nodes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="JSON to write")
    arguments = parser.parse_args()
    job = queue.job_id()
    nodes = allocation.read_allocation(job).nodes if job else (node_name(),)
    write_nodes(arguments.output, nodes)
    print(f"nodes: {', '.join(nodes)}")


if __name__ == "__main__":
    main()
