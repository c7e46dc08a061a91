"""settings.json: describes a matrix, the settings its cells really had, and where they ran."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from shardmark.config.schema import Config, chosen_colours, chosen_labels
from shardmark.config.values import Section
from shardmark.metrics import Metrics
from shardmark.quantities import replicas_noun
from shardmark.results.certificate import Certificate, certificates
from shardmark.results.surroundings import NOT_SET, variables_to_compare

# The others hold paths and accounts of one site, which a report that is passed on must not name.
_DEFINING: dict[str, Any] = {
    **dict.fromkeys(("run", "baseline", "matrix", "workloads", "variants", "strategies"), True),
    **dict.fromkeys(("measure", "parity", "largest_batch"), True),
    "cluster": {"device", "gpus_per_node"},
}


class Fact(Section):
    """One fact about the machines or versions.

    Attributes:
        name: its name.
        values: each value with the number of cells that had it, the most frequent first.
    """

    name: str
    values: list[tuple[str, int]]

    @property
    def differs(self) -> bool:
        """Whether cells had different values."""
        return len(self.values) > 1


class RunRecord(Section):
    """Everything that later steps need to know about a matrix and that is not a row of a table.

    Attributes:
        run: name of the matrix.
        baseline: the strategy that the others are compared with.
        device: cuda or cpu.
        steady_min_s: least seconds of the steady window.
        subjects: what each workload trains, in a few words.
        workloads: each workload in one sentence.
        chance_accuracy: by workload, the accuracy of guessing; without generated data, from which
            nothing can be learned.
        labels: the labels that the configuration chooses, by strategy.
        colours: the colours that it chooses.
        config: the sections of the configuration that define the results.
        certificates: the settings of each workload and GPU count.
        environment: what is known of the machines, versions and variables.
    """

    run: str
    baseline: str
    device: str
    steady_min_s: float
    subjects: dict[str, str]
    workloads: dict[str, str]
    chance_accuracy: dict[str, float]
    labels: dict[str, str]
    colours: dict[str, str]
    config: dict[str, Any]
    certificates: list[Certificate]
    environment: list[Fact]


def run_record(config: Config, results: Sequence[Metrics]) -> RunRecord:
    """Return the record of a matrix and its results."""
    return RunRecord(
        run=config.run,
        baseline=config.baseline,
        device=config.cluster.device,
        steady_min_s=config.measure.steady_min_s,
        subjects={name: config.workloads[name].subject for name in config.matrix.workloads},
        workloads={name: describe_workload(config, name) for name in config.matrix.workloads},
        chance_accuracy={
            name: chance
            for name in config.matrix.workloads
            if (chance := config.workloads[name].chance_accuracy) is not None
        },
        labels=chosen_labels(config),
        colours=chosen_colours(config),
        config=config.model_dump(mode="json", by_alias=True, include=_DEFINING),
        certificates=certificates(results, config.baseline),
        environment=environment_facts(results),
    )


def describe_workload(config: Config, name: str) -> str:
    """Describe a workload in one sentence."""
    workload = config.workloads[name]
    batch, optimizer = workload.batch, workload.optimizer
    size = f"{batch.per_gpu} {workload.samples} per {replicas_noun(config.cluster.device)}"
    if batch.per_gpu is None:
        size = f"{batch.global_} {workload.samples} in all"
    micro = f" in {batch.accumulate} micro-batches" if batch.accumulate > 1 else ""
    return (
        f"{workload.summary}, {size} per step{micro}, "
        f"{optimizer.name} at {optimizer.learning_rate:g}, {workload.precision}, "
        f"{workload.epochs} epoch{'s' if workload.epochs > 1 else ''}"
    )


def environment_facts(results: Iterable[Metrics]) -> list[Fact]:
    """Return each fact about machines, versions and variables, with the number of cells per value.

    It covers all GPU counts, which scaling compares; a certificate covers one of them.
    """
    counts: dict[str, Counter[str]] = {}
    ran = [result for result in results if result.status != "unsupported"]
    variables = variables_to_compare(ran)
    for result in ran:
        facts = {k: v for k, v in result.environment.items() if not isinstance(v, (dict, list))}
        facts |= result.environment.get("versions", {})
        if result.effective_config:  # A failed cell lacks the variables that only its ranks had.
            own = result.environment.get("variables", {})
            facts |= {name: own.get(name, NOT_SET) for name in variables}
        facts |= {key: result.provenance.get(key) for key in ("git_commit", "git_dirty")}
        locks = result.provenance.get("locks", {})
        facts |= {f"sha256 of {name}": digest for name, digest in locks.items()}
        facts["devices"] = ", ".join(sorted({device.name for device in result.devices})) or None
        for name, value in facts.items():
            if value is not None:
                counts.setdefault(name, Counter())[str(value)] += 1
    return [Fact(name=name, values=values.most_common()) for name, values in counts.items()]
