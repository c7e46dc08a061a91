"""Turn a configuration as it was written into a Config, or list all its mistakes in one message."""

from __future__ import annotations

import difflib
import itertools
import math
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from shardmark.architectures import (
    CIFAR_RESNETS,
    MODELS,
    WITH_BATCH_NORM,
    has_no_known_blocks,
    is_resnet,
    is_vit,
    smallest_image_px,
)
from shardmark.config.schema import (
    WORKLOADS,
    Appearance,
    BatchSize,
    Cluster,
    Config,
    Data,
    Dataset,
    Gpt,
    Matrix,
    Measure,
    Model,
    Optimizer,
    OwnData,
    Schedule,
    Section,
    Tokens,
    Workload,
    WorkloadKind,
    kind_of,
    split_variant,
)
from shardmark.datasets import DATASETS
from shardmark.errors import ConfigError
from shardmark.optimizers import OPTIMIZERS
from shardmark.quantities import describe_gpus
from shardmark.strategies import STRATEGIES, label_of

# Keys of earlier versions, and what took their place.
REPLACED = {
    "measure.steady_s": "was replaced by steady_min_s, steady_max_s and steady_half_width_pct: the "
    "timed window ends when the mean step time is precise (config/README.md)",
    "cluster.expected_images_per_s": "is now expected_items_per_s, in images or tokens",
    "validity": "was removed: only a device fault excludes a cell (docs/method.md); leave it out",
}

# Options of variants of earlier versions, and what took their place.
REPLACED_OPTIONS = {
    "mixed_precision": "was replaced by param_dtype and reduce_dtype: bf16 is now param_dtype: "
    "bf16, reduce_dtype: bf16; torch's maintainers reduce in fp32, the default",
}

E = TypeVar("E", bound=int | str)
S = TypeVar("S", bound=Section)

MOST_CHARACTERS = 80
# Different tokens of a text: its bytes.
BYTES = 256
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

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
# The lists whose product is the matrix.
AXES = ("workloads", "strategies", "gpus", "seeds")

_NAME_RULE = "it must be at most 64 letters, digits and _, a letter first"


def load(raw: Mapping[str, Any], root: Path = Path()) -> Config:
    """Validate a merged configuration.

    Args:
        raw: the mapping that Snakemake merged from its config files.
        root: the folder that ``data.dir`` is relative to.

    Raises:
        ConfigError: with one line per mistake: path, what was given, what is allowed.
    """
    if not isinstance(raw, Mapping):
        raise ConfigError(
            _list_mistakes([f"(top level): got {format_value(raw)}; {_EXPECTED['dict_type']}"])
        )
    lines: list[str] = []
    config = None
    try:
        config = Config.model_validate(dict(raw))
        raw = config.model_dump(by_alias=True)
        lines += _texts_no_file_can_hold(raw)
    except ValidationError as error:
        lines += [
            _explain_error(detail)
            for detail in error.errors()
            if not _follows_from_unknown_model(detail, raw)
        ]
    lines += _mistakes(raw, root)
    if config is None or lines:
        raise ConfigError(_list_mistakes(list(dict.fromkeys(lines))))
    return config


def _list_mistakes(lines: Sequence[str]) -> str:
    count = len(lines)
    head = "1 mistake" if count == 1 else f"{count} mistakes"
    # A key may contain line breaks, but each mistake takes one line.
    plain = [_CONTROL.sub(lambda character: repr(character[0])[1:-1], line) for line in lines]
    return f"{head} in the configuration:\n" + "\n".join(f"  {line}" for line in plain)


def hint_at_allowed(given: object, allowed: Sequence[str]) -> str:
    """Return the allowed values; a hint at the nearest one comes first if one is similar."""
    text = given if isinstance(given, str) else ""
    similar = difflib.get_close_matches(text, allowed, n=1, cutoff=0.5)
    hint = f"did you mean {similar[0]!r}? " if similar else ""
    return f"{hint}allowed: {', '.join(allowed)}"


