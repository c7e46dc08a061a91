"""The checked configuration in a file: every job reads its settings from there.

No setting is an argument of a job's command. Snakemake and the shell would expand what looks like
one of their patterns, all users of the machine would see it, and Linux takes at most 128 KiB in one
argument.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from shardmark.atomic import write_text
from shardmark.config import Config


def saved_at(config: Config) -> Path:
    """The file of a configuration, relative to the project. Another configuration has another."""
    digest = hashlib.sha256(_text(config).encode()).hexdigest()
    return Path("results", config.run, ".config", f"{digest[:16]}.json")


def save_config(config: Config, path: Path) -> None:
    """Write the configuration, in a folder that only its owner can read."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_text(path, _text(config))


def read_config(path: str) -> Config:
    """The configuration of a file, for an argument of a script.

    Raises:
        ValueError: if there is none in it.
    """
    return Config.model_validate_json(Path(path).read_text(encoding="utf-8"))


def _text(config: Config) -> str:
    return config.model_dump_json(by_alias=True)
