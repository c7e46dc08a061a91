"""Read the files of results, which may be damaged, edited, or from elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from shardmark.config.values import Record
from shardmark.errors import UserError
from shardmark.escaping import for_terminal

SCHEMA_VERSION = 1
# Our own files have seven levels. Much deeper nesting would exhaust the stack when written again.
DEEPEST = 30
T = TypeVar("T", bound=Record)


def read_record(path: Path, model: type[T]) -> T:
    """Read a result of this model.

    Raises:
        UserError: naming the path, if the file is not JSON, has another schema version, or does not
            match the schema.
    """
    return validate(path, read_json(path), model)


def read_json(path: Path) -> dict[str, Any]:
    """Read the mapping in a file and check its schema version; raises UserError as read_record."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        # JSON can contain lone surrogates, which cannot be encoded when we write text.
        json.dumps(raw, ensure_ascii=False).encode()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: not readable as JSON ({error}); delete it to run it again"
        ) from None
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    # True == 1 in Python.
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise UserError(
            f"{path}: schema version {version!r}, this shardmark reads {SCHEMA_VERSION}; "
            "delete it to run it again"
        )
    if _is_deeper(raw, DEEPEST):
        raise UserError(
            f"{path}: is nested more than {DEEPEST} levels deep; delete it to run it again"
        )
    return {name: _printable(value) if name != "cell" else value for name, value in raw.items()}


def _is_deeper(value: Any, levels: int) -> bool:
    if not isinstance(value, (dict, list)):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(one, levels - 1) for one in inner)


def _printable(value: Any) -> Any:
    """Make all texts in a value safe to print. Not for a cell, whose exact texts define it."""
    if isinstance(value, str):
        return for_terminal(value)
    if isinstance(value, list):
        return [_printable(one) for one in value]
    if isinstance(value, dict):
        return {for_terminal(name): _printable(one) for name, one in value.items()}
    return value


def validate(path: Path, raw: dict[str, Any], model: type[T]) -> T:
    """Validate what was read from a file; raises UserError if it does not match the schema."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: {where}: {first['msg']}; delete it to run it again") from None
