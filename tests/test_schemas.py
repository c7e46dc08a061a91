"""The exported schemas: what the models say, valid, and true of what is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from jsonschema import Draft202012Validator
from snakemake.utils import update_config

import export_schemas
import forked_ranks
from mark_unsupported import unsupported_cell, unsupported_parity
from run_parity import run_parity
from shardmark.cells import parity_case
from shardmark.report.data_dictionary import SECTIONS, dictionary, unit_of
from shardmark.results.cell_rows import CellRow, EpochRow
from shardmark.results.failure_rows import FailureRow
from shardmark.results.largest_batch_rows import LargestBatchRow
from shardmark.results.parity_rows import ParityRow
from shardmark.statistics.comparison_rows import ScalingRow, SetComparisonRow
from small_matrix import RAW, ROOT, cell_at, changed, matrix

SCHEMAS = export_schemas.schemas()
REMEDY = "run: make schemas"


def schema(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(SCHEMAS[Path(f"workflow/schemas/{name}.schema.json")])
    return loaded


def errors(name: str, value: object) -> list[str]:
    """Where a value, as JSON writes it, does not fit a schema."""
    errors = Draft202012Validator(schema(name)).iter_errors(json.loads(json.dumps(value)))
    return [error.json_path for error in errors]


@pytest.mark.parametrize("path", SCHEMAS, ids=str)
def test_a_schema_is_what_the_models_say(path: Path) -> None:
    assert (ROOT / path).read_text() == SCHEMAS[path], REMEDY


def test_no_schema_is_left_of_a_model_that_is_gone() -> None:
    assert {path.relative_to(ROOT) for path in (ROOT / "workflow/schemas").iterdir()} == set(
        SCHEMAS
    )


def test_the_reference_of_every_key_is_what_the_models_say() -> None:
    page = (ROOT / "config/README.md").read_text()
    assert page[page.index(export_schemas.BEGIN) :] == export_schemas.reference(), REMEDY


def test_the_data_dictionary_is_what_the_models_say() -> None:
    assert (ROOT / export_schemas.DICTIONARY).read_text() == dictionary(), REMEDY


def test_the_data_dictionary_tells_each_column_its_unit_and_when_it_is_empty() -> None:
    tables = dictionary().partition("## metrics.json")[0]
    lines = [line.split(" | ") for line in tables.splitlines() if line.startswith("| `")]
    columns = {line[0].strip("| `"): line[1:] for line in lines if len(line) == 5}
    models = (CellRow, EpochRow, FailureRow, ParityRow, LargestBatchRow)
    compared = (SetComparisonRow, ScalingRow)
    assert set(columns) == {name for model in (*models, *compared) for name in model.model_fields}
    assert all(meaning for _, _, meaning, _ in columns.values())
    assert columns["energy_per_item_j"][:2] == ["number", "J"]
    assert columns["gpus"][3] == "never |"
    assert columns["compute_ms"][3].endswith("or measure.profile is false |")


def test_the_data_dictionary_describes_each_field_of_a_result() -> None:
    for section in SECTIONS:
        nameless = [name for name, field in section.model_fields.items() if not field.description]
        assert nameless == [], section
    described = dictionary().partition("### Times")[2]
    assert (
        "| `profile_s` | number | s | Time of the profiled steps, s. | measure.profile" in described
    )


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("switches_per_s", "1/s"),
        ("items_per_s", "items/s"),
        ("window_s", "s"),
        ("step_ms_p50", "ms"),
        ("seed", ""),
    ],
)
def test_a_name_carries_its_unit(name: str, unit: str) -> None:
    assert unit_of(name) == unit


def test_the_reference_names_every_key_that_the_default_configuration_sets() -> None:
    def keys(section: dict[str, Any], path: str) -> list[str]:
        paths: list[str] = []
        for key, value in section.items():
            here = f"{path}{'<name>' if path == 'workloads.' else key}"
            paths += keys(value, f"{here}.") if isinstance(value, dict) else [here]
        return paths

    raw = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    # What a user names in these is not a key.
    del raw["variants"]
    raw["cluster"]["expected_items_per_s"] = 0
    lines = export_schemas.reference().splitlines()
    for key in keys(raw, ""):
        counts = [
            sum(line.startswith(f"| {kind}`{key}` |") for line in lines)
            for kind in ("", "language: ")
        ]
        assert max(counts) == 1, key


@pytest.mark.parametrize("path", SCHEMAS, ids=str)
def test_a_schema_is_valid_2020_12(path: Path) -> None:
    parsed = json.loads(SCHEMAS[path])
    assert parsed["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    Draft202012Validator.check_schema(parsed)


@pytest.mark.parametrize(
    "overlay",
    [
        None,
        "demo",
        "incumbent",
        "pilot",
        "one_gpu",
        "two_gpus",
        "eight_gpus",
        "four_gpus",
        "checks",
    ],
)
def test_the_shipped_configurations_fit_the_schema(overlay: str | None) -> None:
    raw: dict[str, Any] = {}
    for name in filter(None, ("config", overlay)):
        update_config(raw, yaml.safe_load((ROOT / f"config/{name}.yaml").read_text()))
    assert errors("config", raw) == []


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        (changed(matrix__gpus=[0]), "$.matrix.gpus[0]"),
        (changed(matrix__gpus=["2"]), "$.matrix.gpus[0]"),
        (changed(matrix__seeds=[]), "$.matrix.seeds"),
        (changed(workloads__small__precision="fp8"), "$.workloads.small.precision"),
        (changed(workloads__small__img=1), "$.workloads.small"),
        (
            changed(
                workloads__small__model={"name": "gpt", "preset": "gpt_1b4"},
                workloads__small__dataset={"name": "cifar10"},
            ),
            "$.workloads.small.dataset.name",
        ),
        (changed(measure=None), "$.measure"),
        (changed(workloads={}), "$.workloads"),
    ],
)
def test_an_editor_with_the_schema_sees_the_mistakes(raw: dict[str, Any], path: str) -> None:
    assert errors("config", RAW) == []
    assert errors("config", raw) == [path]


@pytest.mark.slow
def test_the_result_of_a_real_cell_fits_the_schema(tmp_path: Path) -> None:
    metrics = forked_ranks.run_cell(cell_at("ddp"), tmp_path)
    assert metrics.status == "ok", metrics.failure
    written = json.loads(metrics.model_dump_json(by_alias=True, indent=1))
    assert written["throughput"]["items_per_s"] > 0
    assert errors("metrics", written) == []
    assert errors("cell", written["cell"]) == []
    assert errors("metrics", written | {"status": "fine"}) == ["$.status"]
    assert errors("metrics", written | {"power": 1}) == ["$"]
    del written["cell"]["seed"]
    assert errors("metrics", written) == ["$.cell"]


def test_what_cannot_run_fits_the_schemas_too() -> None:
    metrics = unsupported_cell(cell_at("dp", gpus=2))
    assert errors("metrics", json.loads(metrics.model_dump_json(by_alias=True))) == []
    verdict = unsupported_parity(parity_case(matrix(), "small", "dp", 2))
    assert errors("parity", json.loads(verdict.model_dump_json(by_alias=True))) == []


def test_a_case_that_cannot_run_has_one_result_whoever_writes_it() -> None:
    case = parity_case(matrix(), "small", "dp", 2)
    assert run_parity(case, Path("no oracle"), Path("v.json")) == unsupported_parity(case)


def test_the_schema_says_the_version_that_is_read() -> None:
    with pytest.raises(jsonschema.ValidationError, match="1 was expected"):
        jsonschema.validate({"schema_version": 2}, {"properties": schema("metrics")["properties"]})
