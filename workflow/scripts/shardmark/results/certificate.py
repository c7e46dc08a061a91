"""The fairness certificate: the effective settings of a workload's strategies, side by side.

Settings that the workload prescribes are compared with those read back from the training. Other
settings, and the surroundings of the cells, must be the same for all strategies. If a difference is
what makes the strategy, a reason in this module explains it; every other difference is flagged.
This module does not import torch.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from shardmark.cells import Cell
from shardmark.config.values import Section
from shardmark.effective_config import GATHERS, REDUCTIONS, EffectiveConfig
from shardmark.metrics import Metrics
from shardmark.optimizers import OPTIMIZERS
from shardmark.results.communication_volume import FLOAT32_BYTES, allowed_slack, expected_volume
from shardmark.results.surroundings import ComparedFact, facts_to_compare
from shardmark.strategies import OWN, spec_of

_AUTOCAST = {"bf16": ["bfloat16"], "fp16": ["float16"]}


class Row(Section):
    """One setting of all strategies.

    Attributes:
        setting: its name.
        values: its value by strategy.
        verdict: ``same`` for all, ``inherent`` if every difference is explained, else ``flagged``.
        reason: the explanation of a difference.
        flagged: by strategy, what is wrong with its value.
    """

    setting: str
    values: dict[str, str]
    verdict: Literal["same", "inherent", "flagged"]
    reason: str | None = None
    flagged: dict[str, str] = {}


class Certificate(Section):
    """The settings of a workload's strategies at one GPU count.

    Attributes:
        workload: its name.
        gpus: GPU count of the cells.
        strategies: the strategies compared, in the order given.
        missing: strategies without any settings read back, with the status of their cells.
        rows: one per setting.
    """

    workload: str
    gpus: int
    strategies: list[str]
    missing: dict[str, str]
    rows: list[Row]

    @property
    def flagged(self) -> list[Row]:
        """The rows with an unexplained difference."""
        return [row for row in self.rows if row.verdict == "flagged"]


ANY = object()


@dataclass(frozen=True)
class Exemption:
    """Why a strategy may have another value than the rest.

    Attributes:
        value: its value; None or an empty list for no value, ANY if every value is right.
        reason: why that value is right.
        required: whether the others' value would be wrong for it.
    """

    value: Any
    reason: str
    required: bool = False


_OWN_DECIDES = Exemption(ANY, "the user's own strategy decides this")


@dataclass(frozen=True)
class Setting:
    """How to judge one setting.

    Attributes:
        label: its name, in words.
        value: reads it from an effective configuration.
        prescribed: the value that the workload prescribes; without it, all strategies must have the
            most common value.
        inherent: why strategies may differ in it.
        exemption: returns the exemption of a cell's strategy, if it has one.
    """

    label: str
    value: Callable[[EffectiveConfig], Any]
    prescribed: Callable[[Cell], Any] | None = None
    inherent: str | None = None
    exemption: Callable[[Cell], Exemption | None] | None = None


def _optimizer_settings(cell: Cell) -> dict[str, Any]:
    optimizer = cell.definition.optimizer
    return OPTIMIZERS[optimizer.name].group_settings(optimizer)


def _autocast(cell: Cell) -> list[str]:
    return _AUTOCAST.get(cell.definition.precision, [])


def _float32(cell: Cell) -> list[str]:
    return ["float32"]


def _tf32(cell: Cell) -> bool:
    return cell.definition.precision == "tf32"


def _replicas_in_one_process(cell: Cell) -> bool:
    return spec_of(cell.base).one_process and cell.gpus > 1


def _gathers_nothing(cell: Cell) -> Exemption | None:
    if cell.gpus == 1:
        return Exemption(None, "one replica has nobody to gather from")
    if cell.base == OWN:
        return _OWN_DECIDES
    if not spec_of(cell.base).gathers:
        return Exemption(None, "whole parameters on every rank need no gathering")
    return None


def _reduces_nothing(cell: Cell) -> Exemption | None:
    if cell.gpus == 1:
        return Exemption(None, "one replica has nobody to reduce with")
    return None


def _own_precision(cell: Cell) -> Exemption | None:
    options = cell.options
    if options.get("param_dtype", "fp32") != "fp32" or options.get("low_precision_communication"):
        return Exemption(ANY, "the mixed precision that its framework's maintainers advise")
    return None


def _keeps_low_precision(cell: Cell) -> Exemption | None:
    if cell.state_dtype == "fp32":
        return None
    return Exemption(
        _AUTOCAST[cell.state_dtype],
        "its framework keeps parameters in it; the optimizer updates a float32 copy",
        required=True,
    )


def _gathers_its_way(cell: Cell) -> Exemption | None:
    return _gathers_nothing(cell) or _own_precision(cell)


def _reduces_its_way(cell: Cell) -> Exemption | None:
    native = cell.options.get("low_precision_communication") or cell.state_dtype != "fp32"
    return _reduces_nothing(cell) or (_own_precision(cell) if native else None)


def _compiles_its_way(cell: Cell) -> Exemption | None:
    if cell.options.get("compile"):
        return Exemption(True, "its framework's maintainers advise to compile", required=True)
    return None


def _has_no_state(cell: Cell) -> Exemption | None:
    optimizer = cell.definition.optimizer
    record = OPTIMIZERS[optimizer.name]
    if not record.state_numbers(optimizer):
        return Exemption(None, f"{record.torch_name} with these settings keeps no state")
    return None


def _shares_nothing(cell: Cell) -> Exemption | None:
    if cell.base == OWN:
        return _OWN_DECIDES
    return Exemption(None, "it shards nothing, or an older result does not say")


def _gathers_in_groups(cell: Cell) -> Exemption | None:
    if cell.base == OWN:
        return _OWN_DECIDES
    if cell.base == "deepspeed_zero3" and cell.groups.reshard < cell.gpus:
        return Exemption(ANY, "ZeRO-3 gathers within a group what it gathered before in the step")
    return Exemption(None, "it gathers nothing, or an older result does not say")


def _has_no_units(cell: Cell) -> Exemption | None:
    if spec_of(cell.base).shards_units:
        return None
    return Exemption(None, "it shards nothing, or parameter by parameter")


def _copies_buffers(cell: Cell) -> Exemption | None:
    if _replicas_in_one_process(cell):
        return Exemption(
            True,
            "DataParallel makes new replicas in each forward pass, buffers too, and keeps the "
            "running statistics of replica 0, which evaluate in every strategy",
        )
    return None


def _has_one_rank(cell: Cell) -> Exemption | None:
    if _replicas_in_one_process(cell):
        return Exemption(None, "DataParallel's replicas live in one process, so there is one rank")
    return None


def _searches_in_every_step(cell: Cell) -> Exemption | None:
    if _replicas_in_one_process(cell) and not cell.options.get("lasting_threads"):
        return Exemption(
            False,
            "torch keeps cuDNN's plans per thread and DataParallel starts new threads in each "
            "forward pass, so it would search again in every step",
            required=True,
        )
    return None


SETTINGS = (
    Setting("wrapper", lambda effective: effective.wrapper, inherent="it is the strategy"),
    Setting(
        "optimizer",
        lambda effective: effective.optimizer,
        lambda cell: OPTIMIZERS[cell.definition.optimizer.name].torch_name,
    ),
    Setting(
        "optimizer settings", lambda effective: effective.optimizer_settings, _optimizer_settings
    ),
    Setting("learning rate of the observed step", lambda effective: effective.learning_rate),
    Setting(
        "gradient clipping",
        lambda effective: effective.gradient_clipping,
        lambda cell: cell.definition.optimizer.clip_norm or 0.0,
    ),
    Setting(
        "loss scaling",
        lambda effective: "dynamic" if effective.loss_scaler else "none",
        lambda cell: "dynamic" if cell.definition.precision == "fp16" else "none",
    ),
    Setting(
        "loss scaler",
        lambda effective: effective.loss_scaler,
        inherent="sharded gradients need one that looks for infinities on every rank",
    ),
    Setting(
        "steps skipped by the loss scaler",
        lambda effective: (
            effective.skipped_steps if effective.loss_scaler is None else "as it overflows"
        ),
        lambda cell: 0 if cell.definition.precision != "fp16" else "as it overflows",
    ),
    Setting(
        "micro-batches",
        lambda effective: effective.accumulate,
        lambda cell: cell.definition.batch.accumulate,
    ),
    Setting(
        "precision in which the gradients of micro-batches are added",
        lambda effective: effective.accumulation_dtype,
        exemption=_own_precision,
    ),
    Setting(
        "autocast in the forward pass",
        lambda effective: effective.autocast,
        _autocast,
        exemption=_own_precision,
    ),
    Setting(
        "precision of parameters",
        lambda effective: effective.parameter_dtypes,
        _float32,
        exemption=_keeps_low_precision,
    ),
    Setting(
        "precision of compute",
        lambda effective: effective.compute_dtypes,
        lambda cell: _autocast(cell) or ["float32"],
    ),
    Setting(
        "precision of normalisation",
        lambda effective: effective.normalisation_dtypes,
        exemption=_own_precision,
    ),
    Setting(
        "precision of the parameter gather",
        lambda effective: effective.gather_dtypes,
        _float32,
        exemption=_gathers_its_way,
    ),
    Setting(
        "precision of the gradient reduction",
        lambda effective: effective.reduction_dtypes,
        _float32,
        exemption=_reduces_its_way,
    ),
    Setting(
        "precision of gradients when the optimizer steps",
        lambda effective: effective.gradient_dtypes,
        _float32,
    ),
    Setting(
        "precision of the optimizer state",
        lambda effective: effective.optimizer_state_dtypes,
        _float32,
        exemption=_has_no_state,
    ),
    Setting("TF32 in matrix products", lambda effective: effective.tf32_matmul, _tf32),
    Setting("TF32 in convolutions", lambda effective: effective.tf32_convolution, _tf32),
    Setting("memory format of inputs", lambda effective: effective.input_formats),
    Setting("memory format of weights", lambda effective: effective.weight_formats),
    Setting("normalisation layers", lambda effective: effective.normalisation),
    Setting(
        "buffers broadcast in the forward pass",
        lambda effective: effective.buffers_broadcast,
        lambda cell: False,
        exemption=_copies_buffers,
    ),
    Setting(
        "running statistics differ between ranks",
        lambda effective: effective.buffers_differ_between_ranks,
        exemption=_has_one_rank,
    ),
    Setting("loader", lambda effective: effective.loader),
    Setting("loader workers per replica", lambda effective: effective.loader_workers),
    Setting(
        "activation checkpointing",
        lambda effective: "block" if effective.recomputed_units else "none",
        lambda cell: cell.definition.activation_checkpointing,
    ),
    Setting(
        "blocks computed again in the backward pass", lambda effective: effective.recomputed_units
    ),
    Setting(
        "compiled",
        lambda effective: effective.compiled and effective.compiled_graphs != 0,
        lambda cell: cell.definition.compile != "none",
        exemption=_compiles_its_way,
    ),
    Setting(
        "graphs that torch compiled",
        lambda effective: effective.compiled_graphs,
        inherent="a strategy's hooks break a graph where they are",
    ),
    Setting(
        "cuDNN searches for kernels",
        lambda effective: effective.cudnn_benchmark,
        lambda cell: True,
        exemption=_searches_in_every_step,
    ),
    Setting(
        "what is sharded (ZeRO stage)",
        lambda effective: effective.zero_stage,
        inherent="it is what sets the strategies apart",
    ),
    Setting(
        "replicas that share one copy of what is sharded",
        lambda effective: effective.shard_ranks if effective.zero_stage else None,
        lambda cell: cell.groups.shard,
        exemption=_shares_nothing,
    ),
    Setting(
        "replicas that gather parameters together",
        lambda effective: effective.ranks_of(GATHERS),
        lambda cell: sorted(set(cell.groups)),
        exemption=_gathers_in_groups,
    ),
    Setting(
        "units sharded one at a time",
        lambda effective: effective.sharded_units,
        exemption=_has_no_units,
    ),
    Setting(
        "gradient buckets, bytes",
        lambda effective: effective.bucket_bytes,
        inherent="each strategy packs gradients into buckets in its own way",
    ),
    Setting(
        "collectives of a step",
        lambda effective: (
            "; ".join(
                f"{one.calls} {one.kind} {one.dtype}, {one.bytes:,} B"
                + (f" among {one.ranks}" if one.ranks not in (None, 1) else "")
                for one in effective.collectives
            )
            or "none"
        ),
        inherent="which messages a strategy sends is what it is",
    ),
    Setting(
        "settings of its own",
        lambda effective: effective.own,
        inherent="no other strategy has them",
    ),
)


def certificates(metrics: Iterable[Metrics], baseline: str | None = None) -> list[Certificate]:
    """Return one certificate per workload and GPU count of the cells, the most GPUs first.

    Args:
        metrics: results of cells; for one without settings, the certificate shows its status.
        baseline: the strategy whose value counts as the common one if there is no majority.
    """
    groups: dict[tuple[str, int], list[Metrics]] = defaultdict(list)
    for result in metrics:
        groups[result.cell.workload, result.cell.gpus].append(result)
    return [
        certify(groups[key], baseline) for key in sorted(groups, key=lambda key: (key[0], -key[1]))
    ]


def certify(metrics: Sequence[Metrics], baseline: str | None = None) -> Certificate:
    """Compare the settings of strategies with the workload and with each other.

    Args:
        metrics: results of one workload at one GPU count, with any seeds.
        baseline: as for certificates.
    """
    by_strategy: dict[str, list[Metrics]] = defaultdict(list)
    for result in metrics:
        by_strategy[result.cell.strategy].append(result)
    order = list(by_strategy)
    results = {
        name: with_config
        for name in order
        if (with_config := [one for one in by_strategy[name] if one.effective_config])
    }
    cell = metrics[0].cell
    return Certificate(
        workload=cell.workload,
        gpus=cell.gpus,
        strategies=list(results),
        missing={name: by_strategy[name][0].status for name in order if name not in results},
        rows=[
            *[_judge(setting, results, baseline) for setting in SETTINGS],
            _judge_volume("reduced", REDUCTIONS, results),
            _judge_volume("gathered", GATHERS, results),
            *[
                _judge_fact(fact, results, baseline)
                for fact in facts_to_compare(
                    one for with_config in results.values() for one in with_config
                )
            ],
        ]
        if results
        else [],
    )


def _judge(
    setting: Setting, results_by_strategy: Mapping[str, Sequence[Metrics]], baseline: str | None
) -> Row:
    values = {
        name: [setting.value(one.effective_config) for one in results if one.effective_config]
        for name, results in results_by_strategy.items()
    }
    texts = {name: " or ".join(dict.fromkeys(map(_text, each))) for name, each in values.items()}
    differ = len(set(texts.values())) > 1
    if setting.inherent:
        return Row(
            setting=setting.label,
            values=texts,
            verdict="inherent" if differ else "same",
            reason=setting.inherent if differ else None,
        )
    cells = {name: results[0].cell for name, results in results_by_strategy.items()}
    exemptions = {
        name: setting.exemption(cell) if setting.exemption else None for name, cell in cells.items()
    }
    excused = {
        name: exemption.reason
        for name, exemption in exemptions.items()
        if exemption and (exemption.value is ANY or texts[name] == _text(exemption.value))
    }
    flagged: dict[str, str] = {}
    # A strategy that may differ has no say in what is common.
    rest = {name: text for name, text in texts.items() if name not in excused}
    common = _most_common(rest, values, baseline)
    for name in rest:
        cell, exemption = cells[name], exemptions[name]
        wanted = _text(setting.prescribed(cell)) if setting.prescribed else common
        if exemption and exemption.required:
            right = f"{_text(exemption.value)} is right: {exemption.reason}"
            flagged[name] = f"{texts[name]}, where {right}{_variant_in_words(cell)}"
        elif texts[name] != wanted:
            word = "prescribed" if setting.prescribed else "of the others"
            flagged[name] = f"{texts[name]}, where {wanted} is {word}{_variant_in_words(cell)}"
    verdict: Literal["same", "inherent", "flagged"] = "inherent" if differ else "same"
    return Row(
        setting=setting.label,
        values=texts,
        verdict="flagged" if flagged else verdict,
        reason="; ".join(dict.fromkeys(excused.values())) if differ and excused else None,
        flagged=flagged,
    )


def _judge_volume(
    what: Literal["reduced", "gathered"],
    kinds: tuple[str, ...],
    results_by_strategy: Mapping[str, Sequence[Metrics]],
) -> Row:
    """Compare the bytes of a step's collectives with those that the strategy must move."""
    texts: dict[str, str] = {}
    flagged: dict[str, str] = {}
    for name, results in results_by_strategy.items():
        multiples: dict[str, None] = {}
        for result in results:
            config, memory, cell = result.effective_config, result.memory, result.cell
            if config is None or memory is None:
                continue
            multiple = config.bytes_of(kinds) / (FLOAT32_BYTES * memory.parameters)
            multiples[f"{multiple:.2f}"] = None
            volume = expected_volume(cell, memory.parameters, config.unit_parameters)
            if volume is None:
                continue
            volume = volume.with_uses(
                untrained=(config.untrained_parameters or 0) / memory.parameters,
                reuses=bool(config.reused_parameters),
            )
            expected = volume.reduced if what == "reduced" else volume.gathered
            if cell.gpus > 1 and not expected.allows(multiple, allowed_slack(cell)):
                flagged[name] = (
                    f"{multiple:.2f}, where {expected} is expected{_variant_in_words(cell)}"
                )
        texts[name] = " or ".join(multiples) or "unknown"
    differ = len(set(texts.values())) > 1
    reason = "the volume follows from what is sharded (Rajbhandari et al. 2020, section 7)"
    if next(iter(results_by_strategy.values()))[0].cell.gpus == 1:
        reason = "one replica has nobody to exchange with"
    return Row(
        setting=f"{what} in a step, times the parameters' bytes in float32",
        values=texts,
        verdict="flagged" if flagged else "inherent" if differ else "same",
        reason=reason if differ else None,
        flagged=flagged,
    )


