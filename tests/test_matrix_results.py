"""Which results of a matrix count, which are missing, stale or refused, and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shardmark.cells import Cell
from shardmark.codebase import code_of_cell, code_sha256
from shardmark.files import write_text
from shardmark.metrics import Metrics
from shardmark.results.matrix import PlannedCell, read_matrix
from small_matrix import cell_at, matrix

CONFIG = {"matrix__strategies": ["ddp"], "matrix__gpus": [1], "matrix__seeds": [0, 1]}
FIRST, SECOND = "small ddp gpus1 seed0", "small ddp gpus1 seed1"


def result_of(cell: Cell, /, **changes: Any) -> str:
    """metrics.json of a cell, with changes to its top level."""
    metrics = Metrics(
        cell=cell,
        cell_sha256=cell.fingerprint(),
        code_sha256=code_sha256(code_of_cell(cell)),
        status="ok",
    )
    return json.dumps(metrics.model_dump(mode="json", by_alias=True) | changes)


def matrix_with(folder: Path, text: str | bytes, **values: Any) -> list[PlannedCell]:
    """A matrix of two cells: the first holds ``text``, the second a good result."""
    first, second = (cell_at(seed=seed, **values) for seed in (0, 1))
    write_text(folder / second.folder / "metrics.json", result_of(second))
    path = folder / first.folder / "metrics.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_matrix(matrix(**CONFIG | values), folder)


def why_refused(planned: list[PlannedCell]) -> str:
    """The reason why the first cell is refused, while the second is ok."""
    first, second = planned
    assert (first.cell.title, second.cell.title) == (FIRST, SECOND)
    assert (first.outcome, first.metrics, second.outcome) == ("refused", None, "ok")
    return first.refusal


def test_a_result_of_the_present_definition_and_code_counts(tmp_path: Path) -> None:
    planned = matrix_with(tmp_path, result_of(cell_at()))
    assert [(one.outcome, one.stale, one.refusal) for one in planned] == [("ok", False, "")] * 2


def test_every_outcome_counts_as_a_result(tmp_path: Path) -> None:
    text = result_of(
        cell_at(),
        status="oom",
        failure={"phase": "build", "rank": 0, "exception": "e", "log_tail": []},
    )
    first, _ = matrix_with(tmp_path, text)
    assert first.outcome == "oom"
    assert first.metrics is not None


def test_a_cell_without_a_result_is_missing(tmp_path: Path) -> None:
    assert [one.outcome for one in read_matrix(matrix(**CONFIG), tmp_path)] == ["missing"] * 2
    matrix_with(tmp_path, "")
    (tmp_path / cell_at().folder / "metrics.json").unlink()
    assert [one.outcome for one in read_matrix(matrix(**CONFIG), tmp_path)] == ["missing", "ok"]


def test_data_that_moved_make_nothing_stale(tmp_path: Path) -> None:
    planned = matrix_with(tmp_path, result_of(cell_at(data__dir="tests")))
    assert [(one.outcome, one.stale) for one in planned] == [("ok", False)] * 2


@pytest.mark.parametrize(
    "before",
    [
        {"workloads__small__optimizer__learning_rate": 0.2},
        {"measure__steady_max_s": 9},
        {"cluster__device": "cuda"},
    ],
)
def test_a_result_of_another_definition_is_refused(tmp_path: Path, before: dict[str, Any]) -> None:
    reason = why_refused(matrix_with(tmp_path, result_of(cell_at(**before))))
    assert "its definition has changed since" in reason


def test_another_cells_result_in_its_place_is_refused(tmp_path: Path) -> None:
    reason = why_refused(matrix_with(tmp_path, result_of(cell_at(seed=1))))
    assert "its definition has changed since" in reason


def test_a_result_of_other_code_is_stale_and_still_reported(tmp_path: Path) -> None:
    first, _ = matrix_with(tmp_path, result_of(cell_at(), code_sha256="0" * 64))
    assert (first.outcome, first.stale, first.refusal) == ("stale", True, "")
    assert first.metrics is not None


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"spoilt",
        b'{"schema_version": 1, "cell"',
        b"\xff\xfe",
    ],
)
def test_a_corrupt_result_is_refused_and_named_with_what_to_do(tmp_path: Path, text: bytes) -> None:
    reason = why_refused(matrix_with(tmp_path, text))
    assert str(tmp_path / cell_at().folder / "metrics.json") in reason
    assert "not readable as JSON" in reason
    assert "delete it to run it again" in reason


@pytest.mark.parametrize("version", [0, 2, None, "1", [1]])
def test_a_result_of_another_schema_is_refused(tmp_path: Path, version: Any) -> None:
    reason = why_refused(matrix_with(tmp_path, result_of(cell_at(), schema_version=version)))
    assert f"schema version {version!r}, this shardmark reads 1" in reason


@pytest.mark.parametrize("text", ["[]", "null", "3"])
def test_json_that_is_no_result_is_refused(tmp_path: Path, text: str) -> None:
    assert "schema version None" in why_refused(matrix_with(tmp_path, text))


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"status": "fine"}, "status"),
        ({"throughput": {"items_per_s": "fast"}}, "throughput.items_per_s"),
        ({"cell": None}, "cell"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_result_that_does_not_fit_its_schema_is_refused_with_the_place(
    tmp_path: Path, changes: dict[str, Any], place: str
) -> None:
    reason = why_refused(matrix_with(tmp_path, result_of(cell_at(), **changes)))
    assert f"metrics.json: {place}: " in reason
