"""Language models: sizes, weights, data, FLOPs, and what a configuration may say of them."""

from __future__ import annotations

import copy
import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import forked_ranks
from parity_cases import case_of
from real_cells import cell_named
from shardmark.architectures import GPT_PRESETS
from shardmark.config.loading import load
from shardmark.config.schema import LanguageWorkload
from shardmark.errors import ConfigError, UserError
from shardmark.measurement.model_cost import cost_of, count_parameters
from shardmark.metrics import Metrics
from shardmark.parity.cases import real_model_cell, surrogate_cell
from shardmark.results.cell_rows import QUANTITIES, cell_row, epoch_rows
from shardmark.results.matrix import PlannedCell
from shardmark.results.outcome import Outcome
from shardmark.training.loop import make_task
from shardmark.workload.built_in import make_workload
from shardmark.workload.language import gpt
from shardmark.workload.language.tokens import synthetic_sequences, text_sequences
from shardmark.workload.language.workload import Language
from shardmark.workload.materialising import Materialiser
from small_matrix import ROOT, changed
from test_language_gate import GPT, language_case
from train_dp import LossInside

SMALL = GPT["model"]


def language(model: dict[str, Any] = SMALL, **changes: Any) -> Language:
    definition = case_of("ddp", 1, **(GPT | {"model": model} | changes)).cell.definition
    assert isinstance(definition, LanguageWorkload)
    return Language(definition)


@pytest.mark.parametrize(
    ("preset", "billions"),
    [
        ("gpt_0b12", 0.124),
        ("gpt_0b35", 0.355),
        ("gpt_1b4", 1.42),
        ("gpt_3b9", 3.94),
        ("gpt_5b1", 5.12),
        ("gpt_8b5", 8.47),
    ],
)
def test_a_preset_has_its_parameters_and_the_flops_of_the_palm_convention(
    preset: str, billions: float
) -> None:
    workload = language({"name": "gpt", "preset": preset})
    size = workload.definition.model
    cost = cost_of(workload)
    assert cost.parameters / 1e9 == pytest.approx(billions, rel=5e-3)
    multiplied = 12 * size.layers * size.width**2 + size.vocabulary * size.width
    attention = 12 * size.layers * size.width * size.context
    assert cost.flops_per_item == cost.hardware_flops_per_item == 6 * multiplied + attention
    assert set(GPT_PRESETS[preset]) == {"layers", "width", "heads", "tied", "context", "vocabulary"}


def test_checkpointing_computes_the_blocks_again_up_to_what_the_backward_pass_needs() -> None:
    workload = language(SMALL, activation_checkpointing="block")
    size = workload.definition.model
    cost = cost_of(workload)
    # All but the last of a block's matrix products, whose result no gradient needs.
    again = size.layers * (2 * 8 * size.width**2 + 4 * size.width * size.context)
    assert cost.hardware_flops_per_item == cost.flops_per_item + again


def test_a_size_beside_a_preset_overrides_it() -> None:
    size = language({"name": "gpt", "preset": "gpt_1b4", "context": 2048}).definition.model
    assert (size.layers, size.width, size.context) == (24, 2048, 2048)


def test_weights_depend_on_seed_and_name_and_not_on_the_order_of_construction() -> None:
    workload = language()
    torch.manual_seed(1)
    whole = workload.build_model(3)
    with torch.device("meta"):
        outline = workload.build_model(3)
    fill = workload.filler(3, surrogate=False)
    part = outline.blocks[1]
    Materialiser(outline, fill, torch.device("cpu")).whole(part)
    assert outline.blocks[0].attention_in.weight.is_meta
    pairs = zip(part.parameters(), whole.blocks[1].parameters(), strict=True)
    assert all(torch.equal(mine, its) for mine, its in pairs)
    assert not torch.equal(whole.blocks[0].attention_in.weight, part.attention_in.weight)
    assert not torch.equal(workload.build_model(4).head.weight, whole.head.weight)


