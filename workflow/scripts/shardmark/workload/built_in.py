"""The workload for each kind of definition."""

from __future__ import annotations

from typing import Any

from shardmark.config.schema import LanguageWorkload, OwnWorkload, VisionWorkload, Workload
from shardmark.workload.contract import Contract
from shardmark.workload.language.workload import Language
from shardmark.workload.own import load_training
from shardmark.workload.vision.workload import Vision


def make_workload(definition: Workload) -> Contract[Any]:
    """Make the workload that a definition describes."""
    match definition:
        case VisionWorkload():
            return Vision(definition)
        case LanguageWorkload():
            return Language(definition)
        case OwnWorkload():
            return load_training(definition)
    raise NotImplementedError(f"no workload is defined by a {type(definition).__name__}")
