"""Record the nodes that the cells of a block are to run on: those of this very job."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from shardmark.atomic import write_text
from shardmark.errors import UserError
from shardmark.measurement.telemetry import node_name
from shardmark.slurm import allocation, queue


def main() -> None:
    """Write the names of this job's nodes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="JSON to write")
    arguments = parser.parse_args()
    job = queue.job_id()
    try:
        nodes = allocation.granted(job).nodes if job else (node_name(),)
    except UserError as error:
        sys.exit(f"shardmark: {error}")
    write_text(arguments.output, json.dumps({"nodes": nodes}))
    print(f"nodes: {', '.join(nodes)}")


if __name__ == "__main__":
    main()
