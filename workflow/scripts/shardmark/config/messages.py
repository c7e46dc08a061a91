"""The messages about a configuration: what was wrong, where, and what is allowed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any, get_args

from pydantic import BaseModel

from shardmark.architectures import MODELS
from shardmark.config.raw_values import mapping_at
from shardmark.config.schema import WORKLOADS, Config, WorkloadKind

# Keys of earlier versions, and what took their place.
REPLACED = {
    "measure.steady_s": "was replaced by steady_min_s, steady_max_s and steady_half_width_pct: the "
    "timed window ends when the mean step time is precise (config/README.md)",
    "cluster.expected_images_per_s": "is now expected_items_per_s, in images or tokens",
    "validity": "was removed: only a device fault excludes a cell (docs/method.md); leave it out",
}
MOST_CHARACTERS = 80
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_NAME_RULE = "it must be at most 64 letters, digits and _, a letter first"
EXPECTED = {
    "model_type": "a mapping of keys is expected here",
    "dict_type": "a mapping of keys is expected here",
    "list_type": "a list is expected here, [a, b, ...]",
    "tuple_type": "a list is expected here, [a, b, ...]",
    "string_type": "text is expected here; what only looks like a number goes in quotes",
    "int_type": "a whole number is expected here",
    "bool_type": "true or false is expected here",
    "float_type": "a number is expected here",
    "finite_number": "a finite number is expected here",
}


def list_mistakes(lines: Sequence[str]) -> str:
    """Return the message that lists all mistakes."""
    count = len(lines)
    head = "1 mistake" if count == 1 else f"{count} mistakes"
    # A key may contain line breaks, but each mistake takes one line.
    plain = [_CONTROL.sub(lambda character: repr(character[0])[1:-1], line) for line in lines]
    return f"{head} in the configuration:\n" + "\n".join(f"  {line}" for line in plain)


def hint_at_allowed(given: object, allowed: Sequence[str]) -> str:
    """Return the allowed values; a hint at the nearest one comes first if one is similar."""
    text = given if isinstance(given, str) else ""
    similar = difflib.get_close_matches(text, allowed, n=1, cutoff=0.5)
    # zero1 is nearer to ddp_zero1, but whole words at the end of a longer name fit as well.
    similar += [name for name in allowed if text and name.endswith(f"_{text}")]
    names = " or ".join(map(repr, dict.fromkeys(similar)))
    hint = f"did you mean {names}? " if similar else ""
    return f"{hint}allowed: {', '.join(allowed)}"


def format_value(value: object) -> str:
    """Format a value for a message: as YAML writes it, and shortened."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = str(value) if isinstance(value, date) else repr(value)
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}..."


def key_path(location: Sequence[int | str]) -> str:
    """Return a key with those above it, as in ``matrix.gpus[0]``."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path or "(top level)"


def follows_from_unknown_model(detail: Any, raw: Mapping[str, Any]) -> bool:
    """Whether pydantic takes a right key for a wrong one because the model's name is unknown.

    A workload with an unknown model is checked as one of images, and may be meant as another kind.
    """
    location = detail["loc"]
    if location[0] != "workloads" or location[3:4] not in (("model",), ("dataset",)):
        return False
    workload = mapping_at(mapping_at(raw, "workloads"), location[1])
    name = mapping_at(workload, "model").get("name")
    unknown = isinstance(name, str) and name not in (*MODELS, "gpt")
    return unknown and detail["type"] in ("extra_forbidden", "literal_error")


def explain_error(detail: Any) -> str:
    """Return one of pydantic's errors as a line of the message."""
    location, kind, given = list(detail["loc"]), detail["type"], detail.get("input")
    workload_kind = None
    if location[:1] == ["workloads"] and len(location) > 2 and location[2] in WORKLOADS:
        workload_kind = location.pop(2)  # pydantic's, not a key
    if location and location[-1] == "[key]":
        return f"{key_path(location[:-2])}: {format_value(given)} is no name; {_NAME_RULE}"
    if kind == "invalid_key":  # pydantic's location shows the key true as 1
        location[-1] = given if isinstance(given, str) else format_value(given)
    path = key_path(location)
    match kind:
        case "extra_forbidden" if path in REPLACED:
            return f"{path}: {REPLACED[path]}"
        case "extra_forbidden" | "invalid_key":
            allowed = _keys_at(location[:-1], workload_kind)
            return f"{path}: unknown key; {hint_at_allowed(location[-1], allowed)}"
        case "missing":
            return f"{path}: missing" + ("" if path.endswith("]") else ", and it has no default")
        case "literal_error":
            allowed = [part.strip(" '") for part in detail["ctx"]["expected"].split(",")]
            allowed = [name.strip(" '") for part in allowed for name in part.split(" or ")]
            return f"{path}: got {format_value(given)}; {hint_at_allowed(given, allowed)}"
        case "too_short":
            return f"{path}: is empty; name at least one"
        case "too_long":
            count, most = detail["ctx"]["actual_length"], detail["ctx"]["max_length"]
            return f"{path}: got {count} entries; {most} are allowed"
        case "string_pattern_mismatch":
            return f"{path}: got {format_value(given)}; it must match {detail['ctx']['pattern']}"
        case "int_type" | "float_type" | "bool_type" if plain := _without_quotes(given, kind):
            return f"{path}: got {format_value(given)}, which is text; write {plain} without quotes"
        case _:
            rule = detail["msg"].removeprefix("Input ").removeprefix("String ")
            rule = rule.removeprefix("Value error, ")
            reason = EXPECTED.get(kind, f"it {rule}")
            return f"{path}: got {format_value(given)}; {reason}"


def _without_quotes(value: object, kind: str) -> str:
    """Return quoted text as the number or boolean that YAML would read; empty if it is neither."""
    text = value.strip().lower() if isinstance(value, str) else ""
    if kind == "bool_type":
        return text if text in ("true", "false") else ""
    if not re.fullmatch(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]{1,2})?", text):
        return ""
    if kind == "int_type":
        return f"{float(text):.0f}" if float(text).is_integer() else ""
    mantissa, separator, exponent = text.partition("e")
    if not separator:
        return text
    # YAML 1.1 requires the decimal point and the exponent's sign.
    point = "" if "." in mantissa else ".0"
    sign = "" if exponent[0] in "-+" else "+"
    return f"{mantissa}{point}e{sign}{exponent}"


def _keys_at(location: Sequence[int | str], workload_kind: WorkloadKind | None) -> list[str]:
    """Return the keys that a section of the configuration may have."""
    model: type[BaseModel] = Config
    if workload_kind is not None:
        model, location = WORKLOADS[workload_kind], location[2:]
    for part in location:
        field = model.model_fields.get(str(part))
        if field is None:  # the index or the name of an entry
            continue
        for candidate in (field.annotation, *get_args(field.annotation)):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                model = candidate
    return [field.alias or name for name, field in model.model_fields.items()]
