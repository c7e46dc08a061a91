"""Generate files from the pydantic models: JSON Schemas, config/README.md's table, docs/."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from shardmark.cells import Cell
from shardmark.config.schema import WORKLOADS, Config, OwnStrategy, VisionWorkload, Workload
from shardmark.config.values import LARGEST
from shardmark.largest_batch import LargestBatch
from shardmark.metrics import Metrics
from shardmark.parity_result import Parity
from shardmark.report.data_dictionary import dictionary
from shardmark.strategies import STRATEGIES

ROOT = Path(__file__).resolve().parents[2]
MODELS: dict[str, type[BaseModel]] = {
    "cell": Cell,
    "config": Config,
    "largest_batch": LargestBatch,
    "metrics": Metrics,
    "parity": Parity,
}
DICTIONARY = Path("docs/data_dictionary.md")
BEGIN = "<!-- from here to the end: make schemas -->"
HEAD = "| key | allowed | default | meaning |\n|---|---|---|---|"


def schemas() -> dict[Path, str]:
    """Return the text of every schema by its file, relative to the project."""
    plain = {name: _schema(model) for name, model in MODELS.items()}
    known = {name: _with_kinds_by_model(schema) for name, schema in plain.items()}
    # An overlay contains only the keys that it changes; null removes a key.
    known["overlay"] = _without_required(plain["config"])
    return {
        Path("workflow/schemas", f"{name}.schema.json"): json.dumps(
            {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=1
        )
        + "\n"
        for name, schema in known.items()
    }


def _with_kinds_by_model(schema: Any) -> Any:
    """Return a schema in which a file or the model's name decides which workload is expected.

    Where one of several kinds is expected, an editor cannot say which key of a workload is wrong.
    """
    if isinstance(schema, list):
        return [_with_kinds_by_model(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    kinds = [{"$ref": f"#/$defs/{model.__name__}"} for model in WORKLOADS.values()]
    if schema.get("oneOf") == kinds:
        vision, language, own = kinds
        is_gpt = {"properties": {"name": {"const": "gpt"}}, "required": ["name"]}
        condition = {"properties": {"model": is_gpt}, "required": ["model"]}
        built_in = {"if": condition, "then": language, "else": vision}
        return {"if": {"required": ["file"]}, "then": own, "else": built_in}
    return {key: _with_kinds_by_model(value) for key, value in schema.items()}


def _without_required(schema: Any) -> Any:
    """Return a schema in which every key is optional.

    A part of a workload may then fit every kind of workload, so "one of" becomes "any of".
    """
    if isinstance(schema, list):
        return [_without_required(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        "anyOf" if key == "oneOf" else key: _without_required(value)
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
    parts += _option_rows()
    return "\n".join(parts) + "\n"


def _option_rows() -> list[str]:
    """Return one row for each option, with all strategies that have the same."""
    shared: dict[str, list[str]] = {}
    for name, strategy in STRATEGIES.items():
        for key in strategy.options.model_fields:
            row = _row(f"`{key}`", strategy.options, key)
            shared.setdefault(row, []).append(name)
    return [row.replace("| ", f"| {', '.join(names)}: ", 1) for row, names in shared.items()]


def _rows(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        if field.annotation == Config.model_fields["workloads"].annotation:
            yield from _workload_rows(f"{key}.<name>.")
        elif field.annotation == Config.model_fields["strategies"].annotation:
            yield from _rows(OwnStrategy, f"{key}.<name>.")
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _rows(field.annotation, f"{key}.")
        else:
            yield _row(f"`{key}`", model, name)


def _workload_rows(prefix: str) -> Iterator[str]:
    """Yield what all kinds of workload share, then what each kind adds."""
    yield from _rows(Workload, prefix)
    for kind, model in WORKLOADS.items():
        for name, field in model.model_fields.items():
            if name in Workload.model_fields:
                continue
            key = f"{prefix}{name}"
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                rows = _rows(field.annotation, f"{key}.")
            else:
                rows = iter([_row(f"`{key}`", model, name)])
            mark = "|" if model is VisionWorkload else f"| {kind}:"
            yield from (row.replace("|", mark, 1) for row in rows)


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
    if "const" in schema:
        return schema["const"] if isinstance(schema["const"], str) else json.dumps(schema["const"])
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    if schema.get("type") == "array":
        parts = schema.get("prefixItems")
        if parts:
            return f"{len(parts)} numbers"
        return f"list of {_allowed(schema['items'])}"
    words = {"integer": "integer", "number": "number", "boolean": "true, false", "null": "null"}
    word = words.get(
        schema.get("type", ""), schema.get("type", "mapping" if "$ref" in schema else "any")
    )
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
