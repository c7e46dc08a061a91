"""A cell: one strategy, GPU count and seed of one workload, with everything that defines it."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from shardmark.config.schema import (
    AnyWorkload,
    BatchSize,
    CellSite,
    Config,
    Measure,
    ParityGate,
    base_and_options,
)
from shardmark.config.values import Count, Name, RunName, Section, Seed
from shardmark.strategies import OWN, Groups, Place, groups_of, spec_of


def cell_folder(run: str, workload: str, strategy: str, gpus: int, seed: int) -> Path:
    """Return the folder of a cell's results, relative to the project."""
    return Path("results", run, workload, strategy, f"gpus{gpus}", f"seed{seed}")


def key_title(workload: str, strategy: str, gpus: object, seed: object = None) -> str:
    """Return the name of a cell in messages, on one line; without a seed, of all its seeds."""
    return f"{workload} {strategy} gpus{gpus}" + ("" if seed is None else f" seed{seed}")


def search_title(workload: str, strategy: str, gpus: object) -> str:
    """Return the name of a search for the largest batch in messages, on one line."""
    return f"largest batch of {key_title(workload, strategy, gpus)}"


class Cell(Section):
    """Everything that one job needs to know and that can change its result."""

    run: RunName
    workload: Name
    strategy: Name
    base: str
    options: dict[str, Any]
    gpus: Count
    nodes: Count
    gpus_per_node: Count
    seed: Seed
    device: Literal["cuda", "cpu"]
    scaling: Literal["strong", "weak"]
    global_batch_size: Count
    per_gpu_batch_size: Count
    definition: AnyWorkload
    measure: Measure
    data_dir: str
    site: CellSite = Field(default_factory=lambda: CellSite())

    @model_validator(mode="after")
    def _is_one_that_a_configuration_defines(self) -> Cell:
        try:
            spec = spec_of(self.base)
        except KeyError:
            raise ValueError(f"base: {self.base!r} is not a strategy") from None
        # A result that is older than an option has run with its default.
        for name, value in spec.options.model_validate(self.options).model_dump().items():
            self.options.setdefault(name, value)
        if self.gpus != self.nodes * self.gpus_per_node:
            raise ValueError("gpus is not nodes times gpus_per_node")
        if self.global_batch_size != self.gpus * self.per_gpu_batch_size:
            raise ValueError("global_batch_size is not gpus times per_gpu_batch_size")
        return self

    @property
    def folder(self) -> Path:
        """Folder of the cell's results, relative to the project."""
        return cell_folder(self.run, self.workload, self.strategy, self.gpus, self.seed)

    @property
    def title(self) -> str:
        """The cell's name in messages, on one line."""
        return key_title(self.workload, self.strategy, self.gpus, self.seed)

    @property
    def processes(self) -> int:
        """Training processes of the cell, over all its nodes."""
        return 1 if spec_of(self.base).one_process else self.gpus

    @property
    def packages(self) -> tuple[str, ...]:
        """The packages besides torch whose versions may change the result."""
        return (*spec_of(self.base).packages, *self.options.get("packages", ()))

    @property
    def own_code(self) -> list[str]:
        """The user's own files with code: the training's, the strategy's."""
        strategy = [self.options["file"]] if self.base == OWN else []
        return [*self.definition.own_code, *strategy]

    @property
    def micro_batch_size(self) -> int:
        """Samples in one forward pass of one replica."""
        return self.per_gpu_batch_size // self.definition.batch.accumulate

    @property
    def items_per_step(self) -> int:
        """Images or tokens of one step, over all replicas."""
        return self.global_batch_size * self.definition.items_per_sample

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch; the incomplete last batch is dropped."""
        return self.definition.train_samples // self.global_batch_size

    @property
    def compilation(self) -> Literal["none", "block", "model"]:
        """What torch compiles: as the workload says, unless the variant has its own advice."""
        return self.options.get("compile") or self.definition.compile

    @property
    def state_dtype(self) -> str:
        """The precision in which the strategy keeps parameters and gradients between steps."""
        dtype: str = self.options.get("param_dtype", "fp32")
        return dtype if spec_of(self.base).holds_param_dtype else "fp32"

    @property
    def groups(self) -> Groups:
        """The sizes of the groups of GPUs that the strategy's options ask for."""
        return groups_of(self.options, self.gpus, self.nodes)

    @property
    def unsupported(self) -> str | None:
        """Why the strategy cannot run this cell, or None."""
        return spec_of(self.base).why_unsupported(self.options, self.place)

    @property
    def place(self) -> Place:
        """Where and how the strategy runs."""
        statistics = self.definition.batchnorm_statistics
        return Place(
            gpus=self.gpus,
            nodes=self.nodes,
            device=self.device,
            batchnorm=statistics if statistics != "none" else None,
            precision=self.definition.precision,
            compilation=self.compilation,
            checkpoints=self.definition.activation_checkpointing != "none",
            decay=self.definition.optimizer.decay,
            clips=self.definition.optimizer.clip_norm is not None,
        )

    def fingerprint(self) -> str:
        """SHA-256 over what defines the result; the folder of the data does not."""
        return _sha256(self.defining())

    def defining(self) -> dict[str, Any]:
        """The fields that define the result.

        The site's modules, network interface and container image are included, because they can
        change the speed. An empty site is left out, because older results have none. Secrets are
        left out: they grant access but do not change the speed. An option that older results do not
        have is left out while it has its default.
        """
        unnamed = self.site.model_copy(update={"secret_environment": []}) == CellSite()
        site: Any = True if unnamed else {"secret_environment"}
        options = spec_of(self.base).options
        newer = {
            name
            for name in options.newer
            if self.options.get(name) == options.model_fields[name].default
        }
        return self.model_dump(
            mode="json",
            by_alias=True,
            exclude={"data_dir": True, "site": site, "options": newer},
        )


