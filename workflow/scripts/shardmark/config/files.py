"""Read configuration files as a user wrote them, and merge them.

Snakemake names neither the file nor the line that it cannot parse, and silently drops the first
value of a key that occurs twice.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import yaml
from snakemake.utils import update_config

from shardmark.config.loading import load
from shardmark.config.messages import format_value
from shardmark.config.schema import Config
from shardmark.errors import ConfigError

BASE = Path("config/config.yaml")
# What PyYAML reads, by YAML 1.1, as an octal number, as a number of base 60 (1:30 is 90), and as
# true or false.
_SURPRISES = re.compile(
    r"[-+]?0[0-9_]+|[-+]?[0-9][0-9_]*(:[0-9]+)+(\.[0-9_]*)?|yes|no|on|off", re.I
)
# A few lines of aliases that name aliases can stand for billions of values.
MOST_VALUES = 100_000


def load_files(overlays: Sequence[Path], root: Path = Path()) -> Config:
    """Load the configuration that ``snakemake --configfile overlays`` would use.

    Args:
        overlays: files merged over config/config.yaml; paths relative to ``root``.
        root: the project's folder.

    Raises:
        ConfigError: with what is wrong in a file, or every mistake in the merged configuration.
    """
    merged: dict[str, object] = {}
    for path in (BASE, *overlays):
        update_config(merged, read_config_file(root / path))
    return load(merged, root)


def read_arguments(entries: Sequence[str]) -> dict[str, object]:
    """Read the mappings and lists of ``--config key=value`` in the same way as a file.

    Snakemake would read every number in them as text.

    Raises:
        ConfigError: naming the key that occurs twice.
    """
    arguments: dict[str, object] = {}
    for entry in entries:
        key, _, text = entry.partition("=")
        try:
            value, mistakes = _parse(text)
        except (yaml.YAMLError, ValueError):
            continue  # stays text, as Snakemake reads it
        if mistakes:
            raise ConfigError("\n".join(f"--config {key}, {line}" for line in mistakes))
        if isinstance(value, dict | list):
            update_config(arguments, {key: value})
    return arguments


def read_config_file(path: Path) -> dict[str, object]:
    """Read a configuration file: YAML or JSON, a mapping at its top, each key once.

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
        where = f"{path}:{_position(mark)}" if mark else str(path)
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{where}: not valid YAML: {problem}") from None
    except RecursionError:
        raise ConfigError(f"{path}: is nested too deeply") from None
    except ValueError as error:  # an impossible date, or a number with thousands of digits
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(content, dict):
        content_in_words = "nothing" if content is None else f"a {type(content).__name__}"
        raise ConfigError(f"{path}: holds {content_in_words} where keys and values are expected")
    if mistakes:
        raise ConfigError("\n".join(f"{path}:{line}" for line in mistakes))
    return content


def _parse(text: str) -> tuple[object, list[str]]:
    """Parse a file; return its content, and values that are probably mistakes, with their lines."""
    try:
        # Snakemake tries JSON first too, which allows tabs, unlike YAML.
        return json.loads(text), []
    except ValueError:
        root = yaml.compose(text, yaml.SafeLoader)
        # Before safe_load, which already writes out the aliases of merge keys (<<).
        if root is not None and _count_values(root, {}) > MOST_VALUES:
            where = _position(root.start_mark)
            excess = f"more than {MOST_VALUES:,} values, once every alias (*name) is written out"
            return {}, [f"{where}: {excess}; name fewer"]
        nodes = list(_nodes(root))
        return yaml.safe_load(text), [*_keys_named_twice(nodes), *_misleading_values(nodes)]


def _count_values(node: yaml.Node, counts: dict[int, int]) -> int:
    """Count the keys and values of a node, with every alias in it written out."""
    if id(node) not in counts:
        counts[id(node)] = MOST_VALUES  # an alias inside the node that it names never ends
        counts[id(node)] = 1 + sum(_count_values(part, counts) for part in _parts(node))
    return counts[id(node)]


def _parts(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return []


def _nodes(root: yaml.Node | None) -> Iterator[yaml.Node]:
    """Yield every key and value of a file, each once."""
    unvisited = [root] if root else []
    seen: set[int] = set()
    while unvisited:
        node = unvisited.pop(0)
        if id(node) in seen:  # an alias of a node that was already visited
            continue
        seen.add(id(node))
        yield node
        unvisited += _parts(node)


def _keys_named_twice(nodes: Iterable[yaml.Node]) -> Iterator[str]:
    """Yield the keys that occur a second time in their mapping, with their lines."""
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
                    f"{_position(key.start_mark)}: the key {key.value!r} stands in line "
                    f"{before.line + 1} already; name it once"
                )


def _misleading_values(nodes: Iterable[yaml.Node]) -> Iterator[str]:
    """Yield values that YAML 1.1 reads differently from what they look like, with their lines."""
    for node in nodes:
        # Text in quotes or with a tag is always read as text.
        if not isinstance(node, yaml.ScalarNode) or node.style or node.tag.endswith(":str"):
            continue
        if not _SURPRISES.fullmatch(node.value):
            continue
        value = format_value(yaml.safe_load(node.value))
        decimal = node.value.lstrip("+0")
        number = f"{decimal} for the decimal number, " if decimal.isdigit() else ""
        yield (
            f"{_position(node.start_mark)}: YAML 1.1 reads {node.value} as {value}; write {value} "
            f"if you mean that, {number}or '{node.value}' in quotes for text"
        )


def _position(mark: yaml.Mark) -> str:
    return f"{mark.line + 1}:{mark.column + 1}"
