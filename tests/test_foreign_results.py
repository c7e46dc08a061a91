"""Results that others wrote: refused by name, whatever they hold; and harmless where they show."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pydantic import ValidationError

from built_pages import make_tables
from gpu_matrix import config_of, failed, metrics_of, write, write_matrix
from shardmark.cells import Cell, cell_of
from shardmark.controller.progress import outcome
from shardmark.errors import UserError
from shardmark.escaping import csv_text, for_csv, for_markdown, for_terminal
from shardmark.metrics import Metrics, read_metrics
from small_matrix import ROOT, cell_at

NESTED: list[Any] = []
for _ in range(40):
    NESTED = [NESTED]


def cell(strategy: str = "ddp") -> Cell:
    return cell_of(config_of(), "w", strategy, 2, 0)


def changed(path: Path, field: str, value: object) -> Path:
    """A good result with another value at a dotted path; its checksum is that of its cell."""
    raw = json.loads(metrics_of(cell()).model_dump_json(by_alias=True))
    *parents, last = field.split(".")
    section = raw
    for parent in parents:
        section = section[int(parent) if isinstance(section, list) else parent]
    section[last] = value
    if parents[:1] == ["cell"]:
        with contextlib.suppress(ValidationError):
            raw["cell_sha256"] = Cell.model_validate(raw["cell"]).fingerprint()
    path.write_text(json.dumps(raw))
    return path


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("throughput", []),
        ("throughput.items_per_s", float("inf")),
        ("throughput.items_per_s", "Infinity"),
        ("throughput.items_per_s", float("nan")),
        ("throughput.items_per_s", -1),
        ("throughput.items_per_s", 0),
        ("throughput.items_per_s", 1e300),
        ("throughput.items_per_s", 1e-300),
        ("throughput.items_per_s", "7"),
        ("throughput.items_per_s", True),
        ("throughput.steps", 10**400),
        ("throughput.steps", -1),
        ("time_s.epochs_s", {"a": 1}),
        ("accuracy.per_epoch", [2.0]),
        ("windows.steady_monotonic_s", [1.0]),
        ("devices", {}),
        ("environment", []),
        ("environment.versions", ["torch"]),
        ("environment.versions", {"torch": ["2"]}),
        ("environment.variables", {"A": {"b": "c"}}),
        ("environment.host", ["node1"]),
        ("provenance", [1]),
        ("provenance.git_commit", {"a": 1}),
        ("effective_config.learning_rate", "fast"),
        ("cell.gpus", 0),
        ("cell.gpus", -1),
        ("cell.gpus", 4),
        ("cell.nodes", 0),
        ("cell.seed", 10**30),
        ("cell.global_batch_size", 0),
        ("cell.base", "magic"),
        ("cell.options", []),
        ("cell.options", {"bucket_cap_mb": "wide"}),
        ("cell.site", ["module load cuda"]),
        ("cell.workload", "../w"),
    ],
    ids=str,
)
def test_a_value_that_no_cell_writes_is_refused_by_its_name(
    tmp_path: Path, field: str, value: object
) -> None:
    path = tmp_path / "metrics.json"
    with pytest.raises(UserError) as refused:
        read_metrics(changed(path, field, value))
    assert str(refused.value).startswith(f"{path}: {field.split('.')[0]}")
    assert str(refused.value).endswith("; delete it to run it again")


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"schema_version": 1, "status": ' + "9" * 5000 + "}",
        '{"schema_version": true}',
        '{"schema_version": 1, "status": "\\ud800"}',
        json.dumps({"schema_version": 1, "provenance": NESTED}),
    ],
    ids=["brackets", "digits", "true", "half a character", "nested"],
)
def test_a_text_that_breaks_readers_is_refused_by_its_path(tmp_path: Path, text: str) -> None:
    path = tmp_path / "metrics.json"
    path.write_text(text)
    with pytest.raises(UserError, match=f"^{path}: .*; delete it to run it again$"):
        read_metrics(path)


def test_a_cell_that_was_edited_is_refused(tmp_path: Path) -> None:
    path = changed(tmp_path / "metrics.json", "cell.seed", 1)
    assert read_metrics(path).cell.seed == 1
    raw = json.loads(path.read_text())
    raw["cell"]["seed"] = 2
    path.write_text(json.dumps(raw))
    with pytest.raises(UserError, match="cell_sha256 is not the checksum of its cell"):
        read_metrics(path)


def test_a_field_that_cells_have_got_since_does_not_make_a_result_unreadable(
    tmp_path: Path,
) -> None:
    path = changed(tmp_path / "metrics.json", "cell.seed", 1)
    raw = json.loads(path.read_text())
    del raw["cell"]["definition"]["batchnorm"]
    defining = {name: value for name, value in raw["cell"].items() if name != "data_dir"}
    del defining["site"]
    text = json.dumps(defining, sort_keys=True).encode()
    path.write_text(json.dumps(raw | {"cell_sha256": hashlib.sha256(text).hexdigest()}))
    assert read_metrics(path).cell.definition.batchnorm == "local"


@pytest.mark.parametrize("status", ["ok", "oom", "timeout", "diverged", "failed", "unsupported"])
def test_every_outcome_that_a_cell_writes_is_read(tmp_path: Path, status: str) -> None:
    written = metrics_of(cell()) if status == "ok" else failed(cell(), status, "why")
    if status == "diverged":
        loss = {"per_epoch": [1.0, float("nan"), float("inf")], "final": float("nan")}
        raw = written.model_dump(by_alias=True) | {"loss": loss}
        written = Metrics.model_validate(raw)
    path = tmp_path / "metrics.json"
    path.write_text(written.model_dump_json(by_alias=True))
    assert read_metrics(path).model_dump_json() == written.model_dump_json()


def test_a_rerun_shows_what_the_file_runs_and_asks_first(tmp_path: Path) -> None:
    site = {
        "setup": "touch \x1b[8mran\nmodule load cuda",
        "environment": {"LD_PRELOAD": "/tmp/evil.so"},
        "container": "image.sif",
    }
    # It cannot run on a CPU, and so starts nothing.
    one = cell_at("dp", 2)
    raw = json.loads(one.model_dump_json(by_alias=True)) | {"site": site}
    metrics = failed(Cell.model_validate(raw), "unsupported", "why")
    path = tmp_path / "metrics.json"
    path.write_text(metrics.model_dump_json(by_alias=True))
    command = [sys.executable, str(ROOT / "workflow/scripts/rerun.py"), str(path)]

    asked = subprocess.run(command, text=True, capture_output=True, cwd=tmp_path)
    assert asked.returncode == 1
    assert asked.stdout.splitlines()[1:] == [
        "  site.setup:",
        "  touch ran",
        "  module load cuda",
        "  site.environment:",
        "  LD_PRELOAD=/tmp/evil.so",
        "  site.container:",
        "  image.sif",
    ]
    assert "nothing was run" in asked.stderr
    assert "YES=1" in asked.stderr
    assert list(tmp_path.iterdir()) == [path]

    agreed = subprocess.run([*command, "--yes"], text=True, capture_output=True, cwd=tmp_path)
    assert agreed.returncode == 0, agreed.stderr
    assert "site.setup:" in agreed.stdout
    assert read_metrics(tmp_path / "results/t/reruns/small/dp/gpus2/seed0/metrics.json")


def test_a_terminal_gets_neither_colours_nor_what_overwrites_a_line() -> None:
    hostile = (
        "\x1b[31mred\x1b[0m \x1b]0;title\x07\x1b]8;;http://x\x1b\\link\x9b2J\r\b\x00\u202eok\n\t."
    )
    assert for_terminal(hostile) == "red linkok\n\t."
    assert for_terminal("−3.2 %, 95 % [1, 2], naïve, 測試") == "−3.2 %, 95 % [1, 2], naïve, 測試"
    assert str(UserError(hostile)) == "red linkok\n\t."


def test_a_failure_is_read_without_escapes(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    metrics = failed(cell(), "failed", "boom\x1b[2J\x1b[H all is well")
    path.write_text(metrics.model_dump_json(by_alias=True))
    failure = read_metrics(path).failure
    assert failure is not None
    assert failure.exception == "boom all is well"


def test_hostile_text_in_a_result_stays_text_in_the_tables_and_on_a_terminal(
    tmp_path: Path,
) -> None:
    hostile, plain = "=1+1|\x1b[2Ja", "=1+1|a"
    config = config_of(strategies=["ddp", "fsdp2"], seeds=[0, 1])
    write_matrix(config, tmp_path, side_files=False)
    path = write(failed(cell_of(config, "w", "fsdp2", 2, 0), "failed", hostile), tmp_path)
    good = metrics_of(cell_of(config, "w", "fsdp2", 2, 1))
    devices = [device.model_copy(update={"name": hostile}) for device in good.devices]
    write(good.model_copy(update={"devices": devices}), tmp_path)

    tables = make_tables(config, tmp_path)
    script = ROOT / "workflow/scripts/summarise.py"
    command = [sys.executable, str(script), "--tables", str(tables), "--baseline", "ddp"]
    subprocess.run(command, check=True)
    assert outcome(path) == ("failed", f" ({plain})")
    assert not any("\x1b" in table.read_text() for table in tables.rglob("*.*"))
    with (tables / "cells.csv").open(newline="") as file:
        entries = {entry for row in csv.reader(file) for entry in row}
    assert {f"'{plain}", f"'{plain};{plain}"} <= entries
    assert not any(entry.startswith("=") for entry in entries)
    for block in (tables / "summary.md").read_text().split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) <= 1


def test_a_failure_of_nothing_but_escapes_is_read(tmp_path: Path) -> None:
    path = write(failed(cell(), "failed", "\x1b[2J"), tmp_path)
    assert outcome(path) == ("failed", "")


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("a|b", "a\\|b"),
        ("a\\|b", "a\\\\\\|b"),
        ("a\n| b |", "a \\| b \\|"),
        ("![x](http://x/y.png)", "![x]\\(http://x/y.png)"),
        ("<img src=x> p < 0.05", "&lt;img src=x> p < 0.05"),
        ("CI [1, 2]", "CI [1, 2]"),
    ],
)
def test_a_cell_of_markdown_stays_one_cell(text: str, cell: str) -> None:
    assert for_markdown(text) == cell


@pytest.mark.parametrize("text", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", " =1", "\t=1"])
def test_a_formula_in_a_csv_is_text(text: str) -> None:
    assert for_csv(text) == f"'{text}"


@pytest.mark.parametrize(
    "value", ["-3.5", "+1,024", "-1e-05", "-3.2 %", "−3 %", "–", -3.5, 7, None]
)
def test_a_number_in_a_csv_stays_one(value: object) -> None:
    assert for_csv(value) == value
    table = pd.DataFrame({"name": ["=1"], "value": [-3.5], "count": [7], "none": [None]})
    assert csv_text(table) == "name,value,count,none\n'=1,-3.5,7,\n"


def test_a_result_from_before_language_models_is_read_under_its_old_names(tmp_path: Path) -> None:
    now = metrics_of(cell())
    raw = json.loads(now.model_dump_json(by_alias=True))
    assert raw["throughput"].pop("unit") == "images"
    for section in (raw["throughput"], raw["efficiency"], raw["roofs"] or {}):
        for name in [name for name in section if "item" in name]:
            section[name.replace("item", "image")] = section.pop(name)
    assert raw["throughput"]["images_per_s"] > 0
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps(raw))
    assert read_metrics(path) == now
