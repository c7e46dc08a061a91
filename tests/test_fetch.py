"""The data sets of a matrix, brought once to where its cells find them."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import pickle
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import CIFAR10

from fetch_data import fetch
from parity_cases import case_of
from shardmark.errors import UserError
from shardmark.workload.vision.data_files import why_outdated
from shardmark.workload.vision.images import load_images
from test_workflow import CELL, CONFIG, SCRIPTS, Project, copy_project

BATCHES = [f"data_batch_{index}" for index in range(1, 6)]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        """Says nothing."""


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a server that has an archive as CIFAR-10's is made, of two images a file."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    files = {}
    for name in (*BATCHES, "test_batch"):
        images = np.zeros((2, 3072), dtype=np.uint8)
        files[name] = pickle.dumps({"data": images, "labels": [0, 1], "name": name})
    files["batches.meta"] = pickle.dumps({"label_names": ["one", "other"]})
    archive = folder / CIFAR10.filename
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{CIFAR10.base_folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    sums = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    for name, value in {
        "url": f"http://127.0.0.1:{server.server_port}/{CIFAR10.filename}",
        "tgz_md5": hashlib.md5(archive.read_bytes()).hexdigest(),
        "train_list": [[name, sums[name]] for name in BATCHES],
        "test_list": [["test_batch", sums["test_batch"]]],
        "meta": CIFAR10.meta | {"md5": sums["batches.meta"]},
    }.items():
        monkeypatch.setattr(CIFAR10, name, value)
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield folder
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_data_set_is_downloaded_once_and_checked(mirror: Path, tmp_path: Path) -> None:
    folder = tmp_path / "resources"
    record = fetch("cifar10", folder, download=True)
    assert len(record["files"]) == len(BATCHES) + 2
    (mirror / CIFAR10.filename).unlink()
    # Whole already: neither asked for again, nor needed.
    assert fetch("cifar10", folder, download=True) == record
    assert fetch("cifar10", folder, download=False) == record


def test_a_damaged_data_set_is_refused_and_mended_where_it_may(
    mirror: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "resources"
    record = fetch("cifar10", folder, download=True)
    damaged = folder / CIFAR10.base_folder / "data_batch_3"
    damaged.write_bytes(b"cut short")
    with pytest.raises(UserError, match="data_batch_3 is damaged"):
        fetch("cifar10", folder, download=False)
    assert fetch("cifar10", folder, download=True) == record
    assert damaged.read_bytes() != b"cut short"


def test_a_mirror_that_lacks_the_data_set_is_one_message(mirror: Path, tmp_path: Path) -> None:
    (mirror / CIFAR10.filename).unlink()
    with pytest.raises(UserError, match="could not be downloaded"):
        fetch("cifar10", tmp_path / "resources", download=True)


MISSING = CELL.format("other", "ddp", 2, 1)
MISSING_TITLE = "other ddp gpus2 seed1"
CELLS = [MISSING, CELL.format("other", "ddp", 2, 0), CELL.format("other", "fsdp", 2, 1)]
RECORD = "results/t/data/cifar10.json"
OFFLINE = "import sys; sys.exit('shardmark: data.dir: no internet here')"


class DataProject(Project):
    """A project whose fetch_data.py writes a log."""

    def fetched(self) -> int:
        """How often the data set was fetched."""
        return len((self.folder / "fetched.log").read_text().splitlines())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with three cells on CIFAR-10 that have run."""
    project = make_project(tmp_path_factory.mktemp("whole"))
    done = project.matrix(*CELLS)
    assert done.returncode == 0, done.stdout
    assert len(project.ran()) == len(CELLS)
    return project.folder


@pytest.fixture
def trained(whole: Path, tmp_path: Path) -> DataProject:
    return DataProject(Path(shutil.copytree(whole, tmp_path / "project")))


@pytest.fixture
def project(tmp_path: Path) -> DataProject:
    return make_project(tmp_path)


def make_project(folder: Path) -> DataProject:
    """A matrix of which one workload is on CIFAR-10, and what fetches it stood in for."""
    project = DataProject(copy_project(folder).folder)
    (project.folder / SCRIPTS / "fetch_data.py").write_text(
        "import pathlib, sys\n"
        "with open('fetched.log', 'a') as log: print(*sys.argv[1:], file=log)\n"
        "import json\n"
        "folder = pathlib.Path(sys.argv[sys.argv.index('--dir') + 1])\n"
        "folder.mkdir(exist_ok=True)\n"
        "batch = folder / 'data_batch_1'\n"
        "batch.touch()\n"
        "facts = {'bytes': 0, 'modified_ns': batch.stat().st_mtime_ns}\n"
        "record = pathlib.Path(sys.argv[-1])\n"
        "record.parent.mkdir(parents=True, exist_ok=True)\n"
        "record.write_text(json.dumps({'files': {batch.name: facts}}))\n"
    )
    config = project.folder / CONFIG
    head, tail = config.read_text().rsplit("name: synthetic", 1)
    config.write_text(f"{head}name: cifar10{tail}")
    return project


def test_fetch_brings_the_matrixs_data_sets_and_trains_nothing(project: DataProject) -> None:
    done = project.matrix("fetch")
    assert done.returncode == 0, done.stdout
    assert project.fetched() == 1
    log = (project.folder / "fetched.log").read_text()
    assert "--dataset cifar10 --dir resources --download true" in log
    assert project.ran() == []
    # On a node without internet nothing is left to fetch.
    (project.folder / SCRIPTS / "fetch_data.py").write_text(OFFLINE)
    assert project.matrix(MISSING).returncode == 0
    assert project.ran() == [MISSING_TITLE]


