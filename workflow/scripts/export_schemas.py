"""Generate files from the pydantic models: JSON Schemas, config/README.md's table, docs/."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from shardmark.cells import Cell
from shardmark.config.schema import Config
from shardmark.config.values import LARGEST
from shardmark.metrics import Metrics, Parity
from shardmark.report.data_dictionary import dictionary
from shardmark.strategies import STRATEGIES

ROOT = Path(__file__).resolve().parents[2]
MODELS: dict[str, type[BaseModel]] = {
    "cell": Cell,
    "config": Config,
    "metrics": Metrics,
    "parity": Parity,
}
DICTIONARY = Path("docs/data_dictionary.md")
BEGIN = "<!-- from here to the end: make schemas -->"
HEAD = "| key | allowed | default | meaning |\n|---|---|---|---|"


def schemas() -> dict[Path, str]:
    """Return the text of every schema by its file, relative to the project."""
    known = {name: _schema(model) for name, model in MODELS.items()}
    # An overlay contains only the keys that it changes; null removes a key.
    known["overlay"] = _without_required(known["config"])
    return {
        Path("workflow/schemas", f"{name}.schema.json"): json.dumps(
            {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=1
        )
        + "\n"
        for name, schema in known.items()
    }


def _without_required(schema: Any) -> Any:
    """Return a schema in which every key is optional."""
    if isinstance(schema, list):
        return [_without_required(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: _without_required(value)
        for key, value in schema.items()
        if not (key == "required" and isinstance(value, list))
    }


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema(by_alias=True)


def reference() -> str:
    """Return the generated part of config/README.md."""
    keys = "\n".join(_rows(Config, ""))
    parts = [BEGIN, "", "## Every key", "", HEAD, keys, "", "## Options of a variant", ""]
    parts += ["`variants.<name>: {base: <strategy>, <option>: <value>, ...}`", ""]
    parts += ["| base, option | allowed | default | meaning |\n|---|---|---|---|"]
    for names, options in _options():
        parts += [_row(f"{names}: `{key}`", options, key) for key in options.model_fields]
    return "\n".join(parts) + "\n"


def _options() -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield each model of options with the strategies that share it."""
    shared: dict[type[BaseModel], list[str]] = {}
    for name, strategy in STRATEGIES.items():
        shared.setdefault(strategy.options, []).append(name)
    for options, names in shared.items():
        yield ", ".join(names), options


def _rows(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        section, named = _section_of(field)
        if section is None:
            yield _row(f"`{key}`", model, name)
        else:
            yield from _rows(section, f"{key}.<name>." if named else f"{key}.")


def _section_of(field: FieldInfo) -> tuple[type[BaseModel] | None, bool]:
    """Return the section that a key contains, if any, and whether the user names its entries."""
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind, kind is not field.annotation
    return None, False


def _row(key: str, model: type[BaseModel], name: str) -> str:
    field = model.model_fields[name]
    allowed = _allowed(_schema(model)["properties"][field.alias or name])
    default = (
        "required" if field.is_required() else _yaml(field.get_default(call_default_factory=True))
    )
    meaning = (field.description or "").replace("<", "&lt;")
    return f"| {key} | {allowed} | {default} | {meaning} |"


def _yaml(value: object) -> str:
    return f"`{json.dumps(value)}`"


def _allowed(schema: dict[str, Any]) -> str:
    """Describe the JSON Schema of one value in words."""
    if "anyOf" in schema:
        return " or ".join(_allowed(part) for part in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    if schema.get("type") == "array":
        parts = schema.get("prefixItems")
        if parts:
            return f"{len(parts)} numbers"
        return f"list of {_allowed(schema['items'])}"
    words = {"integer": "integer", "number": "number", "boolean": "true, false", "null": "null"}
    word = words.get(schema.get("type", ""), schema.get("type", "any"))
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    bounds = {limit: schema[limit] for limit in signs if schema.get(limit, LARGEST) != LARGEST}
    limits = [f"{signs[limit]} {bound:g}" for limit, bound in bounds.items()]
    if "pattern" in schema:
        limits.append(f"`{schema['pattern']}`")
    return f"{word} {', '.join(limits)}" if limits else str(word)


def main() -> None:
    """Write all generated files."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    for path, text in schemas().items():
        (ROOT / path).write_text(text)
    (ROOT / DICTIONARY).write_text(dictionary())
    page = ROOT / "config/README.md"
    page.write_text(page.read_text().split(BEGIN)[0] + reference())


if __name__ == "__main__":
    main()
