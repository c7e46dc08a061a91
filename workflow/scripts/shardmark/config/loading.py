"""Turn a configuration as it was written into a Config, or list all its mistakes in one message."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from shardmark.config.messages import (
    EXPECTED,
    explain_error,
    follows_from_unknown_model,
    format_value,
    list_mistakes,
)
from shardmark.config.mistakes import mistakes_in, texts_no_file_can_hold
from shardmark.config.schema import Config
from shardmark.errors import ConfigError


def load(raw: Mapping[str, Any], root: Path = Path()) -> Config:
    """Validate a merged configuration.

    Args:
        raw: the mapping that Snakemake merged from its config files.
        root: the folder that ``data.dir`` is relative to.

    Raises:
        ConfigError: with one line per mistake: path, what was given, what is allowed.
    """
    if not isinstance(raw, Mapping):
        raise ConfigError(
            list_mistakes([f"(top level): got {format_value(raw)}; {EXPECTED['dict_type']}"])
        )
    lines: list[str] = []
    config = None
    try:
        config = Config.model_validate(dict(raw))
        raw = config.model_dump(by_alias=True)
        lines += texts_no_file_can_hold(raw)
    except ValidationError as error:
        lines += [
            explain_error(detail)
            for detail in error.errors()
            if not follows_from_unknown_model(detail, raw)
        ]
    lines += mistakes_in(raw, root)
    if config is None or lines:
        raise ConfigError(list_mistakes(list(dict.fromkeys(lines))))
    return config