def _judge_fact(
    fact: ComparedFact, results_by_strategy: Mapping[str, Sequence[Metrics]], baseline: str | None
) -> Row:
    """Compare the surroundings of each strategy's cells with those of the others."""
    values = {
        name: list(dict.fromkeys(value for one in results for value in fact.values(one)))
        for name, results in results_by_strategy.items()
    }
    texts = {name: " or ".join(map(_text, each)) for name, each in values.items()}
    shares = {
        name: _share(fact, results_by_strategy[name][0].cell, each) for name, each in values.items()
    }
    settled = [name for name, each in values.items() if len(each) == 1]
    common, common_share = (
        _most_common({name: words[name] for name in settled}, values, baseline)
        for words in (texts, shares)
    )
    flagged: dict[str, str] = {}
    for name, each in values.items():
        if len(each) > 1:
            flagged[name] = "not the same in all of its runs and ranks"
        elif texts[name] != common and shares[name] != common_share:
            flagged[name] = f"{texts[name]}, where {common} is of the others"
    differ = len(set(texts.values())) > 1
    verdict: Literal["same", "inherent", "flagged"] = "inherent" if differ else "same"
    return Row(
        setting=fact.label,
        values=texts,
        verdict="flagged" if flagged else verdict,
        reason="DataParallel is one process and has all of them; other strategies' ranks share them"
        if differ and not flagged
        else None,
        flagged=flagged,
    )