def recorded_fingerprint(cell: Cell, raw: Mapping[str, Any]) -> str:
    """Return the fingerprint that a cell had when its result was written.

    Args:
        cell: the cell.
        raw: the cell as stored in the result's file. Fields missing there did not exist yet.
    """
    return _sha256(_without_unrecorded(cell.defining(), raw))


def _without_unrecorded(values: Mapping[str, Any], raw: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _without_unrecorded(value, raw[name]) if isinstance(value, dict) else value
        for name, value in values.items()
        if name in raw
    }


def _sha256(defining: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(defining, sort_keys=True).encode()).hexdigest()


def cell_of(config: Config, workload: str, strategy: str, gpus: int, seed: int) -> Cell:
    """Return the cell that the configuration defines under these names."""
    definition = config.workloads[workload]
    base, options = base_and_options(config, strategy)
    batch = definition.batch
    per_gpu_batch = batch.per_gpu or (batch.global_ or 0) // gpus
    gpus_per_node = min(gpus, config.cluster.gpus_per_node)
    return Cell(
        run=config.run,
        workload=workload,
        strategy=strategy,
        base=base,
        options=options,
        gpus=gpus,
        nodes=math.ceil(gpus / gpus_per_node),
        gpus_per_node=gpus_per_node,
        seed=seed,
        device=config.cluster.device,
        scaling="weak" if batch.per_gpu else "strong",
        global_batch_size=per_gpu_batch * gpus,
        per_gpu_batch_size=per_gpu_batch,
        definition=definition,
        measure=config.measure,
        data_dir=config.data.dir,
        site=CellSite.model_validate(config.site.model_dump(exclude={"scratch"})),
    )


def cells_of(config: Config) -> Iterator[Cell]:
    """Yield every cell of the matrix, in the order of the configuration."""
    for workload, strategy, gpus in sizes_of(config):
        for seed in config.matrix.seeds:
            if config.matrix.has(workload, strategy, gpus, seed):
                yield cell_of(config, workload, strategy, gpus, seed)


def sizes_of(config: Config) -> Iterator[tuple[str, str, int]]:
    """Yield each workload, strategy and GPU count of the matrix, in its order."""
    matrix = config.matrix
    for workload, strategy, gpus in itertools.product(
        matrix.workloads, matrix.strategies, matrix.gpus
    ):
        if matrix.has(workload, strategy, gpus):
            yield workload, strategy, gpus


def start_order(config: Config) -> dict[tuple[str, str, int, int], int]:
    """Return the planned place of each (workload, strategy, gpus, seed): 0 starts first.

    GPU counts descend. Within a block (workload, seed, GPU count) the strategies are shuffled with
    ``order_seed``, so that a drift of the machine does not always hit the same strategy.
    """
    matrix = config.matrix
    order: dict[tuple[str, str, int, int], int] = {}
    for gpus in sorted(matrix.gpus, reverse=True):
        for workload in matrix.workloads:
            for seed in matrix.seeds:
                block = [one for one in matrix.strategies if matrix.has(workload, one, gpus, seed)]
                random.Random(f"{config.order_seed}/{workload}/{seed}/{gpus}").shuffle(block)
                for strategy in block:
                    order[(workload, strategy, gpus, seed)] = len(order)
    return order


# When weights are rounded to low precision: by autocast once per forward pass ("autocast"), by
# autocast at each use of a weight ("each use"), or all before the forward pass ("parameters").
Rounding = Literal["autocast", "each use", "parameters"]


