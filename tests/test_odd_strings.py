"""Every string of the configuration, with what a shell, Snakemake or a message could trip over.

The strings are those of the schema, so a new one is tried too. Each is refused with one message, or
arrives in the cell as it was written.
"""

from __future__ import annotations

import copy
import json
import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from shardmark.cells import cell_of
from shardmark.config.loading import load
from shardmark.config.schema import Cluster, Config
from shardmark.errors import ConfigError
from shardmark.metrics import read_metrics
from shardmark.slurm.job_request import quoted_options
from shardmark.strategies import STRATEGIES
from small_matrix import RAW, ROOT
from test_workflow import CONFIG, SCRIPTS, copy_project

TEXT = "it's \"a ${HOME} {word}; touch made\nb"
# Two strings must be valid in a language of their own, and one names a file beside a folder.
VALID = {
    "site.setup": f"export FROM_SETUP={shlex.quote(TEXT)}",
    "cluster.slurm_extra": shlex.quote(TEXT),
    "site.container": f"images/{TEXT}",
}
BASE = copy.deepcopy(RAW)
BASE["workloads"]["small"]["dataset"] = {"name": "cifar10", "train_images": 64}
BASE["strategies"] = {"NAME": {"file": "mine.py"}}
BASE["matrix"] |= {"strategies": ["ddp"], "gpus": [1], "seeds": [0]}

Path_ = tuple[str | int, ...]


def strings(model: Any, at: Path_ = ()) -> Iterator[Path_]:
    """The place of every string, and of every key that can be chosen, in a model's schema."""
    schema = model.model_json_schema(by_alias=True)

    def walk(node: dict[str, Any], at: Path_) -> Iterator[Path_]:
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
        for choice in node.get("anyOf", []):
            yield from walk(choice, at)
        if node.get("type") == "string" or node == {}:
            yield at
        for name, entry in node.get("properties", {}).items():
            yield from walk(entry, (*at, name))
        for entry in [*node.get("prefixItems", []), *filter(None, [node.get("items")])]:
            yield from walk(entry, (*at, 0))
        if node.get("type") == "object":
            yield (*at, TEXT)
            entry = node.get("additionalProperties") or {}
            name = {"workloads": "small", "variants": "slim"}.get(str(at[-1]) if at else "", "NAME")
            for each in node.get("patternProperties", {}).values():
                yield from walk(each, (*at, name))
            if entry is not True and entry:
                yield from walk(entry, (*at, name))

    yield from walk(schema, at)


def every_string() -> list[Path_]:
    options = [
        place
        for base, strategy in STRATEGIES.items()
        for place in strings(
            strategy.options,
            (
                "variants",
                base + "_",
            ),
        )
    ]
    return list(dict.fromkeys([*strings(Config), *options]))


def with_text(raw: dict[str, Any], place: Path_) -> dict[str, Any]:
    """A configuration with the text at a place."""
    raw = copy.deepcopy(raw)
    value: Any = VALID.get(".".join(map(str, place)), TEXT)
    *parents, last = place
    if last == 0:
        *parents, last = parents
        value = [value]
    section = raw
    for parent in parents:
        section = section.setdefault(parent, {})
    if str(parents[-1:]).endswith("_']"):
        section["base"] = str(parents[-1])[:-1]
    section[last] = value
    return raw


@pytest.fixture(scope="module")
def place_of_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("odd")
    make_files(folder)
    return folder


def make_files(folder: Path) -> None:
    """What the configuration names and what must be there."""
    (folder / "config").mkdir(exist_ok=True)
    (folder / TEXT).mkdir()
    (folder / "images").mkdir()
    (folder / "mine.py").touch()
    (folder / VALID["site.container"]).touch()


def refused(raw: dict[str, Any], folder: Path) -> str | None:
    try:
        load(raw, folder)
    except ConfigError as error:
        return str(error)
    return None


def test_the_schema_has_the_strings_that_reach_a_cell() -> None:
    accepted = {"site.setup", "site.environment.NAME", "data.dir", "site.container", "site.scratch"}
    assert accepted <= {".".join(map(str, place)) for place in every_string()}


@pytest.mark.parametrize("place", every_string(), ids=lambda place: ".".join(map(str, place))[:60])
def test_a_string_is_taken_as_it_is_or_refused_in_lines_of_its_own(
    place: Path_, place_of_files: Path
) -> None:
    message = refused(with_text(BASE, place), place_of_files)
    if message is None:
        config = load(with_text(BASE, place), place_of_files)
        assert Config.model_validate_json(config.model_dump_json(by_alias=True)) == config
        return
    head, *lines = message.splitlines()
    assert head.split()[0] == str(len(lines)), message
    known = [str(part) for part in place if part not in (0, TEXT)]
    assert any(all(part in line for part in known) for line in lines), message


def test_every_string_that_is_taken_arrives_in_the_cell(tmp_path: Path) -> None:
    project = copy_project(tmp_path)
    make_files(tmp_path)
    raw = copy.deepcopy(BASE)
    for place in every_string():
        changed = with_text(raw, place)
        if refused(changed, tmp_path) is None:
            raw = changed
    raw["site"]["scratch"] = TEXT.replace("${HOME}", "$DISK")
    (tmp_path / CONFIG).write_text(yaml.safe_dump(raw, allow_unicode=True))
    (tmp_path / SCRIPTS / "fetch_data.py").write_text(
        "import json, pathlib, sys\n"
        "record = pathlib.Path(sys.argv[-1])\n"
        "record.parent.mkdir(parents=True)\n"
        "record.write_text(json.dumps(sys.argv))\n"
    )
    bin = f"{ROOT / 'tests/stand_ins'}{os.pathsep}{os.environ['PATH']}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", bin)
        done = project.matrix()
    assert done.returncode == 0, done.stdout
    metrics = read_metrics(tmp_path / "results/t/small/ddp/gpus1/seed0/metrics.json")
    config = load(raw, tmp_path)
    assert metrics.cell == cell_of(config, "small", "ddp", 1, 0)
    assert metrics.cell.data_dir == TEXT
    assert metrics.cell.site.environment == {"NAME": TEXT}
    assert metrics.cell.site.setup == VALID["site.setup"]
    assert metrics.cell.site.container == VALID["site.container"]
    assert not any(TEXT in argument for argument in metrics.provenance["command"])
    assert metrics.provenance["scratch"] == raw["site"]["scratch"]
    fetched = json.loads((tmp_path / "results/t/data/cifar10.json").read_text())
    assert fetched[fetched.index("--dir") + 1] == TEXT
    assert not list(tmp_path.rglob("made"))


def test_options_of_sbatch_are_no_shell() -> None:
    given = ["--exclusive", f"--mail-user={TEXT}"]
    options = quoted_options(Cluster(slurm_extra=shlex.join(given)))
    output = subprocess.check_output(["bash", "-c", f"printf '%s\\0' {options}"], text=True)
    assert output.split("\0")[:-1] == given
    assert quoted_options(Cluster(slurm_extra="--exclusive -C $X")) == "--exclusive -C '$X'"