def _share(fact: ComparedFact, cell: Cell, values: Sequence[Any]) -> str:
    """Return a strategy's values converted to one replica's share."""
    if fact.shared_out and _replicas_in_one_process(cell):
        values = [max(1, one // cell.gpus) if isinstance(one, int) else one for one in values]
    return " or ".join(map(_text, values))


def _most_common(
    texts: Mapping[str, str], values: Mapping[str, Sequence[Any]], baseline: str | None
) -> str:
    """Return the value that most strategies with a value have; the baseline decides a tie."""
    counts = Counter(
        text for name, text in texts.items() if any(value is not None for value in values[name])
    )
    if not counts:
        return _text(None)
    most = max(counts.values())
    best = [text for text, count in counts.items() if count == most]
    favoured = texts.get(baseline or "")
    return favoured if favoured in best else best[0]


def _variant_in_words(cell: Cell) -> str:
    """Return the options of a variant in words: they may explain a flagged difference."""
    fields = spec_of(cell.base).options.model_fields
    chosen = {
        key: value
        for key, value in cell.options.items()
        if value != fields[key].get_default(call_default_factory=True)
    }
    if not chosen:
        return ""
    options = ", ".join(f"{key}: {_text(value)}" for key, value in chosen.items())
    return f" (a variant of {cell.base} with {options})"


def _text(value: Any) -> str:
    if value is None or value in ([], {}):
        return "none"
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return ", ".join(value)
    return json.dumps(value, sort_keys=True)
