"""How a strategy looks in every figure: one colour and one marker, safe for colour-blind readers.

Colours are those of Okabe and Ito, "Color Universal Design" (2008), with yellow and light green
darkened until they read on white; families share a hue, and the marker tells their members apart
where the colour does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Look:
    """Colour (hex) and matplotlib's marker of a strategy; variants have an open face."""

    colour: str
    marker: str
    open_face: bool = False


_STRATEGIES = {
    "dp": Look("#000000", "s"),
    "ddp": Look("#0072B2", "o"),
    "fsdp": Look("#56B4E9", "^"),
    "fsdp2": Look("#D55E00", "v"),
    "fairscale_fsdp": Look("#CC79A7", "D"),
    "deepspeed_zero1": Look("#9A7D00", "P"),
    "deepspeed_zero2": Look("#E69F00", "X"),
    "deepspeed_zero3": Look("#009E73", "h"),
}
_VARIANT_MARKERS = ("<", ">", "p", "*", "d", "8")


def looks_of(strategies: Sequence[str], bases: dict[str, str]) -> dict[str, Look]:
    """The look of each strategy of a matrix.

    Args:
        strategies: names in the matrix.
        bases: the base of each; a variant takes its colour.
    """
    looks = {}
    variants = 0
    for name in strategies:
        base = _STRATEGIES[bases[name]]
        if name in _STRATEGIES:
            looks[name] = base
        else:
            marker = _VARIANT_MARKERS[variants % len(_VARIANT_MARKERS)]
            looks[name] = Look(base.colour, marker, open_face=True)
            variants += 1
    return looks
