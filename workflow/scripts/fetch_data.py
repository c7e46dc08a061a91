"""Bring a data set to its folder once, before any cell, and record what is there."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torchvision.datasets

from shardmark.atomic import write_text
from shardmark.errors import UserError

_KINDS = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}


def fetch(dataset: str, folder: Path, *, download: bool) -> dict[str, object]:
    """Check the data set's files against their published MD5, fetching them first if need be.

    Raises:
        UserError: if it is not there and may not, or cannot, be fetched.
    """
    kind = _KINDS[dataset]
    try:
        for train in (True, False):
            kind(str(folder), train=train, download=download)
    except RuntimeError as error:
        raise UserError(
            f"data.dir: {dataset} is not in {folder}, or its files are damaged ({error}); put it "
            "there, or set data.download to true where there is internet"
        ) from None
    except OSError as error:
        raise UserError(
            f"data.dir: {dataset} is not in {folder} and could not be downloaded ({error}); run "
            "this where there is internet, or copy the folder from a machine that has it"
        ) from None
    names = [*kind.train_list, *kind.test_list]
    return {
        "dataset": dataset,
        "folder": str(folder / kind.base_folder),
        "md5": dict(sorted(tuple(pair) for pair in names)),
    }


def main() -> None:
    """Fetch the data set of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", required=True, choices=sorted(_KINDS))
    parser.add_argument("--dir", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--download", required=True, choices=("true", "false"))
    parser.add_argument("--output", type=Path, required=True, help="JSON to write")
    arguments = parser.parse_args()
    try:
        found = fetch(arguments.dataset, arguments.dir, download=arguments.download == "true")
    except UserError as error:
        sys.exit(f"shardmark: {error}")
    write_text(arguments.output, json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
