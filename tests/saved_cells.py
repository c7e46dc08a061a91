"""Cells and parity cases as the workflow names them: by a saved configuration and their names."""

from __future__ import annotations

import tempfile
from pathlib import Path

from shardmark.cells import Cell, ParityCase, cell_of
from shardmark.config.saved import save_config, saved_path
from shardmark.config.schema import Config, ParityGate

_FILES = tempfile.TemporaryDirectory(prefix="shardmark-test-")


def saved(config: Config) -> str:
    """The file of a configuration that a script reads with ``--config``."""
    path = Path(_FILES.name) / saved_path(config)
    save_config(config, path)
    return str(path)


def cell_arguments(cell: Cell) -> list[str]:
    """The arguments that name a cell of a plain strategy to run_cell.py."""
    config = _config_of(cell, ParityGate())
    assert cell_of(config, cell.workload, cell.strategy, cell.gpus, cell.seed) == cell
    names = [f"--workload={cell.workload}", f"--strategy={cell.strategy}"]
    return ["--config", saved(config), *names, f"--gpus={cell.gpus}", f"--seed={cell.seed}"]


def oracle_arguments(case: ParityCase) -> list[str]:
    """The arguments that name the oracle of a case to make_oracle.py."""
    config = saved(_config_of(case.cell, case.gate))
    return ["--config", config, f"--workload={case.cell.workload}", f"--ranks={case.cell.gpus}"]


def _config_of(cell: Cell, gate: ParityGate) -> Config:
    plain = cell.strategy == cell.base
    variants = {} if plain else {cell.strategy: {"base": cell.base} | cell.options}
    return Config.model_validate(
        {
            "run": cell.run,
            "matrix": {
                "workloads": [cell.workload],
                "strategies": [cell.strategy],
                "gpus": [cell.gpus],
                "seeds": [cell.seed],
            },
            "workloads": {cell.workload: cell.definition},
            "variants": variants,
            "cluster": {"device": cell.device, "gpus_per_node": cell.gpus_per_node},
            "site": cell.site.model_dump(),
            "data": {"dir": cell.data_dir},
            "measure": cell.measure,
            "parity": gate,
        }
    )
