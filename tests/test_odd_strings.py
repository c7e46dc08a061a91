"""Every string of the configuration, with what a shell, Snakemake or a message could trip over.

The strings are those of the schema, so a new one is tried too. Each is refused with one message, or
arrives in the cell as it was written.
"""

from __future__ import annotations

import copy
import json
import os
import shlex
import shutil
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
# Some strings may contain no line break, and some no brace either.
ONE_LINE = TEXT.replace("\n", " ")
NO_BRACE = ONE_LINE.replace("{", "(").replace("}", ")")
TEXTS = (TEXT, ONE_LINE, NO_BRACE)
# Each kind of workload has strings of its own.
NAMES = ("small", "language", "own")
KEPT = ("batch", "optimizer", "precision")
SHARED = {key: RAW["workloads"]["small"][key] for key in KEPT}
BASE = copy.deepcopy(RAW)
BASE["workloads"] = {
    "small": SHARED
    | {"model": {"name": "resnet8"}, "dataset": {"name": "cifar10", "train_images": 64}},
    "language": SHARED
    | {
        "model": {"name": "gpt", "layers": 1, "width": 8, "heads": 1}
        | {"context": 8, "vocabulary": 256},
        "dataset": {"name": "text", "file": "a text.txt", "sequences": 16},
    },
    "own": SHARED | {"file": "mine.py", "dataset": {"samples": 16}},
}
BASE["strategies"] = {"NAME": {"file": "mine.py"}}
# The baseline is the strategy whose label can be chosen.
BASE["baseline"] = "NAME"
BASE["matrix"] |= {"workloads": [*NAMES], "strategies": ["NAME"]}
BASE["matrix"] |= {"gpus": [1], "seeds": [0]}


def valid(place: str, text: str) -> str:
    """A value with the text: some strings are valid in a language of their own, or name files."""
    return {
        "site.setup": f"export FROM_SETUP={shlex.quote(text)}",
        "cluster.slurm_extra": shlex.quote(text),
        "site.container": f"images/{text}",
        "workloads.language.dataset.file": f"{text}.txt",
        "workloads.own.file": f"{text}.py",
        "strategies.NAME.file": f"{text}.py",
    }.get(place, text)


Path_ = tuple[str | int, ...]


def strings(model: Any, at: Path_ = ()) -> Iterator[Path_]:
    """The place of every string, and of every key that can be chosen, in a model's schema."""
    schema = model.model_json_schema(by_alias=True)

    def walk(node: dict[str, Any], at: Path_) -> Iterator[Path_]:
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
        for choice in node.get("anyOf", []):
            yield from walk(choice, at)
        # Only the kinds of a workload are written as oneOf.
        if "oneOf" in node:
            for name, choice in zip(NAMES, node["oneOf"], strict=True):
                yield from walk(choice, (*at[:-1], name))
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


def with_text(raw: dict[str, Any], place: Path_, text: str) -> dict[str, Any]:
    """A configuration with the text at a place."""
    raw = copy.deepcopy(raw)
    value: Any = valid(dotted(place), text)
    *parents, last = [text if part == TEXT else part for part in place]
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
    (folder / "images").mkdir()
    (folder / "mine.py").touch()
    (folder / "a text.txt").write_bytes(bytes(200))
    for text in TEXTS:
        (folder / text).mkdir()
        for place in ("site.container", "workloads.own.file", "workloads.language.dataset.file"):
            (folder / valid(place, text)).write_text("#" * 200)


def dotted(place: Path_) -> str:
    return ".".join(map(str, place))


def refused(raw: dict[str, Any], folder: Path) -> str | None:
    try:
        load(raw, folder)
    except ConfigError as error:
        return str(error)
    return None


