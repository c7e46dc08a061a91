"""A training of the user's own: mistakes in its file, the parity gate, cells, and the example."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import forked_ranks
import make_oracle
from built_pages import read_all
from gpu_matrix import write as write_metrics
from own_files import PADDED, ROOT, TRAINING, config_with, own_workload, write_changed
from run_cell import run_cell
from saved_cells import saved
from shardmark.cells import ParityCase, cell_of, parity_case
from shardmark.config.files import read_config_file
from shardmark.config.schema import Config, OwnWorkload
from shardmark.errors import ConfigError, UserError
from shardmark.measurement.labels import updates_weights
from shardmark.measurement.model_cost import cost_of
from shardmark.parity_result import Parity
from shardmark.report.caveats import caveats
from shardmark.results.certificate import certify
from shardmark.workload.own import load_training
from shardmark.workload.own_check import check_training

Gate = Callable[[ParityCase], Parity]
LOSS = 'reduction="sum")'
LOAD = "return rows, torch.randint(4, (256,), generator=generator)"
UNITS = "return [model[0], model[1]]"
SEED = "torch.manual_seed(seed)"
BATCH = "    def batch(self, rows, samples, keys):\n        "
EVALUATE = "    def evaluate"
EXAMPLE = ROOT / "docs/examples/hugging_face"


def write(folder: Path, *changes: tuple[str, str]) -> Path:
    """The small file with changes, each to a text that it contains once."""
    return write_changed(TRAINING, folder, *changes)


def terms_returning(value: str) -> tuple[str, str]:
    """The change that gives the small file its own terms."""
    return EVALUATE, f"    def terms(self, inputs):\n        return {value}\n\n{EVALUATE}"


def definition_of(file: Path, **changes: Any) -> OwnWorkload:
    return OwnWorkload.model_validate(own_workload(file, **changes))


def test_a_right_file_passes_its_check(tmp_path: Path) -> None:
    lines = check_training(definition_of(write(tmp_path)))
    assert lines[0] == "build_model: 612 parameters, the same for the same seed."
    assert lines[-2:] == ["evaluate: one score per sample.", "checked on one batch"]


WIDTH = (
    ("    def build_model", '    small_options = {"width": 8}\n\n    def build_model'),
    ("        blocks", '        w = self.options["width"]\n        blocks'),
    ("nn.Linear(16, 16)", "nn.Linear(w, w)"),
    ("nn.Linear(16, 4)", "nn.Linear(w, 4)"),
    ("torch.randn(256, 16,", 'torch.randn(256, self.options["width"],'),
)


@pytest.mark.parametrize(
    ("small", "options", "words"),
    [
        ("width", {"width": 16, "depth": 2}, "build_model with small_options: "),
        ("size", {"width": 16}, "small_options sets 'size', which options lacks."),
        (
            "widht",
            {"width": 16},
            "small_options sets 'widht', which options lacks; did you mean 'width'?",
        ),
    ],
)
def test_what_small_options_change_is_said(
    small: str, options: dict[str, int], words: str, tmp_path: Path
) -> None:
    file = write(tmp_path, *WIDTH, ('{"width": 8}', f'{{"{small}": 8}}'))
    assert check_training(definition_of(file, options=options))[0].startswith(words)


@pytest.mark.parametrize(
    ("changes", "options", "words"),
    [
        (
            [('{"width": 8}', "None")],
            {"widht": 16},
            "build_model raised KeyError: 'width' (self.options has: widht; did you mean 'widht'?)",
        ),
        (
            [("nn.Linear(w, 4)", "nn.Linear(w + 1, 4)")],
            {"width": 16},
            "(this is the small model, with small_options)",
        ),
    ],
)
def test_a_mistake_with_options_is_explained(
    changes: list[tuple[str, str]], options: dict[str, int], words: str, tmp_path: Path
) -> None:
    file = write(tmp_path, *WIDTH, *changes)
    with pytest.raises(UserError, match=re.escape(words)):
        check_training(definition_of(file, options=options))


def test_a_small_model_is_checked_on_its_own_samples(tmp_path: Path) -> None:
    file = write(tmp_path, *WIDTH)
    lines = check_training(definition_of(file, options={"width": 16}))
    assert lines[-2:] == ["evaluate: one score per sample.", "checked on one batch"]


@pytest.mark.parametrize(
    ("options", "features", "message"),
    [
        ({"size": 16}, "w", r"build_model, whole model raised KeyError: 'width'"),
        (
            {"width": 16},
            "8",
            "the whole model cannot compute a loss, although its small version can: RuntimeError",
        ),
    ],
)
def test_a_mistake_of_the_whole_model_alone_is_found_before_its_jobs(
    options: dict[str, int], features: str, message: str, tmp_path: Path
) -> None:
    changes = [*WIDTH[:3], (WIDTH[3][0], f"nn.Linear({features}, 4)"), WIDTH[4]]
    with pytest.raises(UserError, match=message):
        check_training(definition_of(write(tmp_path, *changes), options=options))


@pytest.mark.parametrize(
    ("others", "small", "advice"),
    [
        (True, False, "other processes use its GPU; end them, and run it again"),
        (False, False, "define small_options in"),
        (False, True, "make small_options in"),
    ],
)
def test_an_oracle_that_does_not_fit_says_what_to_do(
    others: bool, small: bool, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = "    def build_model"
    changes = [(method, f"    small_options = {{}}\n\n{method}")] if small else []
    config = config_with(own_workload(write(tmp_path, *changes)), ["ddp"])
    monkeypatch.setattr(make_oracle, "others_use_memory", lambda device: others)

    def run_out(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(make_oracle, "make_oracles", run_out)
    arguments = [
        f"--config={saved(config)}",
        "--workload=w",
        "--ranks=1",
        f"--output={tmp_path}/o.pt",
    ]
    monkeypatch.setattr(sys, "argv", ["make_oracle.py", *arguments])
    with pytest.raises(SystemExit, match=rf"w: .*{advice}.*Tried to allocate 2.00 GiB"):
        make_oracle.main()


SUM = '        return nn.functional.cross_entropy(model(rows), classes, reduction="sum")'


@pytest.mark.parametrize(
    ("spoilt", "precision"),
    [
        ('loss * float("nan")', "fp32"),
        # A finite loss whose gradient is not, so that the loss scaler skips every step.
        ("loss + (model(rows) * 0).abs().sqrt().sum()", "fp16"),
    ],
)
def test_a_window_that_trains_no_more_does_not_count(
    spoilt: str, precision: str, tmp_path: Path
) -> None:
    # The epoch has 16 steps, and the window begins after the 20th.
    spoilt = f"""        self.calls = getattr(self, "calls", 0) + 1
        loss = nn.functional.cross_entropy(model(rows), classes, reduction="sum")
        return {spoilt} if self.calls > 30 else loss"""
    file = write(tmp_path, (SUM, spoilt))
    workload = own_workload(file, precision=precision, batch={"per_gpu": 16})
    metrics = forked_ranks.run_cell(
        cell_of(config_with(workload, ["ddp"]), "w", "ddp", 1, 0), tmp_path
    )
    if precision == "fp32":
        assert metrics.status == "diverged"
        assert metrics.failure is not None
        assert "the loss is nan at the end of the timed window" in metrics.failure.exception
    else:
        assert metrics.status == "ok", metrics.failure
        assert metrics.throughput is not None
        assert (metrics.throughput.skipped_steps or 0) > metrics.throughput.steps / 2
        assert not updates_weights(metrics)


def test_fewer_samples_than_a_step_of_the_gate_takes_are_enough(tmp_path: Path) -> None:
    workload = own_workload(write(tmp_path), batch={"per_gpu": 4}, dataset={"samples": 24})
    case = parity_case(config_with(workload, ["ddp"]), "w", "ddp", 2)
    verdict = forked_ranks.judge(case, tmp_path)
    assert verdict.status == "passed", verdict.reason


# What the message says after the file's name, and the changes to a right file.
MISTAKES: dict[str, tuple[str, *tuple[tuple[str, str], ...]]] = {
    "a syntax error": (
        "line 22: the file raised SyntaxError: unmatched ')'",
        ("def loss(self", "def loss self"),
    ),
    "a module that is missing": (
        "line 3: the file raised ModuleNotFoundError: No module named 'no_such_module'",
        ("import torch\n", "import torch\nimport no_such_module\n"),
    ),
    "a program with arguments of its own": (
        "line 8: the file raised SystemExit: 2",
        ("class Mine", "raise SystemExit(2)\n\n\nclass Mine"),
    ),
    "a part of the network": (
        "loss raised AttributeError: there is no model.head here, because strategies wrap",
        ("cross_entropy(model(rows)", "cross_entropy(model.head(rows)"),
    ),
    "a block of the network": (
        "loss raised TypeError: there is no model[2] here, because strategies wrap",
        ("cross_entropy(model(rows)", "cross_entropy(model[2](rows)"),
    ),
    "samples without a seed": (
        "load returned other samples at the second call",
        ("torch.randn(256, 16, generator=generator)", "torch.randn(256, 16)"),
    ),
    "no subclass": (
        "must define one subclass of shardmark.workload.own.Training; it defines none",
        ("class Mine(Training)", "class Mine"),
    ),
    "a function that is missing": ("Mine lacks shard_units", ("def shard_units", "def units")),
    "a model that is none": (
        "build_model returned a list; expected a torch.nn.Module",
        ("return nn.Sequential(*blocks, nn.Linear(16, 4))", "return blocks"),
    ),
    "weights that are not of the seed": (
        "build_model returned other weights at the second call with the same seed (parameter 0.",
        (SEED, ""),
    ),
    "a model that grows": (
        "build_model returned other weights at the second call with the same seed (parameter 2.",
        ("class Mine", "BUILT = []\n\n\nclass Mine"),
        ("for _ in range(2)]", "for _ in range(2 + len(BUILT))]; BUILT.append(1)"),
    ),
    "a model without parameters": (
        "build_model returned a model without parameters to train",
        ("return nn.Sequential(*blocks, nn.Linear(16, 4))", "return nn.Tanh()"),
    ),
    "half precision": (
        "build_model returned parameter 0.0.weight in float16; expected float32",
        ("nn.Linear(16, 4))", "nn.Linear(16, 4)).half()"),
    ),
    "units inside each other": (
        "shard_units returned 0.0, which is inside 0; expected units that do not overlap",
        (UNITS, "return [model[0], model[0][0]]"),
    ),
    "a unit twice": (
        "shard_units returned a unit twice; expected each unit once",
        (UNITS, "return [model[0], model[0]]"),
    ),
    "a unit of another model": (
        "shard_units returned element 0, a Linear that is not in the model",
        (UNITS, "return [nn.Linear(1, 1)]"),
    ),
    "units that are no list": (
        "shard_units returned a ModuleList; expected a list of modules, such as list(model.blocks)",
        (UNITS, "return nn.ModuleList([model[0], model[1]])"),
    ),
    "no units": ("shard_units returned a NoneType; expected a list", (UNITS, "pass")),
    "no samples": ("load(train=True) returned a NoneType; expected a tensor", (LOAD, "pass")),
    "too few samples": (
        "load(train=True) returned 100 samples, and dataset.samples is 256",
        (LOAD, "return rows[:100]"),
    ),
    "a batch on another device": (
        "batch returned a tensor on meta; expected the device of the rows, cpu",
        (EVALUATE, f"{BATCH}return tuple(part[samples].to('meta') for part in rows)\n\n{EVALUATE}"),
    ),
    "a batch that is no tuple": (
        "batch returned a Tensor; expected a tuple of tensors",
        (EVALUATE, f"{BATCH}return rows[0][samples]\n\n{EVALUATE}"),
    ),
    "all samples as the batch": (
        "batch returned a tensor of shape (256, 16) for 2 samples; expected one entry per sample",
        (EVALUATE, f"{BATCH}return rows\n\n{EVALUATE}"),
    ),
    "one loss per sample": (
        "loss returned a tensor of shape (2,); expected shape (): one number",
        (LOSS, 'reduction="none")'),
    ),
    "a mean": ("the sum over samples, not the mean", (LOSS, 'reduction="mean")')),
    "a number": ("loss returned a float; expected a tensor", (LOSS, LOSS + ".item()")),
    "a loss without a gradient": (
        "loss returned a value without a gradient",
        (LOSS, LOSS + ".detach()"),
    ),
    "an infinite loss": ("loss returned inf; expected a finite number", (LOSS, LOSS + " / 0")),
    "an exception within the loss": (
        "line 24: loss raised RuntimeError: addmm: mat1 and mat2 shapes cannot be multiplied",
        ("model(rows), classes", "model(rows[:, :3]), classes"),
    ),
    "dropout": (
        "loss returned another value at the second call with the same batch",
        ("nn.Tanh())", "nn.Tanh(), nn.Dropout())"),
    ),
    "no terms": (
        "terms returned 0 for samples 0 and 1; expected how many terms the loss is the sum of",
        terms_returning("0"),
    ),
    "no terms in a tensor": (
        "terms returned 0 for samples 0 and 1; expected how many terms the loss is the sum of",
        terms_returning("(inputs[1] > 4).sum()"),
    ),
    "terms in words": (
        "terms returned a str; expected an integer, or a tensor of shape ()",
        terms_returning("'two'"),
    ),
    "a mean of terms": (
        "terms returned 1 for 2 samples together, and 2 as the sum over samples one by one",
        terms_returning("1"),
    ),
    "an integer that depends on the samples": (
        "terms returned the integer 5 for samples 0 and 1, and ",
        terms_returning("(inputs[1] + 1).sum().item()"),
    ),
    "terms of each sample": (
        "terms returned a tensor of shape (2,); expected shape ()",
        terms_returning("inputs[1] + 1"),
    ),
    "terms in half precision": (
        "terms returned a tensor in float16; expected int64 or float32",
        terms_returning("(inputs[1] + 1).sum().half()"),
    ),
    "terms on the CPU": (
        "terms returned a tensor on the CPU for any inputs; expected one on the inputs' device",
        terms_returning("torch.tensor(len(inputs[0]))"),
    ),
    "one score for all": (
        "evaluate returned a tensor of shape () for 2 samples; expected one score per sample",
        (".float()", ".float().mean()"),
    ),
    "a loss as the accuracy": (
        "evaluate returned the score 7; expected an accuracy of 0 to 1 per sample; or set "
        "dataset.test_score to loss",
        (".float()", ".float() * 0 + 7"),
    ),
    "no evaluation": ("evaluate raised NotImplementedError", (EVALUATE, "    def test")),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_the_file_is_named_in_one_message(name: str, tmp_path: Path) -> None:
    message, *changes = MISTAKES[name]
    file = write(tmp_path, *changes)
    with pytest.raises(UserError) as raised:
        check_training(definition_of(file))
    assert str(raised.value).startswith(f"{file}: ")
    assert message in str(raised.value)


def test_mistakes_beside_the_file_are_mistakes_of_the_configuration(tmp_path: Path) -> None:
    missing = own_workload(Path("none.py"))
    with pytest.raises(ConfigError, match=r"workloads\.w\.file: 'none\.py' is not there"):
        config_with(missing, ["ddp"])
    empty = own_workload(write(tmp_path), dataset={"samples": 0})
    with pytest.raises(ConfigError, match=r"workloads\.w\.dataset\.samples: got 0; it "):
        config_with(empty, ["ddp"])


def test_the_check_ends_with_the_message_alone(tmp_path: Path) -> None:
    file = write(tmp_path, (LOSS, LOSS + ".item()"))
    script = ROOT / "workflow/scripts/check_training.py"
    config = saved(config_with(own_workload(file), ["ddp"]))
    command = [sys.executable, script, "--config", config, "--workload", "w"]
    output = tmp_path / "check.txt"
    done = subprocess.run([*command, "--output", output], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"shardmark: {file}: loss returned a float")
    assert "Traceback" not in done.stderr
    assert not output.exists()


# A model that asks for values: as a number while it is built, as a condition unless the tensor is a
# fake one.
ASKING = (
    ("nn.Linear(16, 4))", "nn.Linear(16, int(torch.linspace(0, 4, 5)[-1].item())))"),
    ("        rows, classes = inputs\n", "        rows, classes = inputs\n        {}\n"),
)


def workload_that_asks(folder: Path, question: str) -> OwnWorkload:
    built, asked = ASKING
    return definition_of(write(folder, built, (asked[0], asked[1].format(question))))


def test_flops_are_counted_where_the_meta_device_has_no_values(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    plain = cost_of(load_training(definition_of(write(tmp_path / "plain"))))
    question = "assert 'Fake' in type(rows).__name__ or bool((rows == rows).all())"
    asked = cost_of(load_training(workload_that_asks(tmp_path, question)))
    assert plain.flops_per_item == 2 * (3 * (2 * 16 * 16 + 16 * 4) - 16 * 16)
    assert asked == plain


def test_flops_that_cannot_be_counted_are_null_with_a_reason(tmp_path: Path) -> None:
    cost = cost_of(
        load_training(workload_that_asks(tmp_path, "assert (rows == rows).all().item()"))
    )
    assert (cost.parameters, cost.flops_per_item, cost.hardware_flops_per_item) == (612, None, None)
    assert cost.why_uncounted is not None
    assert cost.why_uncounted.startswith("DataDependentOutputException")
    assert "\n" not in cost.why_uncounted


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "deepspeed_zero3"])
def test_the_gate_passes_with_a_small_file(strategy: str, gate: Gate, tmp_path: Path) -> None:
    config = config_with(own_workload(write(tmp_path), precision="bf16"), [strategy])
    parity = gate(parity_case(config, "w", strategy, 2))
    assert parity.status == "passed", parity.reason
    assert parity.surrogate == "the model itself"


def padded_config(folder: Path, strategies: list[str], accumulate: int = 1) -> Config:
    """A workload whose batches have different numbers of terms."""
    file = write_changed(PADDED, folder)
    batch = {"per_gpu": 8, "accumulate": accumulate}
    dataset = {"samples": 256, "items_per_sample": 12, "unit": "tokens"}
    return config_with(own_workload(file, batch=batch, dataset=dataset), strategies)


def test_terms_may_depend_on_the_samples(tmp_path: Path) -> None:
    (definition,) = padded_config(tmp_path, ["ddp"]).workloads.values()
    assert isinstance(definition, OwnWorkload)
    (line,) = [line for line in check_training(definition) if line.startswith("loss: ")]
    assert line.endswith(" per term, 22 terms in 2 samples.")


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("strategy", ["dp", "ddp", "fsdp2", "deepspeed_zero2"])
def test_batches_with_different_numbers_of_terms_pass_the_gate(
    strategy: str, accumulate: int, gate: Gate, tmp_path: Path
) -> None:
    config = padded_config(tmp_path, [strategy], accumulate)
    parity = gate(parity_case(config, "w", strategy, 2))
    assert parity.status == "passed", parity.reason
    assert max(parity.precisions[0].deviation.model_dump().values()) < 1e-5
    assert parity.losses == pytest.approx(parity.oracle_losses, rel=1e-5)


def test_the_gate_fails_ranks_that_divide_by_their_own_terms(gate: Gate, tmp_path: Path) -> None:
    case = parity_case(padded_config(tmp_path, ["ddp"]), "w", "ddp", 2)
    parity = gate(case, ROOT / "tests/sabotage/train_with_local_terms.py")
    assert parity.status == "failed"


def test_the_certificate_accepts_the_reduction_of_the_terms(tmp_path: Path) -> None:
    config = padded_config(tmp_path, ["ddp"])
    metrics = forked_ranks.run_cell(cell_of(config, "w", "ddp", 2, 0), tmp_path)
    assert metrics.status == "ok", metrics.failure
    assert metrics.throughput is not None
    assert metrics.throughput.unit == "tokens"
    assert metrics.effective_config is not None
    reductions = metrics.effective_config.collectives
    assert [(one.kind, one.calls, one.bytes) for one in reductions] == [
        ("all_reduce", 2, 4 * (metrics.memory.parameters + 1))
    ]
    assert certify([metrics], "ddp").flagged == []


def test_a_cell_whose_flops_cannot_be_counted_is_ok_and_the_page_says_why(tmp_path: Path) -> None:
    definition = workload_that_asks(tmp_path, "assert (rows == rows).all().item()")
    config = config_with(own_workload(Path(definition.file)), ["ddp"])
    cell = cell_of(config, "w", "ddp", 1, 0)
    metrics = run_cell(cell, tmp_path)
    assert metrics.status == "ok", metrics.failure
    assert metrics.throughput is not None
    assert metrics.throughput.unit == "rows"
    assert metrics.roofs is not None
    assert metrics.roofs.peak_share_pct is metrics.roofs.compute_roof_items_per_s is None
    write_metrics(metrics, tmp_path)
    tables, _ = read_all(config, tmp_path)
    texts = [caveat.text for caveat in caveats(tables)]
    why = "The FLOPs of w could not be counted (DataDependentOutputException"
    assert any(text.startswith(why) for text in texts), texts


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="transformers is not installed"
)
def test_the_example_of_hugging_face_trains_and_passes_the_gate(tmp_path: Path) -> None:
    raw = read_config_file(EXAMPLE.with_suffix(".yaml"))
    workload = raw["workloads"]["llama"]
    workload["activation_checkpointing"] = "block"
    strategies = raw["matrix"]["strategies"]
    config = config_with(workload, strategies)
    definition = config.workloads["w"]
    assert isinstance(definition, OwnWorkload)
    assert check_training(definition)[-1] == "checked on one batch"
    case = parity_case(config, "w", "fsdp2", 2)
    parity = forked_ranks.judge(case, tmp_path)
    assert parity.status == "passed", parity.reason
    metrics = forked_ranks.run_cell(cell_of(config, "w", "ddp", 2, 0), tmp_path)
    assert metrics.status == "ok", metrics.failure
    assert metrics.throughput is not None
    assert metrics.throughput.unit == "tokens"
    assert metrics.roofs is not None
    assert metrics.roofs.why_uncounted is None
    assert metrics.roofs.flops_per_item is not None
    # The backward pass computes the four layers again, but not the output layer.
    assert metrics.roofs.hardware_flops_per_item == pytest.approx(
        metrics.roofs.flops_per_item * (4 / 3 - 1 / 12), rel=0.01
    )
