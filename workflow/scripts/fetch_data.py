"""Fetch a data set once, before any cell runs, and record its files."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from torchvision.datasets.utils import download_and_extract_archive

from shardmark.command import one_message
from shardmark.datasets import FETCHED, DatasetName
from shardmark.disk import disk_errors_explained
from shardmark.errors import UserError
from shardmark.files import write_text
from shardmark.workload.vision.data_files import record_of, torchvision_class, why_not_whole


def fetch(dataset: DatasetName, folder: Path, *, download: bool) -> dict[str, object]:
    """Check the data set's files against their published MD5; download them first if needed.

    Raises:
        UserError: if files are missing or damaged, and cannot or must not be downloaded.
    """
    reason = why_not_whole(dataset, folder)
    if reason and download:
        print(f"{reason}; downloading", flush=True)
        kind = torchvision_class(dataset)
        try:
            with disk_errors_explained(folder):
                download_and_extract_archive(
                    kind.url, str(folder), filename=kind.filename, md5=kind.tgz_md5
                )
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"data.dir: {reason}, and it could not be downloaded ({error}); run this where "
                "there is internet, or copy the folder from a machine that has it"
            ) from None
        reason = why_not_whole(dataset, folder)
    if reason:
        raise UserError(
            f"data.dir: {reason}; put it there, or set data.download to true and run this where "
            "there is internet"
        )
    return record_of(dataset, folder)


@one_message
def main() -> None:
    """Fetch the data set that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", required=True, choices=FETCHED)
    parser.add_argument("--dir", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--download", required=True, choices=("true", "false"))
    parser.add_argument("--output", type=Path, help="JSON to write; none to check the files only")
    arguments = parser.parse_args()
    record = fetch(arguments.dataset, arguments.dir, download=arguments.download == "true")
    if arguments.output is not None:
        write_text(arguments.output, json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
