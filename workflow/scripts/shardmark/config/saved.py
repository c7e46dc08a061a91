"""Save the validated configuration to a file, from which every job reads its settings.

Settings are not passed on a job's command line: Snakemake and the shell would expand what looks
like one of their patterns, all users of the machine could see them, and Linux limits one argument
to 128 KiB.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from shardmark.config.schema import Config
from shardmark.files import write_text


def saved_path(config: Config) -> Path:
    """Return the configuration's own file, relative to the project; its name has a checksum."""
    digest = hashlib.sha256(_text(config).encode()).hexdigest()
    return Path("results", config.run, ".config", f"{digest[:16]}.json")


def save_config(config: Config, path: Path) -> None:
    """Write the configuration into a folder that only its owner can read."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_text(path, _text(config))


def read_config(path: str) -> Config:
    """Read a saved configuration; usable as an argument type of a script.

    Raises:
        ValueError: if the file contains none.
    """
    return Config.model_validate_json(Path(path).read_text(encoding="utf-8"))


def _text(config: Config) -> str:
    return config.model_dump_json(by_alias=True)
