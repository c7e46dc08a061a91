"""A strategy of the user's own: mistakes in its file, the parity gate, and every table."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import forked_ranks
from built_pages import build, read_all
from find_largest_batch import find_largest_batch
from gpu_matrix import failed
from gpu_matrix import write as write_metrics
from own_files import ONE_ALL_REDUCE, ROOT, TRAINING, config_with, own_workload, write_changed
from shardmark.cells import batch_search, cell_of, parity_case
from shardmark.config.loading import load
from shardmark.config.schema import Config
from shardmark.errors import ConfigError, UserError
from shardmark.parity.own_strategy_check import check_strategy
from shardmark.parity_result import Parity

INIT = "        self.module = task.build_model()\n"
REDUCE = "        dist.all_reduce(together)\n        together /= self.task.runtime.world_size\n"
UPDATE = "        super().step()\n"
STATE = "return unwrap_state(self.module.state_dict())"
SECONDS = 120


def write(folder: Path, *changes: tuple[str, str]) -> Path:
    """The example with changes, each to a text that it contains once."""
    return write_changed(ONE_ALL_REDUCE.read_text(), folder, *changes)


def config_of(file: Path, training: Path) -> Config:
    training.write_text(TRAINING)
    return config_with(own_workload(training), ["ddp", "mine"], own={"mine": file})


def check(folder: Path, *changes: tuple[str, str], device: str = "cpu") -> str:
    config = config_of(write(folder, *changes), folder / "training.py")
    return check_strategy(parity_case(config, "w", "mine", 1), device=device)


def test_a_right_file_passes_its_check(tmp_path: Path) -> None:
    assert check(tmp_path) == "checked in one step"


def test_a_strategy_for_gpus_alone_is_only_loaded(tmp_path: Path) -> None:
    change = ("    def __init__", "    needs_gpus = True\n\n    def __init__")
    assert check(tmp_path, change, device="cuda") == "loaded; the rest needs GPUs"
    with pytest.raises(UserError, match="OneAllReduce needs GPUs, and cluster"):
        check(tmp_path, change)


# What the message says after the file's name, and the changes to a right file.
MISTAKES: dict[str, tuple[str, *tuple[tuple[str, str], ...]]] = {
    "a syntax error": (
        "line 30: the file raised SyntaxError: ",
        ("def full_state_dict(self)", "def full_state_dict self)"),
    ),
    "a module that is missing": (
        "line 5: the file raised ModuleNotFoundError: No module named 'no_such_module'",
        ("import torch\n", "import no_such_module\nimport torch\n"),
    ),
    "no subclass": (
        "must define one subclass of shardmark.training.strategy.Strategy; it defines none",
        ("(Strategy):", ":"),
    ),
    "a function that is missing": (
        "OneAllReduce lacks full_state_dict",
        ("def full_state_dict", "def state"),
    ),
    "no module": (
        "OneAllReduce(task) left self.module as a NoneType; expected the network, or what",
        (INIT, "        model = task.build_model()\n"),
        ("task.build_optimizer(self.module)", "task.build_optimizer(model)"),
    ),
    "no optimizer": (
        "OneAllReduce(task) left self.optimizer as a NoneType; expected an optimizer",
        ("task.build_optimizer(self.module)", "None"),
    ),
    "an exception in the constructor": (
        "line 16: OneAllReduce(task) raised KeyError: 'bucket'",
        (INIT, f'        self.bucket = task.options["bucket"]\n{INIT}'),
    ),
    "an exception in a step": (
        "line 21: a step raised AttributeError: ",
        ("each.grad for each", "each.gradient for each"),
    ),
    "a step that updates nothing": (
        "a step changed no weight; expected the optimizer's update",
        (UPDATE, "        self.optimizer.zero_grad()\n"),
    ),
    "a state of other names": (
        "full_state_dict returned no tensor 0.0.weight, but mine.0.0.weight, mine.0.0.bias, "
        "mine.1.0.weight, ...; expected the network's own names; unwrap_state from "
        "shardmark.training.strategy removes what wrappers add",
        (STATE, 'return {f"mine.{k}": v for k, v in self.module.state_dict().items()}'),
    ),
    "a state in parts": (
        "full_state_dict returned 0.0.weight in shape (8, 16); expected the whole parameter, ",
        (STATE, "return {k: v[:8] for k, v in self.module.state_dict().items()}"),
    ),
    "no state": ("full_state_dict returned a NoneType; expected a dict", (STATE, "pass")),
    "settings that no certificate has": (
        "effective_config raised ValidationError",
        (
            "    def full_state_dict",
            "    def effective_config(self):\n        return super().effective_config() | "
            '{"mine": 1}\n\n    def full_state_dict',
        ),
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_the_file_is_named_in_one_message(name: str, tmp_path: Path) -> None:
    message, *changes = MISTAKES[name]
    with pytest.raises(UserError) as raised:
        check(tmp_path, *changes)
    assert str(raised.value).startswith(f"{tmp_path / 'mine.py'}: ")
    assert message in str(raised.value)


def test_mistakes_beside_the_file_are_mistakes_of_the_configuration(tmp_path: Path) -> None:
    training = tmp_path / "training.py"
    training.write_text(TRAINING)
    own = {"mine": Path("none.py"), "ddp": ONE_ALL_REDUCE, "oracle": ONE_ALL_REDUCE}
    with pytest.raises(ConfigError) as raised:
        config_with(own_workload(training), ["ddp", "minn"], own=own)
    message = str(raised.value)
    assert "strategies.mine.file: 'none.py' is not there" in message
    assert "strategies.ddp: is the name of a strategy; choose another" in message
    assert "strategies.oracle: results/ uses this name for something else" in message
    assert "matrix.strategies[1]: unknown strategy 'minn'; did you mean 'mine'?" in message


def test_an_unknown_key_of_a_strategy_is_named_with_those_it_may_have(tmp_path: Path) -> None:
    raw = config_of(ONE_ALL_REDUCE, tmp_path / "training.py").model_dump(by_alias=True)
    raw["strategies"]["mine"]["option"] = {}
    with pytest.raises(ConfigError, match=r"mine\.option: unknown key; did you mean 'options'\?"):
        load(raw, ROOT)


def judge(config: Config, folder: Path) -> Parity:
    return forked_ranks.judge(parity_case(config, "w", "mine", 2), folder)


def test_a_strategy_that_forgets_to_reduce_fails_the_gate(tmp_path: Path) -> None:
    config = config_of(write(tmp_path, (REDUCE, "")), tmp_path / "training.py")
    verdict = judge(config, tmp_path)
    assert verdict.status == "failed", verdict
    assert "fp32: loss deviates" in (verdict.reason or "")


def test_the_sketch_of_docs_adding_passes_the_gate(tmp_path: Path) -> None:
    page = (ROOT / "docs/adding.md").read_text()
    _, _, rest = page.partition("   ```python\n   class MyDdp")
    sketch = textwrap.dedent("   class MyDdp" + rest.partition("   ```")[0])
    file = tmp_path / "my_ddp.py"
    file.write_text(
        "from torch.nn.parallel import DistributedDataParallel\n"
        "from shardmark.training.strategy import StateDict, Strategy, Task, unwrap_state\n" + sketch
    )
    training = tmp_path / "training.py"
    training.write_text(TRAINING)
    config = config_with(own_workload(training), ["ddp", "mine"], own={"mine": file}, bucket=1)
    case = parity_case(config, "w", "mine", 1)
    assert check_strategy(case, device="cpu") == "checked in one step"
    verdict = judge(config, tmp_path)
    assert verdict.status == "passed", verdict.reason


def test_the_example_passes_the_gate_and_is_in_every_table(tmp_path: Path) -> None:
    config = config_of(ONE_ALL_REDUCE, tmp_path / "training.py")
    verdict = judge(config, tmp_path)
    assert verdict.status == "passed", verdict.reason
    for strategy in ("ddp", "mine"):
        cell = cell_of(config, "w", strategy, 2, 0)
        metrics = forked_ranks.run_cell(cell, tmp_path / strategy)
        assert metrics.status == "ok", metrics.failure
        write_metrics(metrics, tmp_path)
    tables, _ = read_all(config, tmp_path)
    mine = tables.cells[tables.cells.strategy == "mine"].set_index("gpus").loc[2]
    assert (mine.base, mine.lane, mine.unit) == ("own", "same_arithmetic", "rows")
    assert mine.state_bytes == pytest.approx(mine.state_predicted_bytes, rel=0.01)
    assert mine.exposed_communication_ms > 0
    (certificate,) = tables.record.certificates
    assert certificate.flagged == []
    page = build(config, tmp_path).read_text()
    assert "mine" in page


def test_weights_that_are_not_the_models_fail_the_gate(tmp_path: Path) -> None:
    flat = "return {name: value.flatten() for name, value in self.module.state_dict().items()}"
    file = write(tmp_path, (STATE, flat))
    verdict = judge(config_of(file, tmp_path / "training.py"), tmp_path)
    assert verdict.status == "failed"
    assert "has the shape (256,), not (16, 16)" in (verdict.reason or "")


def test_memory_that_runs_out_in_its_constructor_is_a_result(tmp_path: Path) -> None:
    out = '        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")'
    file = write(tmp_path, (INIT, f"{INIT}{out}\n"))
    cell = cell_of(config_of(file, tmp_path / "training.py"), "w", "mine", 2, 0)
    metrics = forked_ranks.run_cell(cell, tmp_path / "cell")
    assert metrics.status == "oom"


@pytest.mark.slow
def test_its_largest_batch_is_found(tmp_path: Path) -> None:
    config = config_of(ONE_ALL_REDUCE, tmp_path / "training.py")
    largest = config.largest_batch.model_copy(update={"workloads": ["w"], "most": 8})
    search = batch_search(config.model_copy(update={"largest_batch": largest}), "w", "mine", 2)
    result = find_largest_batch(search, tmp_path / "gpus2.json", limit_s=SECONDS)
    assert result.micro_batch == 8, result


@pytest.mark.slow
def test_a_rerun_of_a_result_asks_before_it_runs_the_files_that_it_names(tmp_path: Path) -> None:
    config = config_of(write(tmp_path), tmp_path / "training.py")
    metrics = failed(cell_of(config, "w", "mine", 2, 0), "oom", "why")
    path = tmp_path / "metrics.json"
    path.write_text(metrics.model_dump_json(by_alias=True))
    command = [sys.executable, str(ROOT / "workflow/scripts/rerun.py"), str(path)]
    asked = subprocess.run(command, text=True, capture_output=True, cwd=tmp_path)
    assert asked.returncode == 1
    named = [f"  {tmp_path}/training.py", f"  {tmp_path}/mine.py"]
    assert asked.stdout.splitlines()[1:] == ["  the code in:", *named]
    assert "nothing was run" in asked.stderr
    (tmp_path / "mine.py").unlink()
    agreed = subprocess.run([*command, "--yes"], text=True, capture_output=True, cwd=tmp_path)
    assert agreed.returncode == 1
    assert agreed.stderr.startswith(f"shardmark: {tmp_path}/mine.py: ")
    assert "No such file or directory" in agreed.stderr