def format_value(value: object) -> str:
    """Format a value for a message: as YAML writes it, and shortened."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = str(value) if isinstance(value, date) else repr(value)
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}..."


def _path(location: Sequence[int | str]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path or "(top level)"


_EXPECTED = {
    "model_type": "a mapping of keys is expected here",
    "dict_type": "a mapping of keys is expected here",
    "list_type": "a list is expected here, [a, b, ...]",
    "tuple_type": "a list is expected here, [a, b, ...]",
    "string_type": "text is expected here; what only looks like a number goes in quotes",
    "int_type": "a whole number is expected here",
    "bool_type": "true or false is expected here",
    "float_type": "a number is expected here",
    "finite_number": "a finite number is expected here",
}


def _follows_from_unknown_model(detail: Any, raw: Mapping[str, Any]) -> bool:
    """Whether pydantic takes a right key for a wrong one because the model's name is unknown.

    A workload with an unknown model is checked as one of images, and may be meant as another kind.
    """
    location = detail["loc"]
    if location[0] != "workloads" or location[3:4] not in (("model",), ("dataset",)):
        return False
    workload = _mapping(_mapping(raw, "workloads"), location[1])
    name = _mapping(workload, "model").get("name")
    unknown = isinstance(name, str) and name not in (*MODELS, "gpt")
    return unknown and detail["type"] in ("extra_forbidden", "literal_error")


def _explain_error(detail: Any) -> str:
    """Return one of pydantic's errors as a line of the message."""
    location, kind, given = list(detail["loc"]), detail["type"], detail.get("input")
    workload_kind = None
    if location[:1] == ["workloads"] and len(location) > 2 and location[2] in WORKLOADS:
        workload_kind = location.pop(2)  # pydantic's, not a key
    if location and location[-1] == "[key]":
        return f"{_path(location[:-2])}: {format_value(given)} is no name; {_NAME_RULE}"
    if kind == "invalid_key":  # pydantic's location shows the key true as 1
        location[-1] = given if isinstance(given, str) else format_value(given)
    path = _path(location)
    match kind:
        case "extra_forbidden" if path in REPLACED:
            return f"{path}: {REPLACED[path]}"
        case "extra_forbidden" | "invalid_key":
            allowed = _keys_at(location[:-1], workload_kind)
            return f"{path}: unknown key; {hint_at_allowed(location[-1], allowed)}"
        case "missing":
            return f"{path}: missing" + ("" if path.endswith("]") else ", and it has no default")
        case "literal_error":
            allowed = [part.strip(" '") for part in detail["ctx"]["expected"].split(",")]
            allowed = [name.strip(" '") for part in allowed for name in part.split(" or ")]
            return f"{path}: got {format_value(given)}; {hint_at_allowed(given, allowed)}"
        case "too_short":
            return f"{path}: is empty; name at least one"
        case "too_long":
            count, most = detail["ctx"]["actual_length"], detail["ctx"]["max_length"]
            return f"{path}: got {count} entries; {most} are allowed"
        case "string_pattern_mismatch":
            return f"{path}: got {format_value(given)}; it must match {detail['ctx']['pattern']}"
        case "int_type" | "float_type" | "bool_type" if plain := _without_quotes(given, kind):
            return f"{path}: got {format_value(given)}, which is text; write {plain} without quotes"
        case _:
            rule = detail["msg"].removeprefix("Input ").removeprefix("String ")
            rule = rule.removeprefix("Value error, ")
            reason = _EXPECTED.get(kind, f"it {rule}")
            return f"{path}: got {format_value(given)}; {reason}"


def _without_quotes(value: object, kind: str) -> str:
    """Return quoted text as the number or boolean that YAML would read; empty if it is neither."""
    text = value.strip().lower() if isinstance(value, str) else ""
    if kind == "bool_type":
        return text if text in ("true", "false") else ""
    if not re.fullmatch(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]{1,2})?", text):
        return ""
    if kind == "int_type":
        return f"{float(text):.0f}" if float(text).is_integer() else ""
    mantissa, separator, exponent = text.partition("e")
    if not separator:
        return text
    # YAML 1.1 requires the decimal point and the exponent's sign.
    point = "" if "." in mantissa else ".0"
    sign = "" if exponent[0] in "-+" else "+"
    return f"{mantissa}{point}e{sign}{exponent}"


