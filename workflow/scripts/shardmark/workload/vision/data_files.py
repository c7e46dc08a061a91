"""Checks a data set's files on disk, against their checksums or against an earlier record.

torchvision is imported late, because the workflow itself reads a record and does not need it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardmark.datasets import DATASETS, DatasetName

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10


_SCRIPT = Path(__file__).resolve().parents[3] / "fetch_data.py"


def torchvision_class(dataset: DatasetName) -> type[CIFAR10]:
    """The torchvision class of a data set; all of them have the same layout as CIFAR10."""
    import torchvision.datasets

    kind: type[CIFAR10] = getattr(torchvision.datasets, str(DATASETS[dataset].torchvision_name))
    return kind


def checksums(kind: type[CIFAR10]) -> dict[str, str]:
    """The published MD5 of each file of a data set, by its path in the data folder."""
    pairs = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
    return {f"{kind.base_folder}/{name}": md5 for name, md5 in pairs}


def fetch_command(
    dataset: str, folder: Path, *, download: bool, record: Path | None = None
) -> list[str]:
    """Return the command that checks a data set's files against their checksums.

    Args:
        dataset: its name.
        folder: folder of the data sets.
        download: whether to download files that are missing or damaged.
        record: file to write what it found to.
    """
    command = [sys.executable, str(_SCRIPT), "--dataset", dataset, "--dir", str(folder)]
    command += ["--download", str(download).lower()]
    return [*command, *(["--output", str(record)] if record else [])]


def why_not_whole(dataset: DatasetName, folder: Path) -> str:
    """Which files of a data set are missing or damaged; empty if none is."""
    from torchvision.datasets.utils import check_md5

    sums = checksums(torchvision_class(dataset))
    missing = [name for name in sums if not (folder / name).is_file()]
    if len(missing) == len(sums):
        return f"{dataset} is not in {folder}"
    damaged = [
        name
        for name, md5 in sums.items()
        if name not in missing and not check_md5(folder / name, md5)
    ]
    words = [f"{folder / name} is missing" for name in missing]
    return ", ".join(words + [f"{folder / name} is damaged" for name in damaged])


def record_of(dataset: DatasetName, folder: Path) -> dict[str, Any]:
    """A record of a complete data set's files: MD5, size and modification time of each."""
    sums = checksums(torchvision_class(dataset))
    stats = {name: (folder / name).stat() for name in sums}
    return {
        "dataset": dataset,
        "files": {
            name: {"md5": md5, "bytes": stats[name].st_size, "modified_ns": stats[name].st_mtime_ns}
            for name, md5 in sums.items()
        },
    }


def why_outdated(record: Path, folder: Path) -> str:
    """Which files are missing or have changed since the record was made; empty if none.

    It compares size and modification time instead of checksums, so it is fast.
    """
    if not record.exists():
        return "not checked yet"
    try:
        changes = []
        for name, facts in json.loads(record.read_text())["files"].items():
            path = folder / name
            if not path.is_file():
                changes.append(f"{path} is missing")
            elif (path.stat().st_size, path.stat().st_mtime_ns) != (
                facts["bytes"],
                facts["modified_ns"],
            ):
                changes.append(f"{path} has changed")
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return f"{record} is unreadable, or of an earlier version"
    return ", ".join(changes)
