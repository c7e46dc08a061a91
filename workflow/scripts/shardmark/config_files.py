"""Configuration files as a user wrote them, and what they make together.

Snakemake says neither the file nor the line of what it cannot parse, and a key that stands twice
loses its first value without a word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import yaml
from snakemake.utils import update_config

from shardmark.config import Config
from shardmark.config_loading import load, shown
from shardmark.errors import ConfigError

BASE = Path("config/config.yaml")
# What PyYAML, by YAML 1.1, takes for an octal number, for a number of base 60 (1:30 is 90), and for
# true or false.
_SURPRISES = re.compile(
    r"[-+]?0[0-9_]+|[-+]?[0-9][0-9_]*(:[0-9]+)+(\.[0-9_]*)?|yes|no|on|off", re.I
)


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
        content, mistakes = _parse(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{_place(mark)}" if mark else str(path)
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{where}: not valid YAML: {problem}") from None
    except RecursionError:
        raise ConfigError(f"{path}: is nested too deeply") from None
    except ValueError as error:  # a date that there is not, a number of thousands of digits
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(content, dict):
        given = "nothing" if content is None else f"a {type(content).__name__}"
        raise ConfigError(f"{path}: holds {given} where keys and values are expected")
    if mistakes:
        raise ConfigError("\n".join(f"{path}:{line}" for line in mistakes))
    return content


def _parse(text: str) -> tuple[object, list[str]]:
    """What a file holds, and what of it was hardly meant so, each with its place."""
    try:
        # Snakemake tries JSON first too, which allows the tabs that YAML does not.
        return json.loads(text), []
    except ValueError:
        content = yaml.safe_load(text)
        nodes = list(_nodes(yaml.compose(text, yaml.SafeLoader)))
        return content, [*_named_twice(nodes), *_read_otherwise(nodes)]


def _nodes(root: yaml.Node | None) -> Iterator[yaml.Node]:
    """Every key and value of a file, each once."""
    left = [root] if root else []
    seen: set[int] = set()
    while left:
        node = left.pop(0)
        if id(node) in seen:  # an alias of what was looked at already
            continue
        seen.add(id(node))
        yield node
        if isinstance(node, yaml.SequenceNode):
            left += node.value
        elif isinstance(node, yaml.MappingNode):
            left += [part for pair in node.value for part in pair]


def _named_twice(nodes: Iterable[yaml.Node]) -> Iterator[str]:
    """The keys that stand in their mapping a second time, each with its place."""
    for node in nodes:
        if not isinstance(node, yaml.MappingNode):
            continue
        first: dict[str, yaml.Mark] = {}
        for key, _ in node.value:
            if key.value == "<<" or not isinstance(key.value, str):
                continue
            before = first.setdefault(key.value, key.start_mark)
            if before is not key.start_mark:
                yield (
                    f"{_place(key.start_mark)}: the key {key.value!r} stands in line "
                    f"{before.line + 1} already; name it once"
                )


def _read_otherwise(nodes: Iterable[yaml.Node]) -> Iterator[str]:
    """Values that YAML 1.1 reads as something else than they look like, each with its place."""
    for node in nodes:
        # In quotes, or with a tag, text is text.
        if not isinstance(node, yaml.ScalarNode) or node.style or node.tag.endswith(":str"):
            continue
        if not _SURPRISES.fullmatch(node.value):
            continue
        value = shown(yaml.safe_load(node.value))
        decimal = node.value.lstrip("+0")
        number = f"{decimal} for the decimal number, " if decimal.isdigit() else ""
        yield (
            f"{_place(node.start_mark)}: YAML 1.1 reads {node.value} as {value}; write {value} if "
            f"you mean that, {number}or '{node.value}' in quotes for text"
        )


def _place(mark: yaml.Mark) -> str:
    return f"{mark.line + 1}:{mark.column + 1}"
