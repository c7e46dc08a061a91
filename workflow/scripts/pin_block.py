"""Record this job's nodes; all cells of the block will run on them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from shardmark.command import one_message
from shardmark.files import write_text
from shardmark.measurement.telemetry import node_name
from shardmark.slurm import allocation, queue


@one_message
def main() -> None:
    """Write the names of this job's nodes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="JSON to write")
    arguments = parser.parse_args()
    job = queue.job_id()
    nodes = allocation.read_allocation(job).nodes if job else (node_name(),)
    write_text(arguments.output, json.dumps({"nodes": nodes}))
    print(f"nodes: {', '.join(nodes)}")


if __name__ == "__main__":
    main()
