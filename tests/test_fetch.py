"""The data sets of a matrix, brought once to where its cells find them."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import pickle
import tarfile
import threading
from collections.abc import Iterator
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
    assert record["folder"] == str(folder)
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


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A matrix of which one workload is on CIFAR-10, and what fetches it stood in for."""
    project = copy_project(tmp_path)
    (project.folder / SCRIPTS / "fetch_data.py").write_text(
        "import pathlib, sys\n"
        "with open('fetched.log', 'a') as log: print(*sys.argv[1:], file=log)\n"
        "import json\n"
        "batch = pathlib.Path('resources/data_batch_1')\n"
        "batch.touch()\n"
        "facts = {'bytes': 0, 'modified_ns': batch.stat().st_mtime_ns}\n"
        "record = {'folder': 'resources', 'files': {batch.name: facts}}\n"
        "pathlib.Path(sys.argv[-1]).write_text(json.dumps(record))\n"
    )
    config = project.folder / CONFIG
    head, tail = config.read_text().rsplit("name: synthetic", 1)
    config.write_text(f"{head}name: cifar10{tail}")
    return project


def test_fetch_brings_the_matrixs_data_sets_and_trains_nothing(project: Project) -> None:
    fetched = project.folder / "fetched.log"
    done = project.matrix("fetch")
    assert done.returncode == 0, done.stdout
    assert len(fetched.read_text().splitlines()) == 1
    assert "--dataset cifar10 --dir resources --download true" in fetched.read_text()
    assert project.ran() == []
    # On a node without internet nothing is left to fetch.
    rules = project.planned()
    assert "fetch_data" not in rules
    assert "train" in rules


@pytest.mark.parametrize("purged", [True, False])
def test_a_data_set_that_was_purged_or_changed_is_fetched_again(
    purged: bool, project: Project
) -> None:
    assert project.matrix().returncode == 0
    assert project.planned() == {}
    batch = project.folder / "resources/data_batch_1"
    batch.unlink() if purged else batch.write_text("other")
    assert project.planned() == {}, "nothing needs it"
    missing = project.folder / CELL.format("other", "ddp", 2, 1)
    missing.unlink()
    project.ran()
    done = project.matrix()
    assert done.returncode == 0, done.stdout
    change = "is missing" if purged else "has changed"
    assert f"resources/data_batch_1 {change}; cifar10 is fetched again" in done.stdout
    assert len((project.folder / "fetched.log").read_text().splitlines()) == 2
    assert project.ran() == ["other ddp gpus2 seed1"]
    assert missing.exists()


def test_a_matrix_does_not_start_without_its_data(project: Project) -> None:
    assert project.matrix().returncode == 0
    (project.folder / "resources/data_batch_1").unlink()
    (project.folder / CELL.format("other", "ddp", 2, 1)).unlink()
    project.ran()
    fetch = project.folder / SCRIPTS / "fetch_data.py"
    fetch.write_text("import sys; sys.exit('shardmark: data.dir: no internet here')")
    done = project.matrix()
    assert done.returncode != 0
    assert done.stdout.strip().splitlines()[-1] == "shardmark: data.dir: no internet here"
    assert project.ran() == []


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
    assert why_outdated(record) == "", "a glance does not see it"
    assert json.loads(json.dumps(fetch("cifar10", folder, download=True)))
    assert batch.read_bytes() == content


def test_fetch_looks_at_the_files_each_time(project: Project) -> None:
    for times in (1, 2):
        assert project.matrix("fetch").returncode == 0
        assert len((project.folder / "fetched.log").read_text().splitlines()) == times


def test_a_record_says_which_file_has_gone(mirror: Path, tmp_path: Path) -> None:
    folder, record = tmp_path / "resources", tmp_path / "cifar10.json"
    assert why_outdated(record) == "", "never fetched"
    record.write_text(json.dumps(fetch("cifar10", folder, download=True)))
    assert why_outdated(record) == ""
    batch = folder / CIFAR10.base_folder / "data_batch_2"
    batch.write_bytes(b"cut short")
    assert why_outdated(record) == f"{batch} has changed"
    batch.unlink()
    assert why_outdated(record) == f"{batch} is missing"
    record.write_text("{}")
    assert "unreadable" in why_outdated(record)


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