class ParityCase(Section):
    """One run of the parity gate: a strategy of the matrix at one replica count."""

    cell: Cell
    gate: ParityGate

    @property
    def file(self) -> Path:
        """File of the verdict, relative to the project."""
        cell = self.cell
        return Path("results", cell.run, "parity", cell.workload, cell.strategy) / (
            f"ranks{cell.gpus}.json"
        )

    @property
    def rounding(self) -> Rounding:
        """Where the strategy rounds weights to the timed precision, as far as planning can know.

        Autocast keeps the rounded weight for other uses in the same forward pass only if the weight
        is a leaf of autograd's graph. Then their gradients are added in low precision. A view of a
        flat parameter is no leaf, nor is a replica's copy, so each use rounds it anew and their
        gradients are added in float32.
        """
        cell = self.cell
        if cell.definition.precision not in ("bf16", "fp16"):
            return "autocast"
        if cell.options.get("param_dtype", "fp32") != "fp32":
            return "parameters"
        # Planning does not know whether parameters are frozen, so it expects none.
        copies = spec_of(cell.base).copies_weights(cell.place, lambda: False)
        return "each use" if copies else "autocast"

    def fingerprint(self) -> str:
        """SHA-256 over what defines the verdict, without the run's name and the folder of the data.

        So a verdict stays valid for the same case in a run that is merged from others.
        """
        cell = {name: value for name, value in self.cell.defining().items() if name != "run"}
        gate = self.gate.model_dump(mode="json", by_alias=True)
        return _sha256({"cell": cell, "gate": gate})


def parity_case(config: Config, workload: str, strategy: str, ranks: int) -> ParityCase:
    """Return the gate's case for the cells of a workload, strategy and GPU count."""
    return ParityCase(
        cell=cell_of(config, workload, strategy, ranks, config.parity.seed), gate=config.parity
    )


def oracle_cases(config: Config, workload: str, ranks: int) -> list[ParityCase]:
    """Return the gate's cases that share an oracle: the strategies that can run."""
    cases = [
        parity_case(config, workload, strategy, ranks)
        for strategy in config.matrix.strategies
        if config.matrix.has(workload, strategy, ranks)
    ]
    return [case for case in cases if not case.cell.unsupported]


# Largest micro-batch that is tried on GPUs; largest_batch.most can change it.
MOST_BATCH = 4096


class BatchSearch(Section):
    """The search for the largest micro-batch of a strategy at one GPU count.

    Attributes:
        cell: a cell of the strategy, with the smallest micro-batch that is tried.
        most: the largest micro-batch that is tried.
    """

    cell: Cell
    most: Count

    @property
    def file(self) -> Path:
        """File of the result, relative to the project."""
        cell = self.cell
        return Path("results", cell.run, "largest_batch", cell.workload, cell.strategy) / (
            f"gpus{cell.gpus}.json"
        )

    @property
    def title(self) -> str:
        """The search's name in messages, on one line."""
        return search_title(self.cell.workload, self.cell.strategy, self.cell.gpus)

    @property
    def least(self) -> int:
        """The smallest micro-batch that is tried."""
        return self.cell.micro_batch_size

    def fingerprint(self) -> str:
        """SHA-256 over what defines the result, without the run's name and the seed.

        So a result stays valid in a run that is merged from others, of which each has other seeds.
        """
        fields = self.cell.defining().items()
        cell = {name: value for name, value in fields if name not in ("run", "seed")}
        return _sha256({"cell": cell, "most": self.most})


def with_micro_batch(cell: Cell, samples: int) -> Cell:
    """Return the cell with this many samples in one forward pass of a replica."""
    accumulate = cell.definition.batch.accumulate
    per_gpu = samples * accumulate
    batch = BatchSize(per_gpu=per_gpu, accumulate=accumulate)
    return cell.model_copy(
        update={
            "definition": cell.definition.model_copy(update={"batch": batch}),
            "scaling": "weak",
            "per_gpu_batch_size": per_gpu,
            "global_batch_size": per_gpu * cell.gpus,
        }
    )


def batch_search(config: Config, workload: str, strategy: str, gpus: int) -> BatchSearch:
    """Return the search that the configuration defines under these names."""
    cell = cell_of(config, workload, strategy, gpus, config.matrix.seeds[0])
    # One image leaves batch-norm no statistics.
    least = 1 if cell.definition.batchnorm_statistics == "none" else 2
    most = config.largest_batch.most or MOST_BATCH
    return BatchSearch(cell=with_micro_batch(cell, least), most=most)


def batch_searches_of(config: Config) -> Iterator[BatchSearch]:
    """Yield every search for the largest batch, in the order of the matrix."""
    wanted = config.largest_batch
    for workload, strategy, gpus in sizes_of(config):
        if (
            workload in wanted.workloads
            and strategy in (wanted.strategies or config.matrix.strategies)
            and gpus in (wanted.gpus or config.matrix.gpus)
        ):
            yield batch_search(config, workload, strategy, gpus)