def test_the_schema_has_the_strings_that_reach_a_cell() -> None:
    accepted = {"site.setup", "site.environment.NAME", "data.dir", "site.container", "site.scratch"}
    of_workloads = {
        "workloads.small.dataset.name",
        "workloads.language.dataset.file",
        "workloads.own.file",
    }
    assert accepted | of_workloads <= {dotted(place) for place in every_string()}


@pytest.mark.parametrize("text", TEXTS, ids=["all", "one line", "no brace"])
@pytest.mark.parametrize("place", every_string(), ids=lambda place: dotted(place)[:60])
def test_a_string_is_taken_as_it_is_or_refused_in_lines_of_its_own(
    place: Path_, text: str, place_of_files: Path
) -> None:
    raw = with_text(BASE, place, text)
    message = refused(raw, place_of_files)
    if message is None:
        config = load(raw, place_of_files)
        assert Config.model_validate_json(config.model_dump_json(by_alias=True)) == config
        return
    head, *lines = message.splitlines()
    assert head.split()[0] == str(len(lines)), message
    known = [str(part) for part in place if part not in (0, TEXT)]
    assert any(all(part in line for part in known) for line in lines), message


@pytest.mark.slow
def test_every_string_that_is_taken_arrives_in_the_cell(tmp_path: Path) -> None:
    # The project lies in a folder with an odd name too.
    folder = tmp_path / "it's a $x {word}"
    folder.mkdir()
    project = copy_project(folder)
    make_files(folder)
    raw = copy.deepcopy(BASE)
    taken = {}
    for place in every_string():
        for text in TEXTS:
            changed = with_text(raw, place, text)
            if refused(changed, folder) is None:
                raw = changed
                taken[dotted(place)] = text
                break
    raw["site"]["scratch"] = TEXT.replace("${HOME}", "$DISK")
    (folder / CONFIG).write_text(yaml.safe_dump(raw, allow_unicode=True))
    (folder / SCRIPTS / "fetch_data.py").write_text(
        "import json, pathlib, sys\n"
        "record = pathlib.Path(sys.argv[-1])\n"
        "record.parent.mkdir(parents=True)\n"
        "record.write_text(json.dumps(sys.argv))\n"
    )
    for script in ("check_strategy", "check_training"):
        shutil.copy(ROOT / "tests/stand_ins/write_outputs.py", folder / SCRIPTS / f"{script}.py")
    bin = f"{ROOT / 'tests/stand_ins'}{os.pathsep}{os.environ['PATH']}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", bin)
        done = project.matrix()
    assert done.returncode == 0, done.stdout
    assert taken["strategies.NAME.label"] == ONE_LINE
    assert taken["workloads.language.dataset.file"] == NO_BRACE
    config = load(raw, folder)
    for workload in NAMES:
        file = folder / f"results/t/{workload}/NAME/gpus1/seed0/metrics.json"
        metrics = read_metrics(file)
        assert metrics.cell == cell_of(config, workload, "NAME", 1, 0)
        assert not any(TEXT in argument for argument in metrics.provenance["command"])
        assert metrics.provenance["scratch"] == raw["site"]["scratch"]
    assert metrics.cell.data_dir == TEXT
    assert metrics.cell.site.environment == {"NAME": TEXT}
    assert metrics.cell.site.setup == valid("site.setup", TEXT)
    assert metrics.cell.site.container == valid("site.container", TEXT)
    fetched = json.loads((folder / "results/t/data/cifar10.json").read_text())
    assert fetched[fetched.index("--dir") + 1] == TEXT
    assert not list(tmp_path.rglob("made"))


def test_options_of_sbatch_are_no_shell() -> None:
    given = ["--exclusive", f"--mail-user={TEXT}"]
    options = quoted_options(Cluster(slurm_extra=shlex.join(given)))
    output = subprocess.check_output(["bash", "-c", f"printf '%s\\0' {options}"], text=True)
    assert output.split("\0")[:-1] == given
    assert quoted_options(Cluster(slurm_extra="--exclusive -C $X")) == "--exclusive -C '$X'"
