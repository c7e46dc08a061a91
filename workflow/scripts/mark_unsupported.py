"""Write the results of all cells that cannot run here, without starting them."""

from __future__ import annotations

import argparse

from shardmark.cells import Cell, ParityCase, batch_searches_of, cells_of, parity_case
from shardmark.codebase import code_of_cell, code_sha256
from shardmark.command import one_message
from shardmark.config.saved import read_config
from shardmark.config.schema import Config
from shardmark.files import write_text
from shardmark.largest_batch import batch_result
from shardmark.metrics import Failure, Metrics
from shardmark.parity_result import Parity, parity_result


def unsupported_cell(cell: Cell) -> Metrics:
    """The result of a cell that cannot run.

    Raises:
        ValueError: if the cell can run.
    """
    return Metrics(
        cell=cell,
        cell_sha256=cell.fingerprint(),
        code_sha256=code_sha256(code_of_cell(cell)),
        status="unsupported",
        failure=Failure.plain(_reason(cell)),
    )


def unsupported_parity(case: ParityCase) -> Parity:
    """The verdict on a case that cannot run.

    Raises:
        ValueError: if the case can run.
    """
    return parity_result(case, status="unsupported", reason=_reason(case.cell))


def _reason(cell: Cell) -> str:
    if cell.unsupported is None:
        raise ValueError(f"{cell.title} can run")
    return cell.unsupported


@one_message
def main() -> None:
    """Write the results, verdicts and largest batches of all cells that cannot run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=read_config, required=True, help="the saved configuration")
    config: Config = parser.parse_args().config
    unsupported = [cell for cell in cells_of(config) if cell.unsupported]
    for cell in unsupported:
        text = unsupported_cell(cell).model_dump_json(by_alias=True, indent=1)
        write_text(cell.folder / "metrics.json", text)
    for names in {(cell.workload, cell.strategy, cell.gpus): cell for cell in unsupported}:
        case = parity_case(config, *names)
        text = unsupported_parity(case).model_dump_json(by_alias=True, indent=1)
        write_text(case.file, text)
        print(f"{case.cell.title}: {case.cell.unsupported}")
    for search in batch_searches_of(config):
        if reason := search.cell.unsupported:
            largest = batch_result(search, status="unsupported", reason=reason)
            write_text(search.file, largest.model_dump_json(by_alias=True, indent=1))


if __name__ == "__main__":
    main()
