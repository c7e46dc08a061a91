"""Find the mistakes of a configuration that involve several keys."""

from __future__ import annotations

import itertools
import math
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from shardmark.config.messages import explain_error, format_value, hint_at_allowed, key_path
from shardmark.config.raw_values import (
    entries_at,
    is_file,
    is_folder,
    mapping_at,
    section_at,
    values_at,
)
from shardmark.config.schema import (
    Appearance,
    BatchSize,
    Cluster,
    Config,
    Data,
    Matrix,
    Measure,
    split_variant,
)
from shardmark.config.workload_mistakes import own_file_mistakes, workload_mistakes
from shardmark.strategies import STRATEGIES, label_of

# Options of variants of earlier versions, and what took their place.
REPLACED_OPTIONS = {
    "mixed_precision": "was replaced by param_dtype and reduce_dtype: bf16 is now param_dtype: "
    "bf16, reduce_dtype: bf16; torch's maintainers reduce in fp32, the default",
}
# Variants of earlier versions that config.yaml defined, and their names today.
RENAMED_VARIANTS = {
    f"zero{stage}_native_bf16": f"zero{stage}_bf16_communication" for stage in (1, 2, 3)
}
# Names that results/<run>/ uses for something else, and that parity/<workload>/ has beside the
# strategies' folders.
RESERVED_WORKLOADS = (
    "blocks",
    "checks",
    "data",
    "figures",
    "largest_batch",
    "parity",
    "reruns",
    "tables",
)
RESERVED_VARIANTS = ("oracle",)
# Variables that the launcher and torchrun set for each rank.
LAUNCHER_VARIABLES = (
    "CUDA_DEVICE_ORDER",
    "CUDA_VISIBLE_DEVICES",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "PYTHONPATH",
    "RANK",
    "WORLD_SIZE",
)
# Options of sbatch that Snakemake's executor sets itself. It refuses them in slurm_extra when it
# submits a job (validation.py of snakemake-executor-plugin-slurm 2.8.0).
SET_BY_SNAKEMAKE = (
    *("--account", "-A", "--clusters", "--comment", "--constraint", "-C", "--cpus-per-gpu"),
    *("--cpus-per-task", "-c", "--error", "-e", "--export", "--gpus", "--gres", "--job-name", "-J"),
    *("--mem", "--mem-per-cpu", "--nodes", "-N", "--ntasks", "-n", "--ntasks-per-gpu", "--output"),
    *("-o", "--parsable", "--partition", "-p", "--qos", "--time", "-t", "--workdir", "-D"),
)
# The lists whose product is the matrix.
AXES = ("workloads", "strategies", "gpus", "seeds")


def mistakes_in(raw: Mapping[str, Any], root: Path) -> Iterator[str]:
    """Yield one line per mistake that involves several keys.

    Args:
        raw: the configuration as it was written.
        root: the folder that its paths are relative to.
    """
    variants, workloads = mapping_at(raw, "variants"), mapping_at(raw, "workloads")
    matrix, cluster = mapping_at(raw, "matrix"), section_at(Cluster, raw, "cluster")
    own = mapping_at(raw, "strategies")
    baseline = raw.get("baseline", Config.model_fields["baseline"].default)
    names = values_at(matrix, "strategies", str)
    yield from _variant_mistakes(variants)
    yield from _own_strategy_mistakes(own, variants, root)
    yield from _repeated_labels(matrix, variants, own)
    strategies = [*STRATEGIES, *variants, *own]
    yield from _unknown_names(matrix, "strategies", "strategy", strategies)
    yield from _unknown_names(matrix, "workloads", "workload", list(workloads))
    yield from _repeated_entries(matrix)
    yield from _part_mistakes(section_at(Matrix, raw, "matrix"), baseline)
    # A name that is misspelt may be the baseline's, so that mistake comes first.
    if isinstance(baseline, str) and names and baseline not in names and {*names} <= {*strategies}:
        yield _not_in("matrix.strategies", "baseline", baseline, names)
    if cluster and (reason := _why_no_options(cluster.slurm_extra)):
        yield f"cluster.slurm_extra: got {format_value(cluster.slurm_extra)}; {reason}"
    elif cluster and _may_share_unassigned_gpus(cluster):
        yield (
            f"cluster.slurm_extra: got {format_value(cluster.slurm_extra)}; with "
            "cluster.gpu_request: none Slurm assigns no GPUs, so two jobs on a node would use the "
            "same ones. Add --exclusive"
        )
    measure = section_at(Measure, raw, "measure")
    for most, least in (("warmup_max_steps", "warmup_min_steps"), ("steady_max_s", "steady_min_s")):
        if measure and getattr(measure, most) < getattr(measure, least):
            yield (
                f"measure.{most}: got {getattr(measure, most)}; it must not be less than "
                f"measure.{least}, {getattr(measure, least)}"
            )
    gpus = [(index, count) for index, count in entries_at(matrix, "gpus", int) if count > 0]
    for index, count in gpus:
        if cluster and count > cluster.gpus_per_node and count % cluster.gpus_per_node:
            yield (
                f"matrix.gpus[{index}]: got {count}; more than one node's GPUs must be whole nodes "
                f"(cluster.gpus_per_node is {cluster.gpus_per_node})"
            )
    for name in cluster.expected_items_per_s if cluster and workloads else ():
        if name not in workloads:
            hint = hint_at_allowed(name, [key for key in workloads if isinstance(key, str)])
            yield f"cluster.expected_items_per_s: unknown workload {format_value(name)}; {hint}"
    yield from _size_mistakes(matrix)
    selected = values_at(matrix, "workloads", str)
    for name, workload in workloads.items():
        counts = [count for _, count in gpus] if name in selected else []
        if name in RESERVED_WORKLOADS:
            yield f"workloads.{name}: results/ uses this name for something else; choose another"
        if isinstance(workload, Mapping):
            yield from workload_mistakes(f"workloads.{name}", workload, counts, cluster, root)
    yield from _combination_mistakes(variants, workloads, matrix)
    yield from _site_mistakes(mapping_at(raw, "site"), root)
    search = mapping_at(raw, "largest_batch")
    yield from _largest_batch_mistakes(search, matrix, cluster)
    yield from _unsearched_workloads(search, section_at(Matrix, raw, "matrix"))
    data = section_at(Data, raw, "data")
    if data and not is_folder(root / data.dir):
        yield f"data.dir: {format_value(data.dir)} is not a folder; create it or name another"


