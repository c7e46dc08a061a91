"""The types of values in a configuration, and of the sections that contain them.

None of them converts a value to another type.

A boolean is not a number, text is not a number, and 2.0 is not a count. YAML already distinguishes
them; if it read a value differently from what the writer meant, an error is better than a guess.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict

# Counts and seeds reach programs with 32-bit integers; torch seeds its generators from them.
LARGEST = 2**31 - 1

Count = Annotated[int, Strict(), Field(ge=1, le=LARGEST)]
Seed = Annotated[int, Strict(), Field(ge=0, le=LARGEST)]
Flag = Annotated[bool, Strict()]


def _group_size_or(*flags: bool) -> BeforeValidator:
    """Accept a group's size or one of these flags.

    The errors of a union are one line for each of its types.
    """
    words = ", ".join([*(str(flag).lower() for flag in flags), "node"])

    def require(value: Any) -> Any:
        if type(value) is int and 2 <= value <= LARGEST:
            return value
        if value == "node" or any(value is flag for flag in flags):
            return value
        raise ValueError(f"must be {words}, or a whole number of GPUs that is at least 2")

    return BeforeValidator(require)


_Group = Annotated[int, Strict(), Field(ge=2, le=LARGEST)] | Literal["node"]
# A number of GPUs that work together; "node" is those of the cell on one node.
GroupSize = Annotated[_Group, _group_size_or()]
TrueOrGroupSize = Annotated[Literal[True] | _Group, _group_size_or(True)]
FlagOrGroupSize = Annotated[Flag | _Group, _group_size_or(True, False)]
Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
# Measured values. The limits are far beyond any machine; they keep ratios and sums finite.
Total = Annotated[int, Strict(), Field(ge=0, le=2**63 - 1)]
Change = Annotated[float, Strict(), Field(ge=-1e18, le=1e18, allow_inf_nan=False)]
Amount = Annotated[float, Strict(), Field(ge=0, le=1e18, allow_inf_nan=False)]
Positive = Annotated[float, Strict(), Field(ge=1e-12, le=1e18, allow_inf_nan=False)]
# NaN and infinity are results too; JSON stores them as text.
MaybeInfinite = Annotated[float, Field(strict=False)]
# Names occur in paths and in Snakemake's wildcards.
Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=64)]
RunName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]


def _require_one_line(text: str) -> str:
    # Unprintable are also changes of text direction, and spaces that only look like one.
    if not text.isprintable() or text != text.strip():
        raise ValueError("must be printable text on one line, with no space before or after it")
    return text


def _require_visible(colour: object) -> object:
    """Accept no colour, or one whose lines can be seen on white (WCAG 2.2, non-text contrast)."""
    if colour == "":
        return colour
    if not isinstance(colour, str) or not re.fullmatch("#[0-9A-Fa-f]{6}", colour):
        raise ValueError('must be like "#0072B2", in quotes because YAML takes # for a comment')
    shares = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in shares]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    if (contrast := 1.05 / (luminance + 0.05)) < 3:
        raise ValueError(
            f"must be darker: its contrast on white is {contrast:.1f}:1, and lines need 3:1"
        )
    return colour


# A result contains its cell's options, and a result that is nested much deeper is refused.
DEEPEST_OPTIONS = 20


def _require_json(options: dict[str, Any]) -> dict[str, Any]:
    for path, value in _leaves(options):
        finite = not isinstance(value, float) or math.isfinite(value)
        if not finite or not isinstance(value, (str, bool, int, float, type(None))):
            raise ValueError(
                f"must have text, a finite number, true, false or null as {path}; a date and "
                "infinity need quotes"
            )
    return options


def _leaves(value: Any, path: str = "", depth: int = 1) -> Iterator[tuple[str, Any]]:
    """Yield the values in nested lists and mappings, each with its path."""
    if isinstance(value, (dict, list)):
        if depth > DEEPEST_OPTIONS:
            raise ValueError(f"must not be nested more than {DEEPEST_OPTIONS} levels deep")
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(value, dict) and not isinstance(key, str):
                raise ValueError(f"must have text as keys; put {key!r} in quotes")
            yield from _leaves(entry, f"{path}.{key}" if path else str(key), depth + 1)
    else:
        yield path, value


# What a user's own file reads. It gets the values from JSON, which changes a date into text, for
# example; only what JSON keeps is the same in the check, the gate and the cells.
FreeOptions = Annotated[dict[str, Any], AfterValidator(_require_json)]
# Either may be empty.
Label = Annotated[str, Field(max_length=40), AfterValidator(_require_one_line)]
Colour = Annotated[str, Field(pattern="^(#[0-9A-Fa-f]{6})?$"), BeforeValidator(_require_visible)]


class Section(BaseModel):
    """A mapping of the configuration: unknown keys are errors, values are immutable."""

    # Write "Infinity" and "NaN", which can be read back. A failed gate's null could not be.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class Record(Section):
    """A part of a result. It is read strictly: no value is converted to another type."""

    model_config = ConfigDict(strict=True)