def test_fetch_and_a_matrix_in_one_command(trained: DataProject) -> None:
    (trained.folder / MISSING).unlink()
    done = trained.matrix("fetch", *CELLS)
    assert done.returncode == 0, done.stdout
    assert trained.fetched() == 2
    assert trained.ran() == [MISSING_TITLE]


def test_touch_fetches_nothing(trained: DataProject) -> None:
    purge_the_data(trained)
    done = trained.matrix("--touch", "--force", MISSING)
    assert done.returncode == 0, done.stdout
    assert trained.fetched() == 1


def lose_the_record(project: DataProject) -> str:
    (project.folder / RECORD).unlink()
    return "not checked yet"


def spoil_the_record(project: DataProject) -> str:
    (project.folder / RECORD).write_text("{}")
    return f"{RECORD} is unreadable, or of an earlier version"


def purge_the_data(project: DataProject) -> str:
    (project.folder / "resources/data_batch_1").unlink()
    return "resources/data_batch_1 is missing"


def change_the_data(project: DataProject) -> str:
    (project.folder / "resources/data_batch_1").write_text("other")
    return "resources/data_batch_1 has changed"


def name_another_folder(project: DataProject) -> str:
    (project.folder / "elsewhere").mkdir()
    project.edit(CONFIG, "data: {dir: elsewhere, download: false}\n")
    return "elsewhere/data_batch_1 is missing"


def fail_to_fetch(project: DataProject) -> str:
    script = project.folder / SCRIPTS / "fetch_data.py"
    text = script.read_text()
    script.write_text(OFFLINE)
    assert project.matrix("fetch").returncode != 0
    script.write_text(text)
    return ""


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        lose_the_record,
        spoil_the_record,
        purge_the_data,
        change_the_data,
        name_another_folder,
        fail_to_fetch,
    ],
)
def test_only_the_missing_cell_runs_whatever_happened_to_its_data(
    change: Callable[[DataProject], str], trained: DataProject
) -> None:
    reason = change(trained)
    assert trained.planned(*CELLS) == {}, "nothing needs the data"
    (trained.folder / MISSING).unlink()
    done = trained.matrix(*CELLS)
    assert done.returncode == 0, done.stdout
    assert trained.fetched() == (2 if reason else 1)
    assert reason == "" or f"cifar10: {reason}; computing checksums" in done.stdout
    assert trained.ran() == [MISSING_TITLE]


def test_a_matrix_does_not_start_without_its_data(trained: DataProject) -> None:
    purge_the_data(trained)
    (trained.folder / MISSING).unlink()
    (trained.folder / SCRIPTS / "fetch_data.py").write_text(OFFLINE)
    done = trained.matrix(*CELLS)
    assert done.returncode != 0
    assert done.stdout.strip().splitlines()[-1] == "shardmark: data.dir: no internet here"
    assert trained.ran() == []


def test_fetch_checks_files_whose_size_and_time_are_as_they_were(
    mirror: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "resources"
    record = tmp_path / "cifar10.json"
    record.write_text(json.dumps(fetch("cifar10", folder, download=True)))
    batch = folder / CIFAR10.base_folder / "data_batch_2"
    content, before = batch.read_bytes(), batch.stat()
    batch.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(batch, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert why_outdated(record, folder) == "", "a glance does not see it"
    assert json.loads(json.dumps(fetch("cifar10", folder, download=True)))
    assert batch.read_bytes() == content


@pytest.mark.slow
def test_fetch_looks_at_the_files_each_time(project: DataProject) -> None:
    for times in (1, 2):
        assert project.matrix("fetch").returncode == 0
        assert project.fetched() == times


def test_a_record_says_which_file_has_gone(mirror: Path, tmp_path: Path) -> None:
    folder, record = tmp_path / "resources", tmp_path / "cifar10.json"
    assert why_outdated(record, folder) == "not checked yet"
    record.write_text(json.dumps(fetch("cifar10", folder, download=True)))
    assert why_outdated(record, folder) == ""
    batch = folder / CIFAR10.base_folder / "data_batch_2"
    batch.write_bytes(b"cut short")
    assert why_outdated(record, folder) == f"{batch} has changed"
    batch.unlink()
    assert why_outdated(record, folder) == f"{batch} is missing"
    record.write_text("{}")
    assert "unreadable" in why_outdated(record, folder)


def test_a_cell_names_the_file_that_is_damaged(mirror: Path, tmp_path: Path) -> None:
    folder = tmp_path / "resources"
    fetch("cifar10", folder, download=True)
    batch = folder / CIFAR10.base_folder / "test_batch"
    batch.write_bytes(b"cut short")
    workload = case_of("ddp", 1, dataset={"name": "cifar10"}).cell.definition
    with pytest.raises(UserError, match=f"{batch} is damaged; run make fetch"):
        load_images(workload, folder, train=True)


def test_a_matrix_of_generated_images_has_nothing_to_fetch(tmp_path: Path) -> None:
    project = copy_project(tmp_path)
    done = project.matrix("fetch")
    assert done.returncode == 0, done.stdout
    assert project.ran() == []