def _not_in(name: str, path: str, value: object, allowed: Sequence[object]) -> str:
    """Return the message that a value is not in the list of this name."""
    hint = hint_at_allowed(str(value), list(map(str, allowed)))
    return f"{path}: {format_value(value)} is not in {name}; {hint}"


def _unknown_names(
    matrix: Mapping[str, Any], key: str, kind: str, defined: Sequence[object]
) -> Iterator[str]:
    allowed = [name for name in defined if isinstance(name, str)]
    for index, name in entries_at(matrix, key, str):
        if allowed and name not in allowed:
            hint = hint_at_allowed(name, allowed)
            if name in RENAMED_VARIANTS:
                hint = f"it is called {RENAMED_VARIANTS[name]} now"
            yield f"matrix.{key}[{index}]: unknown {kind} {format_value(name)}; {hint}"


def _repeated_entries(matrix: Mapping[str, Any]) -> Iterator[str]:
    for key in AXES:
        kind: type[int] | type[str] = int if key in ("gpus", "seeds") else str
        for value, count in Counter[object](values_at(matrix, key, kind)).items():
            if count > 1:
                yield f"matrix.{key}: {value!r} is named {count} times; name each once"


def _part_mistakes(matrix: Matrix | None, baseline: Any) -> Iterator[str]:
    """Report entries of matrix.only that are not in the matrix, and groups without the baseline."""
    if matrix is None or not matrix.only:
        return
    lists: dict[str, list[Any]] = {key: getattr(matrix, key) for key in AXES}
    if math.prod(map(len, lists.values())) > matrix.max_cells:
        return
    unknown = [
        _not_in(f"matrix.{key}", f"matrix.only[{index}].{key}", value, values)
        for index, part in enumerate(matrix.only)
        for key, values in lists.items()
        for value in getattr(part, key) or ()
        if value not in values
    ]
    yield from unknown
    if unknown:
        return
    kept = [place for place in itertools.product(*lists.values()) if matrix.has(*place)]
    for (key, values), used in zip(lists.items(), zip(*kept, strict=True), strict=True):
        for value in values:
            if value not in used:
                yield (
                    f"matrix.{key}: {format_value(value)} has no cell, because no entry of "
                    f"matrix.only allows one; add it to an entry, or remove it from matrix.{key}"
                )
    for workload, gpus, seed in dict.fromkeys((place[0], *place[2:]) for place in kept):
        if not matrix.has(workload, baseline, gpus, seed):
            yield (
                f"matrix.only: {workload} at {gpus} GPUs has no cell of the baseline {baseline} "
                f"with seed {seed}, with which the others are compared; add the baseline to an "
                "entry for these"
            )
            return


