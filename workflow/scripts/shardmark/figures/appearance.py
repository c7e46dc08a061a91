"""How a strategy looks in every figure: a colour and a marker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shardmark.strategies import STRATEGIES, spec_of


@dataclass(frozen=True)
class Look:
    """A strategy's colour (hex) and matplotlib marker; variants have open markers."""

    colour: str
    marker: str
    open_face: bool = False


_VARIANT_MARKERS = ("<", ">", "p", "*", "d", "8")


def looks(bases: Mapping[str, str], colours: Mapping[str, str]) -> dict[str, Look]:
    """Return the look of each strategy of a matrix.

    Args:
        bases: the base of each strategy. A variant has the colour of its base.
        colours: the colours that the configuration chooses instead.
    """
    result = {}
    variants = 0
    for name, base in bases.items():
        record = spec_of(base)
        if name in STRATEGIES:
            result[name] = Look(record.colour, record.marker)
        else:
            marker = _VARIANT_MARKERS[variants % len(_VARIANT_MARKERS)]
            result[name] = Look(colours.get(name, record.colour), marker, open_face=True)
            variants += 1
    return result
