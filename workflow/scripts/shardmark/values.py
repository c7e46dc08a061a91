"""The kinds of value that a configuration is made of, each taken as it is written.

A boolean is no number, text is no number, and 2.0 is no count: YAML told them apart already, and
what it read otherwise than its writer meant is better told than guessed.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, Strict

# Counts and seeds end in programs that keep 32 bits; torch seeds its generators from them.
LARGEST = 2**31 - 1

Count = Annotated[int, Strict(), Field(ge=1, le=LARGEST)]
Seed = Annotated[int, Strict(), Field(ge=0, le=LARGEST)]
Flag = Annotated[bool, Strict()]
Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
# Measured values. The limits are far beyond any machine, and keep ratios and sums finite.
Total = Annotated[int, Strict(), Field(ge=0, le=2**63 - 1)]
Change = Annotated[float, Strict(), Field(ge=-1e18, le=1e18, allow_inf_nan=False)]
Amount = Annotated[float, Strict(), Field(ge=0, le=1e18, allow_inf_nan=False)]
Positive = Annotated[float, Strict(), Field(ge=1e-12, le=1e18, allow_inf_nan=False)]
# Names stand in paths and in Snakemake's wildcards.
Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=64)]
RunName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]
