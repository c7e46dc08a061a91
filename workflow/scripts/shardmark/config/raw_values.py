"""Read single values of a raw configuration for the checks that involve several keys.

The checks read the raw mapping, so that one message lists all mistakes. They skip values of a wrong
type, which the models report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from shardmark.config.values import Section

E = TypeVar("E", bound=int | str)
S = TypeVar("S", bound=Section)


def mapping_at(raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return the mapping at a key; an empty one if there is none."""
    value = raw.get(key)
    return value if isinstance(value, Mapping) else {}


def entries_at(raw: Mapping[str, Any], key: str, kind: type[E]) -> list[tuple[int, E]]:
    """Return the entries of a list that have the right type, with their indices."""
    values = raw.get(key)
    if not isinstance(values, Sequence) or isinstance(values, str):
        return []
    return [
        (index, value)
        for index, value in enumerate(values)
        if isinstance(value, kind) and not isinstance(value, bool)
    ]


def values_at(raw: Mapping[str, Any], key: str, kind: type[E]) -> list[E]:
    """Return the entries of a list that have the right type."""
    return [value for _, value in entries_at(raw, key, kind)]


def section_at(kind: type[S], raw: Mapping[str, Any], key: str) -> S | None:
    """Return a section without its unknown keys, or None if it is wrong in another way."""
    keys = {field.alias or name for name, field in kind.model_fields.items()}
    known = {name: value for name, value in mapping_at(raw, key).items() if name in keys}
    try:
        return kind.model_validate(known)
    except ValidationError:
        return None


def is_folder(path: Path) -> bool:
    """Whether a path in the configuration is a folder."""
    try:
        return path.is_dir()
    except OSError:  # for example a name that is too long for the file system
        return False


def is_file(path: Path) -> bool:
    """Whether a path in the configuration is a file."""
    try:
        return path.is_file()
    except OSError:
        return False
