"""Configuration files as a user wrote them, and what they make together.

Snakemake says neither the file nor the line of what it cannot parse, and a key that stands twice
loses its first value without a word.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml
from snakemake.utils import update_config

from shardmark.config import Config
from shardmark.config_loading import load
from shardmark.errors import ConfigError

BASE = Path("config/config.yaml")


def load_files(overlays: Sequence[Path], root: Path = Path()) -> Config:
    """The configuration that Snakemake makes of config/config.yaml with ``--configfile overlays``.

    Args:
        overlays: relative to ``root``, as a user names them there.
        root: the project's folder.

    Raises:
        ConfigError: with what is wrong in a file, or every mistake of what they make together.
    """
    merged: dict[str, object] = {}
    for path in (BASE, *overlays):
        update_config(merged, check_file(root / path))
    return load(merged, root)


def read_arguments(entries: Sequence[str]) -> dict[str, object]:
    """The mappings and lists of ``--config key=value``, read as a file is.

    Snakemake takes every number in them for text.

    Raises:
        ConfigError: naming the key that stands twice.
    """
    found: dict[str, object] = {}
    for entry in entries:
        key, _, text = entry.partition("=")
        try:
            value, twice = _parse(text)
        except (yaml.YAMLError, ValueError):
            continue  # stays the text that Snakemake takes it for
        if twice:
            raise ConfigError("\n".join(f"--config {key}, {line}" for line in twice))
        if isinstance(value, dict | list):
            update_config(found, {key: value})
    return found


def check_file(path: Path) -> dict[str, object]:
    """What a configuration file holds: YAML or JSON with keys at its top, each named once.

    Raises:
        ConfigError: naming the file, the line and what was expected there.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start})") from None
    try:
        content, twice = _parse(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{_place(mark)}" if mark else str(path)
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{where}: not valid YAML: {problem}") from None
    except ValueError as error:  # a date that there is not, a number of thousands of digits
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(content, dict):
        given = "nothing" if content is None else f"a {type(content).__name__}"
        raise ConfigError(f"{path}: holds {given} where keys and values are expected")
    if twice:
        raise ConfigError("\n".join(f"{path}:{line}" for line in twice))
    return content


def _parse(text: str) -> tuple[object, list[str]]:
    """What a file holds, and which of its keys stand twice."""
    try:
        # Snakemake tries JSON first too, which allows the tabs that YAML does not.
        return json.loads(text), []
    except ValueError:
        content = yaml.safe_load(text)
        return content, list(_named_twice(yaml.compose(text, yaml.SafeLoader)))


def _named_twice(root: yaml.Node | None) -> Iterator[str]:
    """The keys that stand in their mapping a second time, each with its place."""
    left: list[yaml.Node | None] = [root]
    seen: set[int] = set()
    while left:
        node = left.pop(0)
        if id(node) in seen:  # an alias of what was looked at already
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            left += node.value
        elif isinstance(node, yaml.MappingNode):
            first: dict[str, yaml.Mark] = {}
            for key, value in node.value:
                left.append(value)
                if key.value == "<<" or not isinstance(key.value, str):
                    continue
                before = first.setdefault(key.value, key.start_mark)
                if before is not key.start_mark:
                    yield (
                        f"{_place(key.start_mark)}: the key {key.value!r} stands in line "
                        f"{before.line + 1} already; name it once"
                    )


def _place(mark: yaml.Mark) -> str:
    return f"{mark.line + 1}:{mark.column + 1}"