def _keys_at(location: Sequence[int | str], workload_kind: WorkloadKind | None) -> list[str]:
    """Return the keys that a section of the configuration may have."""
    model: type[BaseModel] = Config
    if workload_kind is not None:
        model, location = WORKLOADS[workload_kind], location[2:]
    for part in location:
        field = model.model_fields.get(str(part))
        if field is None:  # the index or the name of an entry
            continue
        for candidate in (field.annotation, *get_args(field.annotation)):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                model = candidate
    return [field.alias or name for name, field in model.model_fields.items()]


# The functions below find mistakes that involve several keys. They read the raw mapping, so that
# one message lists all mistakes, and skip values of a wrong type, which the models report.


def _mapping(raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = raw.get(key)
    return value if isinstance(value, Mapping) else {}


def _entries(raw: Mapping[str, Any], key: str, kind: type[E]) -> list[tuple[int, E]]:
    """Return the entries of a list that have the right type, with their indices."""
    values = raw.get(key)
    if not isinstance(values, Sequence) or isinstance(values, str):
        return []
    return [
        (index, value)
        for index, value in enumerate(values)
        if isinstance(value, kind) and not isinstance(value, bool)
    ]


def _section(kind: type[S], raw: Mapping[str, Any], key: str) -> S | None:
    """Return a section without its unknown keys, or None if it is wrong in another way."""
    keys = {field.alias or name for name, field in kind.model_fields.items()}
    known = {name: value for name, value in _mapping(raw, key).items() if name in keys}
    try:
        return kind.model_validate(known)
    except ValidationError:
        return None


def _mistakes(raw: Mapping[str, Any], root: Path) -> Iterator[str]:
    variants, workloads = _mapping(raw, "variants"), _mapping(raw, "workloads")
    matrix, cluster = _mapping(raw, "matrix"), _section(Cluster, raw, "cluster")
    own = _mapping(raw, "strategies")
    yield from _variant_mistakes(variants)
    yield from _own_strategy_mistakes(own, variants, root)
    yield from _repeated_labels(matrix, variants, own)
    yield from _unknown_names(matrix, "strategies", "strategy", [*STRATEGIES, *variants, *own])
    yield from _unknown_names(matrix, "workloads", "workload", list(workloads))
    yield from _repeated_entries(matrix)
    yield from _part_mistakes(raw)
    baseline = raw.get("baseline", Config.model_fields["baseline"].default)
    names = [name for _, name in _entries(matrix, "strategies", str)]
    if isinstance(baseline, str) and names and baseline not in names:
        yield (
            f"baseline: {baseline!r} is not in matrix.strategies; "
            f"{hint_at_allowed(baseline, names)}"
        )
    if cluster and (reason := _why_no_options(cluster.slurm_extra)):
        yield f"cluster.slurm_extra: got {format_value(cluster.slurm_extra)}; {reason}"
    measure = _section(Measure, raw, "measure")
    if measure and measure.warmup_max_steps < measure.warmup_min_steps:
        yield (
            f"measure.warmup_max_steps: got {measure.warmup_max_steps}; it must not be less than "
            f"measure.warmup_min_steps, {measure.warmup_min_steps}"
        )
    if measure and measure.steady_max_s < measure.steady_min_s:
        yield (
            f"measure.steady_max_s: got {measure.steady_max_s}; it must not be less than "
            f"measure.steady_min_s, {measure.steady_min_s}"
        )
    gpus = [(index, count) for index, count in _entries(matrix, "gpus", int) if count > 0]
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
    selected = [name for _, name in _entries(matrix, "workloads", str)]
    for name, workload in workloads.items():
        counts = [count for _, count in gpus] if name in selected else []
        if name in RESERVED_WORKLOADS:
            yield f"workloads.{name}: names something else among the results; choose another"
        if isinstance(workload, Mapping):
            yield from _workload_mistakes(f"workloads.{name}", workload, counts, cluster, root)
    yield from _combination_mistakes(variants, workloads, matrix)
    yield from _site_mistakes(_mapping(raw, "site"), root)
    yield from _largest_batch_mistakes(_mapping(raw, "largest_batch"), matrix, cluster)
    data = _section(Data, raw, "data")
    if data and not _is_folder(root / data.dir):
        yield f"data.dir: {format_value(data.dir)} is not a folder; create it or name another"


def _largest_batch_mistakes(
    search: Mapping[str, Any], matrix: Mapping[str, Any], cluster: Cluster | None
) -> Iterator[str]:
    kinds: tuple[tuple[str, type[int] | type[str]], ...] = (("workloads", str), ("gpus", int))
    for key, kind in kinds:
        allowed = [str(value) for _, value in _entries(matrix, key, kind)]
        for index, value in _entries(search, key, kind):
            if allowed and str(value) not in allowed:
                yield (
                    f"largest_batch.{key}[{index}]: {format_value(value)} is not in matrix.{key}; "
                    f"{hint_at_allowed(value, allowed)}"
                )
    if (
        cluster
        and cluster.device == "cpu"
        and search.get("workloads")
        and search.get("most") is None
    ):
        yield (
            "largest_batch.most: missing; with cluster.device: cpu it has no default, because "
            "other programs end when the machine runs out of memory. Name a batch that is sure to "
            "fit"
        )


def _combination_mistakes(
    variants: Mapping[str, Any], workloads: Mapping[str, Any], matrix: Mapping[str, Any]
) -> Iterator[str]:
    """Yield options of a selected variant that are known to fail with a selected workload."""
    selected = [name for _, name in _entries(matrix, "strategies", str)]
    for name, variant in variants.items():
        if name not in selected or not isinstance(variant, Mapping):
            continue
        yield from _group_mistakes(f"variants.{name}", variant, matrix)
        for _, workload in _entries(matrix, "workloads", str):
            batch = _section(BatchSize, _mapping(workloads, workload), "batch")
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
    counts = [count for _, count in _entries(matrix, "gpus", int)]
    for option in ("shard_size", "reshard_after_forward"):
        size = variant.get(option)
        if type(size) is int and size > 1 and counts and all(count % size for count in counts):
            yield (
                f"{path}.{option}: got {size}; it divides none of matrix.gpus "
                f"({', '.join(map(str, counts))}), so the variant would run nowhere. Choose a "
                "divisor of one of them, or node for the GPUs of one node"
            )


def _site_mistakes(site: Mapping[str, Any], root: Path) -> Iterator[str]:
    for name in _mapping(site, "environment"):
        if name in LAUNCHER_VARIABLES:
            yield f"site.environment.{name}: is set for each rank by the launcher; leave it out"
    for index, name in _entries(site, "secret_environment", str):
        if name in LAUNCHER_VARIABLES:
            yield f"site.secret_environment[{index}]: {name} is set for each rank by the launcher"
        if name in _mapping(site, "environment"):
            yield (
                f"site.secret_environment[{index}]: {name} has a value in site.environment, which "
                "results record; leave it out there and export it where Snakemake is started"
            )
    image = site.get("container")
    if isinstance(image, str) and not _is_file(root / image):
        yield (
            f"site.container: {format_value(image)} is not a file; apptainer pull or build makes "
            "one, null runs without"
        )


def _texts_no_file_can_hold(value: object, location: tuple[int | str, ...] = ()) -> Iterator[str]:
    """Yield texts that no file, variable or command can contain."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _texts_no_file_can_hold(entry, (*location, str(key)))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for index, entry in enumerate(value):
            yield from _texts_no_file_can_hold(entry, (*location, index))
    elif isinstance(value, str) and re.search(r"[\0\ud800-\udfff]", value):
        yield (
            f"{_path(location)}: got {format_value(value)}; take out the character that is no text"
        )


def _why_no_options(text: str) -> str:
    """Return why a text cannot be split into options of a command; empty if it can."""
    try:
        shlex.split(text)
    except ValueError as error:
        return f"as options of a command it has {str(error).lower()}"
    return ""


def _unknown_names(
    matrix: Mapping[str, Any], key: str, kind: str, defined: Sequence[object]
) -> Iterator[str]:
    allowed = [name for name in defined if isinstance(name, str)]
    for index, name in _entries(matrix, key, str):
        if allowed and name not in allowed:
            hint = hint_at_allowed(name, allowed)
            yield f"matrix.{key}[{index}]: unknown {kind} {format_value(name)}; {hint}"


def _repeated_entries(matrix: Mapping[str, Any]) -> Iterator[str]:
    for key in AXES:
        kind: type[int] | type[str] = int if key in ("gpus", "seeds") else str
        values = [value for _, value in _entries(matrix, key, kind)]
        for value, count in Counter[object](values).items():
            if count > 1:
                yield f"matrix.{key}: {value!r} is named {count} times; name each once"


def _part_mistakes(raw: Mapping[str, Any]) -> Iterator[str]:
    """Report parts of the matrix that name what is not in it, and groups without the baseline."""
    matrix = _section(Matrix, raw, "matrix")
    if matrix is None or not matrix.only:
        return
    lists: dict[str, list[Any]] = {key: getattr(matrix, key) for key in AXES}
    if math.prod(map(len, lists.values())) > matrix.max_cells:
        return
    unknown = [
        f"matrix.only[{index}].{key}: {format_value(value)} is not in matrix.{key}; "
        f"{hint_at_allowed(str(value), list(map(str, values)))}"
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
    baseline = raw.get("baseline", Config.model_fields["baseline"].default)
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


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # for example a name that is too long for the file system
        return False


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


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


def _own_strategy_mistakes(
    own: Mapping[str, Any], variants: Mapping[str, Any], root: Path
) -> Iterator[str]:
    for name, strategy in own.items():
        path = f"strategies.{name}"
        yield from _name_mistakes(path, name)
        if name in variants:
            yield f"{path}: is also the name of a variant; choose another"
        if isinstance(strategy, Mapping):
            yield from _own_file_mistakes(path, strategy.get("file"), root)


def _appearance_mistakes(path: str, looks: Mapping[str, Any]) -> Iterator[str]:
    try:
        Appearance.model_validate(looks)
    except ValidationError as error:
        for detail in error.errors():
            yield _explain_error({**detail, "loc": (path, *detail["loc"])})


def _repeated_labels(
    matrix: Mapping[str, Any], variants: Mapping[str, Any], own: Mapping[str, Any]
) -> Iterator[str]:
    """Report labels that readers could not tell apart."""
    owners: dict[str, str] = {}
    names = [name for _, name in _entries(matrix, "strategies", str)]
    # A label that was chosen is the one to change, so it comes last.
    labels = {name: label_of(name) for name in names}
    for section, definitions in (("variants", variants), ("strategies", own)):
        for name in names:
            label = _mapping(definitions, name).get("label")
            if isinstance(label, str) and label:
                del labels[name]
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
        yield f"{path}: names something else among the results; choose another"


def _option_mistakes(path: str, base: str, given: Mapping[str, Any]) -> Iterator[str]:
    options = STRATEGIES[base].options
    try:
        options.model_validate({key: value for key, value in given.items() if isinstance(key, str)})
    except ValidationError as error:
        for detail in error.errors():
            key = detail["loc"][0]
            if detail["type"] == "extra_forbidden" and key in REPLACED_OPTIONS:
                yield f"{path}.{key}: {REPLACED_OPTIONS[str(key)]}"
            elif detail["type"] == "extra_forbidden":
                allowed = [*options.model_fields, *Appearance.model_fields]
                yield f"{path}.{key}: unknown option of {base}; {hint_at_allowed(key, allowed)}"
            else:
                yield _explain_error({**detail, "loc": (path, *detail["loc"])})


def _workload_mistakes(
    path: str,
    raw: Mapping[str, Any],
    gpus: Sequence[int],
    cluster: Cluster | None,
    root: Path,
) -> Iterator[str]:
    yield from _optimizer_mistakes(path, raw)
    if kind_of(raw) == "own":
        yield from _own_file_mistakes(path, raw["file"], root)
    elif kind_of(raw) == "language":
        yield from _language_mistakes(path, raw, root)
    else:
        yield from _vision_mistakes(path, raw, cluster)
    if raw.get("precision") == "tf32" and cluster and cluster.device == "cpu":
        yield f"{path}.precision: tf32 is a mode of CUDA devices; cluster.device is cpu"
    batch = _section(BatchSize, raw, "batch") if isinstance(raw.get("batch"), Mapping) else None
    if batch and raw.get("learning_rate_rule") == "linear" and batch.per_gpu is None:
        yield f"{path}.learning_rate_rule: linear belongs to weak scaling (batch.per_gpu)"
    if batch and (batch.per_gpu is None) == (batch.global_ is None):
        given = "neither" if batch.per_gpu is None else "both"
        yield (
            f"{path}.batch: got {given}; name per_gpu (weak scaling) or global (strong scaling), "
            "and set the other to null in an overlay"
        )
    elif batch:
        yield from _batch_mistakes(path, batch, raw, gpus)


def _own_file_mistakes(path: str, file: object, root: Path) -> Iterator[str]:
    if isinstance(file, str) and not (file.endswith(".py") and _is_file(root / file)):
        yield (
            f"{path}.file: {format_value(file)} is no Python file; give a path relative to the "
            "project"
        )


def _language_mistakes(path: str, raw: Mapping[str, Any], root: Path) -> Iterator[str]:
    model, tokens = _section(Gpt, raw, "model"), _section(Tokens, raw, "dataset")
    if model and model.width % model.heads:
        yield (
            f"{path}.model.heads: got {model.heads}; it must divide the model's width, "
            f"{model.width}"
        )
    if tokens and tokens.name != "text" and tokens.file is not None:
        yield f"{path}.dataset.file: belongs to text; {tokens.name} is generated"
    if tokens is None or tokens.name != "text":
        return
    if tokens.file is None:
        yield f"{path}.dataset.file: missing; text needs the file to read"
    elif not _is_file(root / tokens.file):
        yield f"{path}.dataset.file: {format_value(tokens.file)} is not a file"
    elif model:
        # The last token of a sequence is only predicted: it begins the next one.
        there = ((root / tokens.file).stat().st_size - 1) // model.context
        needed = tokens.sequences + tokens.test_sequences
        if there < needed:
            held_out = f" and {tokens.test_sequences} test_sequences"
            yield (
                f"{path}.dataset.sequences: got {tokens.sequences}"
                f"{held_out if tokens.test_sequences else ''}; {tokens.file} has {there} of "
                f"{model.context} tokens (model.context)"
            )
    if model and model.vocabulary < BYTES:
        yield (
            f"{path}.model.vocabulary: got {model.vocabulary}; the bytes of a text need at least "
            f"{BYTES}"
        )


def _vision_mistakes(path: str, raw: Mapping[str, Any], cluster: Cluster | None) -> Iterator[str]:
    name = _mapping(raw, "model").get("name")
    if isinstance(name, str) and has_no_known_blocks(name):
        yield (
            f"{path}.model.name: {name} is torchvision's, but shardmark does not know its blocks, "
            "which fully sharded strategies gather one at a time; allowed: "
            f"{', '.join([*MODELS, 'gpt'])}"
        )
    elif isinstance(name, str) and name not in MODELS:
        hint = hint_at_allowed(name, [*MODELS, "gpt"])
        yield f"{path}.model.name: unknown model {name!r}; {hint}"
    dataset = _section(Dataset, raw, "dataset")
    model = _vision_model(raw)
    if dataset and not DATASETS[dataset.name].generated:
        record = DATASETS[dataset.name]
        if dataset.classes is not None:
            yield f"{path}.dataset.classes: only synthetic images have a choice of classes"
        for key in ("train_images", "test_images"):
            images, limit = getattr(dataset, key), getattr(record, key)
            if images is not None and images > limit:
                yield f"{path}.dataset.{key}: got {images}; {dataset.name} has {limit}"
    if model:
        if model.stem != "auto" and (not is_resnet(model.name) or model.name in CIFAR_RESNETS):
            yield f"{path}.model.stem: {model.name} has only one stem; leave it at auto"
        if raw.get("batchnorm") == "sync" and model.name not in WITH_BATCH_NORM:
            yield f"{path}.batchnorm: {model.name} has no batch-norm to synchronise"
    if model and dataset and is_vit(model.name):
        patch = int(model.name.rsplit("_", 1)[1])
        if dataset.image_size % patch:
            yield (
                f"{path}.dataset.image_size: got {dataset.image_size}; {model.name} cuts it into "
                f"patches of {patch} px, so it must be a multiple of {patch}"
            )
    if model and dataset and dataset.image_size < smallest_image_px(model.name):
        yield (
            f"{path}.dataset.image_size: got {dataset.image_size}; {model.name} needs images of at "
            f"least {smallest_image_px(model.name)} px"
        )
    if dataset and cluster:
        yield from _memory_mistakes(path, dataset, cluster)


def _vision_model(raw: Mapping[str, Any]) -> Model | None:
    model = _section(Model, raw, "model")
    return model if model is not None and model.name in MODELS else None


def _memory_mistakes(path: str, dataset: Dataset, cluster: Cluster) -> Iterator[str]:
    """Yield data sets that do not fit a rank's memory; each rank keeps all images as uint8."""
    if not DATASETS[dataset.name].generated:
        return
    for key, count in (("train", dataset.train_size), ("test", dataset.test_images or 0)):
        size_gb = 3 * count * dataset.image_size**2 / 1e9
        if size_gb > cluster.mem_gb_per_gpu:
            yield (
                f"{path}.dataset.{key}_images: {count} images of {dataset.image_size} px are "
                f"{size_gb:,.0f} GB, more than a rank's memory (cluster.mem_gb_per_gpu is "
                f"{cluster.mem_gb_per_gpu})"
            )


def _optimizer_mistakes(path: str, raw: Mapping[str, Any]) -> Iterator[str]:
    optimizer = _section(Optimizer, raw, "optimizer")
    schedule = _section(Schedule, raw, "schedule")
    epochs = raw.get("epochs", Workload.model_fields["epochs"].default)
    if optimizer and optimizer.nesterov and optimizer.name != "sgd":
        yield f"{path}.optimizer.nesterov: belongs to sgd; {optimizer.name} needs it false"
    elif optimizer and optimizer.nesterov and not optimizer.momentum:
        yield f"{path}.optimizer.nesterov: needs a momentum above 0"
    if optimizer and optimizer.fused and "fused" not in OPTIMIZERS[optimizer.name].settings:
        yield f"{path}.optimizer.fused: torch has no fused {optimizer.name}"
    if optimizer and optimizer.fused and raw.get("precision") == "fp16":
        yield (
            f"{path}.optimizer.fused: a fused optimizer skips a step by itself when fp16 overflows "
            "on its own rank, without the others; set it to false, or precision to bf16"
        )
    if schedule and isinstance(epochs, int) and 0 < epochs < schedule.warmup_epochs:
        yield (
            f"{path}.schedule.warmup_epochs: got {schedule.warmup_epochs:g}; it must not be more "
            f"than the workload's epochs, {epochs}"
        )


def _batch_mistakes(
    path: str, batch: BatchSize, raw: Mapping[str, Any], gpus: Sequence[int]
) -> Iterator[str]:
    there, least = None, 1
    samples = WORKLOADS[kind_of(raw)].samples
    if kind_of(raw) == "own":
        if own := _section(OwnData, raw, "dataset"):
            there = own.samples
    elif kind_of(raw) == "language":
        if tokens := _section(Tokens, raw, "dataset"):
            there = tokens.sequences
    else:
        dataset, model = _section(Dataset, raw, "dataset"), _vision_model(raw)
        if dataset:
            there = dataset.train_size
        if model and model.name in WITH_BATCH_NORM:
            least = 2
    for count in gpus:
        if batch.global_ is not None and batch.global_ % count:
            yield (
                f"{path}.batch.global: got {batch.global_}; it must be divisible by every count in "
                f"matrix.gpus, and {count} does not divide it"
            )
            continue
        per_gpu = batch.per_gpu or (batch.global_ or 0) // count
        replicas = describe_gpus("cuda", count)
        if per_gpu % batch.accumulate:
            yield (
                f"{path}.batch.accumulate: got {batch.accumulate}; it must divide the {per_gpu} "
                f"{samples} a GPU has at {replicas}"
            )
        elif per_gpu // batch.accumulate < least:
            yield (
                f"{path}.batch: one image a micro-batch at {replicas} leaves batch-norm no "
                "statistics; use at least 2"
            )
        if there is not None and per_gpu * count > there:
            yield (
                f"{path}.batch: a step of {per_gpu * count} {samples} at {replicas} is more than "
                f"the {there} training {samples}"
            )