def _size_mistakes(matrix: Mapping[str, Any]) -> Iterator[str]:
    """Report a matrix of more than ``max_cells`` cells, which is probably a mistake."""
    lists = [entries for key in AXES if isinstance(entries := matrix.get(key), list)]
    cells = math.prod(map(len, lists))
    max_cells = matrix.get("max_cells", Matrix.model_fields["max_cells"].default)
    if len(lists) == len(AXES) and isinstance(max_cells, int) and cells > max_cells > 0:
        counts = " x ".join(
            f"{len(entries)} {key}" for key, entries in zip(AXES, lists, strict=True)
        )
        yield (
            f"matrix: {counts} are {cells:,} cells, more than matrix.max_cells ({max_cells:,}); "
            "raise that if you mean it; this does not count matrix.only"
        )


def _variant_mistakes(variants: Mapping[str, Any]) -> Iterator[str]:
    for name, variant in variants.items():
        path = f"variants.{name}"
        yield from _name_mistakes(path, name)
        if not isinstance(variant, Mapping):
            continue
        base = variant.get("base")
        if "base" not in variant:
            yield f"{path}.base: missing; {hint_at_allowed('', list(STRATEGIES))}"
        elif not isinstance(base, str) or base not in STRATEGIES:
            hint = hint_at_allowed(base, list(STRATEGIES))
            yield f"{path}.base: unknown strategy {format_value(base)}; {hint}"
        else:
            looks, options = split_variant(variant)
            yield from _option_mistakes(path, base, options)
            yield from _appearance_mistakes(path, looks)


def _appearance_mistakes(path: str, looks: Mapping[str, Any]) -> Iterator[str]:
    for detail in _errors_of(Appearance, looks):
        yield explain_error({**detail, "loc": (path, *detail["loc"])})


def _errors_of(model: type[BaseModel], given: Mapping[str, Any]) -> list[Any]:
    """Return pydantic's errors; none if the model accepts what is given."""
    try:
        model.model_validate(given)
    except ValidationError as error:
        return list(error.errors())
    return []


def _repeated_labels(
    matrix: Mapping[str, Any], variants: Mapping[str, Any], own: Mapping[str, Any]
) -> Iterator[str]:
    """Report labels that readers could not tell apart."""
    owners: dict[str, str] = {}
    names = values_at(matrix, "strategies", str)
    # A label that was chosen is the one to change, so it comes last.
    labels = {name: label_of(name) for name in names}
    for section, definitions in (("variants", variants), ("strategies", own)):
        for name in names:
            label = mapping_at(definitions, name).get("label")
            if isinstance(label, str) and label:
                labels.pop(name, None)
                labels[f"{section}.{name}.label"] = label
    for place, label in labels.items():
        if label in owners and place.endswith(".label"):
            owner = owners[label].removesuffix(".label").rpartition(".")[2]
            yield f"{place}: {format_value(label)} is also the label of {owner}; choose another"
        owners.setdefault(label, place)


def _name_mistakes(path: str, name: object) -> Iterator[str]:
    if name in STRATEGIES:
        yield f"{path}: is the name of a strategy; choose another"
    if name in RESERVED_VARIANTS:
        yield f"{path}: results/ uses this name for something else; choose another"


def _option_mistakes(path: str, base: str, given: Mapping[str, Any]) -> Iterator[str]:
    options = STRATEGIES[base].options
    named = {key: value for key, value in given.items() if isinstance(key, str)}
    for detail in _errors_of(options, named):
        key = detail["loc"][0]
        if detail["type"] == "extra_forbidden" and key in REPLACED_OPTIONS:
            yield f"{path}.{key}: {REPLACED_OPTIONS[str(key)]}"
        elif detail["type"] == "extra_forbidden":
            allowed = [*options.model_fields, *Appearance.model_fields]
            yield f"{path}.{key}: unknown option of {base}; {hint_at_allowed(key, allowed)}"
        else:
            yield explain_error({**detail, "loc": (path, *detail["loc"])})


def _own_strategy_mistakes(
    own: Mapping[str, Any], variants: Mapping[str, Any], root: Path
) -> Iterator[str]:
    for name, strategy in own.items():
        path = f"strategies.{name}"
        yield from _name_mistakes(path, name)
        if name in variants:
            yield f"{path}: is also the name of a variant; choose another"
        if isinstance(strategy, Mapping):
            yield from own_file_mistakes(path, strategy.get("file"), root)


def _combination_mistakes(
    variants: Mapping[str, Any], workloads: Mapping[str, Any], matrix: Mapping[str, Any]
) -> Iterator[str]:
    """Yield options of a selected variant that are known to fail with a selected workload."""
    selected = values_at(matrix, "strategies", str)
    for name, variant in variants.items():
        if name not in selected or not isinstance(variant, Mapping):
            continue
        yield from _group_mistakes(f"variants.{name}", variant, matrix)
        for workload in values_at(matrix, "workloads", str):
            batch = section_at(BatchSize, mapping_at(workloads, workload), "batch")
            if variant.get("static_graph") is True and batch and batch.accumulate > 1:
                yield (
                    f"variants.{name}.static_graph: DDP's static_graph crashes with gradient "
                    f"accumulation (workloads.{workload}.batch.accumulate is {batch.accumulate}); "
                    "leave one of the two out"
                )


