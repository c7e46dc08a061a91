"""All results of a matrix, each judged beside the others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shardmark.config import Config
from shardmark.measurement.validity import judged
from shardmark.metrics import Metrics
from shardmark.results.gaps import results_of


@dataclass(frozen=True)
class MatrixResults:
    """What there is of a matrix.

    Attributes:
        metrics: the results that count, in the order of the configuration, judged by all rules of
            validity, those included that need other cells.
        refused: why the other files do not count, each with its path.
    """

    metrics: list[Metrics]
    refused: list[str]


def read_matrix(config: Config, root: Path = Path()) -> MatrixResults:
    """Read and judge every result under ``root``."""
    results = [result for _, result in results_of(config, root)]
    metrics = [result for result in results if isinstance(result, Metrics)]
    return MatrixResults(
        metrics=[judged(result, metrics) for result in metrics],
        refused=[str(result) for result in results if not isinstance(result, Metrics)],
    )
