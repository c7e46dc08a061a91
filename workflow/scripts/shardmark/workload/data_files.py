"""The files of a data set on disk: which are damaged, and whether a record of them still holds.

torchvision is imported late: a record is read by the workflow itself, which has no use for it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10


def cifar_class(dataset: str) -> type[CIFAR10]:
    """Torchvision's class of a data set."""
    import torchvision.datasets

    kinds: dict[str, type[CIFAR10]] = {
        "cifar10": torchvision.datasets.CIFAR10,
        "cifar100": torchvision.datasets.CIFAR100,
    }
    return kinds[dataset]


def checksums(kind: type[CIFAR10]) -> dict[str, str]:
    """The published MD5 of each file of a data set, by its path in the data folder."""
    pairs = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
    return {f"{kind.base_folder}/{name}": md5 for name, md5 in pairs}


def why_not_whole(dataset: str, folder: Path) -> str:
    """Which files of a data set are missing or damaged; empty if none is."""
    from torchvision.datasets.utils import check_md5

    sums = checksums(cifar_class(dataset))
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


def record_of(dataset: str, folder: Path) -> dict[str, Any]:
    """What is known of a whole data set's files."""
    sums = checksums(cifar_class(dataset))
    stats = {name: (folder / name).stat() for name in sums}
    return {
        "dataset": dataset,
        "folder": str(folder),
        "files": {
            name: {"md5": md5, "bytes": stats[name].st_size, "modified_ns": stats[name].st_mtime_ns}
            for name, md5 in sums.items()
        },
    }


def why_outdated(record: Path) -> str:
    """Which files are missing or have changed since their record was made; empty if none has.

    Size and time of change are compared and no checksum, so that this takes no time. Where there is
    no record, nothing has changed since.
    """
    if not record.exists():
        return ""
    try:
        found = json.loads(record.read_text())
        files = {Path(found["folder"], name): facts for name, facts in found["files"].items()}
        changes = []
        for path, facts in files.items():
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