def _group_mistakes(
    path: str, variant: Mapping[str, Any], matrix: Mapping[str, Any]
) -> Iterator[str]:
    """Yield sizes of groups that divide no GPU count, so that the variant would run nowhere."""
    counts = values_at(matrix, "gpus", int)
    for option in ("shard_size", "reshard_after_forward"):
        size = variant.get(option)
        if type(size) is int and size > 1 and counts and all(count % size for count in counts):
            yield (
                f"{path}.{option}: got {size}; it divides none of matrix.gpus "
                f"({', '.join(map(str, counts))}), so the variant would run nowhere. Choose a "
                "divisor of one of them, or node for the GPUs of one node"
            )


def _site_mistakes(site: Mapping[str, Any], root: Path) -> Iterator[str]:
    for name in mapping_at(site, "environment"):
        if name in LAUNCHER_VARIABLES:
            yield f"site.environment.{name}: is set for each rank by the launcher; leave it out"
    for index, name in entries_at(site, "secret_environment", str):
        if name in LAUNCHER_VARIABLES:
            yield f"site.secret_environment[{index}]: {name} is set for each rank by the launcher"
        if name in mapping_at(site, "environment"):
            yield (
                f"site.secret_environment[{index}]: {name} has a value in site.environment, which "
                "results record; leave it out there and export it where Snakemake is started"
            )
    image = site.get("container")
    if isinstance(image, str) and not is_file(root / image):
        yield (
            f"site.container: {format_value(image)} is not a file; apptainer pull or build makes "
            "one, null runs without"
        )


def _why_no_options(text: str) -> str:
    """Return why a text cannot be further options of sbatch; empty if it can."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        return f"as options of a command it has {str(error).lower()}"
    for option in (word.partition("=")[0] for word in words):
        if option in SET_BY_SNAKEMAKE:
            return (
                f"Snakemake sets {option} itself and refuses it here; use a key of cluster, or the "
                "profile (default-resources, set-resources)"
            )
    return ""


def _may_share_unassigned_gpus(cluster: Cluster) -> bool:
    """Whether two jobs may use the same GPUs; with --exclusive=user they still share nodes."""
    return cluster.gpus_unassigned and "--exclusive" not in shlex.split(cluster.slurm_extra)


def _largest_batch_mistakes(
    search: Mapping[str, Any], matrix: Mapping[str, Any], cluster: Cluster | None
) -> Iterator[str]:
    if not search.get("workloads"):
        # Nothing is searched, so an overlay may leave the other keys as they are.
        return
    kinds: dict[str, type[int] | type[str]] = {"workloads": str, "strategies": str, "gpus": int}
    for key, kind in kinds.items():
        allowed = values_at(matrix, key, kind)
        for index, value in entries_at(search, key, kind):
            if allowed and value not in allowed:
                yield _not_in(f"matrix.{key}", f"largest_batch.{key}[{index}]", value, allowed)
    if cluster and cluster.device == "cpu" and search.get("most") is None:
        yield (
            "largest_batch.most: missing; with cluster.device: cpu it has no default, because "
            "other programs end when the machine runs out of memory. Name a batch that is sure to "
            "fit"
        )


def _unsearched_workloads(search: Mapping[str, Any], matrix: Matrix | None) -> Iterator[str]:
    """Report workloads of a search that have no cell with its strategies and GPU counts."""
    if matrix is None:
        return
    counts = values_at(search, "gpus", int) or matrix.gpus
    named = values_at(search, "strategies", str)
    for index, workload in entries_at(search, "workloads", str):
        places = itertools.product([workload], named or matrix.strategies, counts)
        if workload in matrix.workloads and not any(matrix.has(*place) for place in places):
            of = f"of {' or '.join(named)} " if named else ""
            yield (
                f"largest_batch.workloads[{index}]: {format_value(workload)} has no cell {of}at "
                f"{' or '.join(map(str, counts))} GPUs, because no entry of matrix.only allows "
                "one, so nothing of it would be searched; change largest_batch or matrix.only"
            )


def texts_no_file_can_hold(value: object, location: tuple[int | str, ...] = ()) -> Iterator[str]:
    """Yield texts that no file, variable or command can contain."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from texts_no_file_can_hold(entry, (*location, str(key)))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for index, entry in enumerate(value):
            yield from texts_no_file_can_hold(entry, (*location, index))
    elif isinstance(value, str) and re.search(r"[\0\ud800-\udfff]", value):
        yield (
            f"{key_path(location)}: got {format_value(value)}; take out the character that is no "
            "text"
        )