def test_weights_do_not_depend_on_how_many_are_drawn_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = {"name": "gpt", "preset": "gpt_0b12", "layers": 1, "vocabulary": 512}
    whole = language(model).build_model(0)
    monkeypatch.setattr(gpt, "_PART_ON_CPU", 1_002)
    in_small_parts = language(model).build_model(0)
    pairs = zip(whole.parameters(), in_small_parts.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_initial_weights_have_gpt2s_spread() -> None:
    model = language({"name": "gpt", "preset": "gpt_0b12", "layers": 2, "vocabulary": 512})
    whole = model.build_model(0)
    assert whole.embedding.weight.std().item() == pytest.approx(0.02, rel=0.01)
    assert abs(whole.embedding.weight.mean().item()) < 1e-4
    out = whole.blocks[0].feed_forward_out.weight
    assert out.std().item() == pytest.approx(0.02 / math.sqrt(4), rel=0.01)
    assert len(out.unique()) > 0.9 * out.numel()


@pytest.mark.parametrize("tied", [False, True])
def test_an_embedding_is_tied_to_the_output_if_asked(tied: bool) -> None:
    model = language(SMALL | {"tied": tied}).build_model(0)
    assert (model.head.weight is model.embedding.weight) == tied
    assert len({id(unit) for unit in language().shard_units(model)}) == 3


def test_a_token_is_predicted_from_those_before_it_alone() -> None:
    model = language().build_model(0)
    tokens = torch.arange(16).reshape(1, 16)
    other = tokens.clone()
    other[0, 10] = 79
    before, after = model(tokens), model(other)
    assert torch.equal(before[:, :10], after[:, :10])
    assert not torch.equal(before[:, 10], after[:, 10])


def test_a_loss_is_a_sum_over_tokens() -> None:
    workload = language()
    model = workload.build_model(0)
    rows = workload.rows(Path(), train=True)
    inputs = workload.batch(rows, torch.tensor([2, 5]), None)
    parts = [workload.batch(rows, torch.tensor([index]), None) for index in (2, 5)]
    whole = workload.loss(model, inputs)
    assert workload.terms(inputs) == 32
    assert whole.item() == pytest.approx(sum(workload.loss(model, part).item() for part in parts))
    assert whole.item() / 32 == pytest.approx(math.log(80), rel=0.02)


def test_generated_sequences_can_be_learned_to_ln_4() -> None:
    sequences = synthetic_sequences(2000, 17, 64)
    followed = torch.zeros(64, 64)
    for begin, end in zip(sequences[:, :-1].flatten(), sequences[:, 1:].flatten(), strict=True):
        followed[begin, end] += 1
    assert (followed > 0).sum(dim=1).max() <= 4
    shares = followed / followed.sum(dim=1, keepdim=True)
    entropy = -(shares * shares.clamp(min=1e-9).log()).sum(dim=1).mean()
    assert 1.2 < entropy.item() <= math.log(4) + 1e-3
    assert torch.equal(sequences, synthetic_sequences(2000, 17, 64))


def test_a_text_is_cut_into_sequences_of_its_bytes(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_bytes(b"abcdefg\xff\x00")
    rows = text_sequences(text, 2, 5)
    assert rows.tolist() == [[97, 98, 99, 100, 101], [101, 102, 103, 255, 0]]
    with pytest.raises(UserError, match="has 9 bytes, and 3 sequences need 13"):
        text_sequences(text, 3, 5)
    with pytest.raises(UserError, match="cannot be read"):
        text_sequences(tmp_path / "none", 1, 5)


def test_the_last_sequences_of_a_text_are_held_out(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_bytes(bytes(range(18)))
    assert text_sequences(text, 2, 5, held_out=2).tolist() == [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8]]
    last = text_sequences(text, 2, 5, held_out=2, train=False)
    assert last.tolist() == [[9, 10, 11, 12, 13], [13, 14, 15, 16, 17]]
    for train in (True, False):
        with pytest.raises(UserError, match="has 18 bytes, and 5 sequences need 21"):
            text_sequences(text, 3, 5, held_out=2, train=train)


def test_generated_test_sequences_are_other_paths_through_the_same_successors() -> None:
    training = synthetic_sequences(2000, 17, 64)
    test = synthetic_sequences(2000, 17, 64, train=False)
    pairs = {(int(a), int(b)) for row in training for a, b in itertools.pairwise(row)}
    assert all((int(a), int(b)) in pairs for row in test for a, b in itertools.pairwise(row))
    assert not {tuple(row.tolist()) for row in training} & {tuple(row.tolist()) for row in test}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Metrics]:
    """Cells of the same training by several strategies; 7 test sequences do not divide evenly."""
    workload = GPT | {
        "dataset": {"name": "synthetic_tokens", "sequences": 128, "test_sequences": 7},
        "batch": {"global": 8, "per_gpu": None},
        "epochs": 2,
    }
    results = {}
    for strategy, gpus in (("dp", 1), ("ddp", 2), ("fsdp2", 2), ("deepspeed_zero3", 2)):
        cell = cell_named(strategy, gpus, **workload)
        metrics = forked_ranks.run_cell(cell, tmp_path_factory.mktemp(strategy))
        assert metrics.status == "ok", metrics.failure
        results[strategy] = metrics
    return results


def test_every_strategy_measures_the_same_loss_of_the_test_sequences(
    evaluated: dict[str, Metrics],
) -> None:
    losses = []
    for metrics in evaluated.values():
        assert metrics.test_loss is not None
        assert metrics.accuracy is None
        losses.append(metrics.test_loss.per_epoch)
    assert all(after < before < math.log(80) for before, after in losses)
    for each in losses[1:]:
        assert each == pytest.approx(losses[0], rel=1e-4)


def test_a_test_loss_is_the_mean_over_tokens() -> None:
    workload = language(SMALL, dataset={"name": "synthetic_tokens", "test_sequences": 6})
    rows = workload.rows(Path(), train=False)
    model = workload.build_model(0)
    inputs = workload.batch(rows, torch.arange(6), None)
    scores = workload.evaluate(model, inputs)
    mean = workload.loss(model, inputs).item() / workload.terms(inputs)
    assert scores.shape == (6,)
    assert scores.mean().item() == pytest.approx(mean, rel=1e-6)


def test_a_test_loss_is_shown_as_a_loss_per_token(evaluated: dict[str, Metrics]) -> None:
    metrics = evaluated["ddp"]
    assert metrics.test_loss is not None
    row = cell_row(PlannedCell(metrics.cell, Outcome.OK, metrics), "passed", "")
    assert row.final_test_loss == metrics.test_loss.final
    assert row.final_accuracy is None
    assert [one.test_loss for one in epoch_rows(metrics)] == metrics.test_loss.per_epoch
    heading = QUANTITIES["final_test_loss"].of(row.unit).heading
    assert heading == "Test loss (per token)"


@pytest.mark.parametrize("kind", ["plain", "tied"])
def test_a_surrogate_has_gradients_that_a_framework_would_clip(kind: str) -> None:
    workload = make_workload(surrogate_cell(language_case("ddp", 1, kind), "fp32").definition)
    model = workload.surrogate(0)
    rows = workload.rows(Path(), train=True)
    inputs = workload.batch(rows, torch.arange(16), None)
    (workload.loss(model, inputs) / workload.terms(inputs)).backward()
    squares = [p.grad.square().sum() for p in model.parameters() if p.grad is not None]
    assert len(squares) == len(list(model.parameters()))
    assert torch.stack(squares).sum().sqrt() > 1


def test_the_gate_trains_the_first_blocks_of_a_large_model_at_full_width() -> None:
    model = {"name": "gpt", "preset": "gpt_8b5"}
    cell = real_model_cell(case_of("ddp", 8, **(GPT | {"model": model})))
    assert cell is not None
    workload = make_workload(cell.definition)
    size = workload.definition.model
    assert (size.layers, size.width, size.heads, size.context) == (2, 4096, 32, 1024)
    # Weight, gradient and two moments of the oracle take less than 16 GB.
    assert count_parameters(workload.outline(seed=0)) * 16 < 16e9


W = "workloads.small"
GPT_WORKLOAD = {
    "workloads__small__model": SMALL,
    "workloads__small__dataset": {"name": "synthetic_tokens"},
}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"model__heads": 3}, f"{W}.model.heads: got 3; it must divide the model's width, 32"),
        ({"model__layer": 3}, f"{W}.model.layer: unknown key; did you mean 'layers'? allowed:"),
        (
            {"model": {"name": "gpt", "preset": "gpt_1b"}},
            f"{W}.model.preset: got 'gpt_1b'; did you mean 'gpt_1b4'? allowed: gpt_0b12,",
        ),
        ({"model": {"name": "gpt"}}, f"{W}.model.layers: missing, and it has no default"),
        ({"batchnorm": "sync"}, f"{W}.batchnorm: unknown key; did you mean 'batch'?"),
        (
            {"dataset": {"name": "cifar10"}},
            f"{W}.dataset.name: got 'cifar10'; allowed: synthetic_tokens, text",
        ),
        (
            {"dataset": {"name": "synthetic_tokens", "file": "x"}},
            f"{W}.dataset.file: belongs to text; synthetic_tokens is generated",
        ),
        ({"dataset": {"name": "text"}}, f"{W}.dataset.file: missing; text needs the file to read"),
        (
            {"dataset": {"name": "text", "file": "no such file"}},
            f"{W}.dataset.file: 'no such file' is not a file",
        ),
        (
            {"dataset": {"name": "text", "file": "texts/{a}.txt"}},
            f"{W}.dataset.file: 'texts/{{a}}.txt' has a brace, which Snakemake reads as a wildcard",
        ),
        (
            {"dataset": {"name": "text", "file": "LICENSE", "sequences": 10_000}},
            f"{W}.dataset.sequences: got 10000; LICENSE has ",
        ),
        (
            {
                "dataset": {
                    "name": "text",
                    "file": "LICENSE",
                    "sequences": 16,
                    "test_sequences": 9_000,
                }
            },
            f"{W}.dataset.sequences: got 16 and 9000 test_sequences; LICENSE has ",
        ),
        (
            {"dataset": {"name": "text", "file": "LICENSE", "sequences": 16}},
            f"{W}.model.vocabulary: got 80; the bytes of a text need at least 256",
        ),
        (
            {"dataset__sequences": 2**31 - 1},
            f"{W}.dataset.sequences: 2147483647 sequences of 17 tokens are 146 GB, more than a",
        ),
        (
            {"dataset__test_sequences": 2**31 - 1},
            f"{W}.dataset.test_sequences: 2147483647 sequences of 17 tokens are 146 GB, more than",
        ),
        (
            {"dataset__sequences": 8},
            f"{W}.batch: a step of 16 sequences at 1 GPU is more than the 8 training sequences",
        ),
    ],
)
def test_a_mistake_about_a_language_model_is_named(changes: dict[str, Any], line: str) -> None:
    values = {f"workloads__small__{key}": value for key, value in changes.items()}
    with pytest.raises(ConfigError) as raised:
        load(changed(**(copy.deepcopy(GPT_WORKLOAD) | values)), ROOT)
    lines = str(raised.value).splitlines()
    assert any(one.strip().startswith(line) for one in lines), raised.value


def test_a_mistyped_model_is_one_mistake_and_not_one_for_each_of_its_keys() -> None:
    model = SMALL | {"name": "gtp"}
    values = copy.deepcopy(GPT_WORKLOAD) | {"workloads__small__model": model}
    with pytest.raises(ConfigError) as raised:
        load(changed(**values), ROOT)
    _, line = str(raised.value).splitlines()
    assert line.strip().startswith(f"{W}.model.name: unknown model 'gtp'; did you mean 'gpt'?")


def test_dataparallel_computes_its_loss_where_the_logits_are() -> None:
    workload = language()
    cell = case_of("dp", 1, **GPT).cell
    runtime: Any = SimpleNamespace(device=torch.device("cpu"))
    task = make_task(cell, runtime, workload)
    inside = LossInside(task.build_model(), task)
    inputs = workload.batch(workload.rows(Path(), train=True), torch.arange(4), None)
    loss = inside(*inputs)
    assert loss.shape == (1,), "all that DataParallel gathers from a replica"
    assert loss.item() == workload.loss(inside.inner, inputs).item()
