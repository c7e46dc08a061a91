"""Mistakes in a configuration: each is reported once, by its path, with what is allowed."""

from __future__ import annotations

import dataclasses
import datetime
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from snakemake.utils import update_config
from snakemake_executor_plugin_slurm.validation import get_forbidden_slurm_options

from shardmark.cells import cell_of, cells_of
from shardmark.config.files import read_config_file
from shardmark.config.loading import load
from shardmark.config.messages import hint_at_allowed
from shardmark.config.mistakes import SET_BY_SNAKEMAKE
from shardmark.config.schema import Config
from shardmark.errors import ConfigError
from shardmark.optimizers import OPTIMIZERS
from small_matrix import RAW, ROOT, changed

W = "workloads.small"


def mistakes(raw: Any) -> list[str]:
    """Return the mistakes that the message about ``raw`` lists; its head must count them."""
    with pytest.raises(ConfigError) as caught:
        load(raw, ROOT)
    head, *lines = str(caught.value).splitlines()
    count = "1 mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
    assert head == f"{count} in the configuration:"
    assert len(set(lines)) == len(lines)
    return [line.removeprefix("  ") for line in lines]


def test_the_configuration_that_the_mistakes_are_made_in_has_none() -> None:
    assert len(list(cells_of(load(RAW, ROOT)))) == 12


# What is changed, the path that the message must name, and words that it must hold.
ONE_MISTAKE: dict[str, tuple[Any, str, tuple[str, ...]]] = {
    # labels and colours
    "a label of two lines": (
        changed(variants__slim={"base": "ddp", "label": "a\nb"}),
        "variants.slim.label",
        ("on one line",),
    ),
    "a label that is too long": (
        changed(variants__slim={"base": "ddp", "label": "a" * 41}),
        "variants.slim.label",
        ("at most 40 characters",),
    ),
    "a label that turns the direction of text": (
        changed(strategies__mine={"file": "docs/examples/one_all_reduce.py", "label": "a\u202eb"}),
        "strategies.mine.label",
        ("printable",),
    ),
    "another strategy's label": (
        changed(variants__slim={"base": "ddp", "label": "DDP"}),
        "variants.slim.label",
        ("'DDP' is also the label of ddp",),
    ),
    "a colour without quotes, which is a comment": (
        changed(variants__slim={"base": "ddp", "color": None}),
        "variants.slim.color",
        ("got null", "in quotes"),
    ),
    "a colour that cannot be seen on white": (
        changed(strategies__mine={"file": "docs/examples/one_all_reduce.py", "color": "#FFFF00"}),
        "strategies.mine.color",
        ("contrast on white is 1.1:1", "3:1"),
    ),
    "a colour of another spelling": (
        changed(variants__slim={"base": "ddp", "colour": "#AA0000"}),
        "variants.slim.colour",
        ("did you mean 'color'?",),
    ),
    # keys
    "a misspelt section": (
        changed(measur={}),
        "measur",
        ("unknown key", "did you mean 'measure'?", "matrix"),
    ),
    "a misspelt key": (
        changed(workloads__small__dataset__img_size=32),
        f"{W}.dataset.img_size",
        ("unknown key", "did you mean 'image_size'?", "augment"),
    ),
    "a number for a key": (changed() | {3: 1}, "3", ("unknown key", "allowed: run, ")),
    "yes for a key": (changed() | {True: 1}, "true", ("unknown key",)),
    "nothing for a key": (changed() | {None: 1}, "null", ("unknown key",)),
    "an internal name for a key": (
        changed(workloads__small__batch={"global": 16, "global_": 16}),
        f"{W}.batch.global_",
        ("did you mean 'global'?",),
    ),
    # the matrix
    "an unknown strategy": (
        changed(matrix__strategies=["ddp", "fdsp"]),
        "matrix.strategies[1]",
        ("unknown strategy 'fdsp'", "did you mean 'fsdp'?", "deepspeed_zero3", "slim"),
    ),
    "an unknown workload": (
        changed(matrix__workloads=["smal"]),
        "matrix.workloads[0]",
        ("unknown workload 'smal'", "did you mean 'small'?"),
    ),
    "a part of the matrix that names what is not in it": (
        changed(matrix__only=[{"strategies": ["ddp"]}, {"strategies": ["fdsp"]}]),
        "matrix.only[1].strategies",
        ("'fdsp' is not in matrix.strategies",),
    ),
    "an unknown key of a part of the matrix": (
        changed(matrix__only=[{"strategy": ["ddp"]}]),
        "matrix.only[0].strategy",
        ("unknown key", "did you mean 'strategies'?"),
    ),
    "a seed that no part of the matrix allows": (
        changed(matrix__seeds=[0, 1], matrix__only=[{"seeds": [0]}]),
        "matrix.seeds",
        ("1 has no cell", "matrix.only"),
    ),
    "a part of the matrix without the baseline": (
        changed(
            matrix__strategies=["ddp", "fsdp"],
            matrix__only=[{"gpus": [1]}, {"gpus": [2], "strategies": ["fsdp"]}],
        ),
        "matrix.only",
        ("small at 2 GPUs has no cell of the baseline ddp with seed 0",),
    ),
    "a largest batch of a workload that is not trained": (
        changed(largest_batch={"workloads": ["smal"], "most": 8}),
        "largest_batch.workloads[0]",
        ("'smal' is not in matrix.workloads", "did you mean 'small'?"),
    ),
    "a largest batch of a strategy that is not trained": (
        changed(largest_batch={"workloads": ["small"], "strategies": ["fsdp3"], "most": 8}),
        "largest_batch.strategies[0]",
        ("'fsdp3' is not in matrix.strategies",),
    ),
    "a largest batch of a strategy without a cell there": (
        changed(
            largest_batch={
                "workloads": ["small"],
                "strategies": ["fsdp"],
                "gpus": [2],
                "most": 8,
            },
            matrix__strategies=["ddp", "fsdp"],
            matrix__only=[{"strategies": ["ddp"]}, {"strategies": ["fsdp"], "gpus": [1]}],
        ),
        "largest_batch.workloads[0]",
        ("'small' has no cell of fsdp at 2 GPUs",),
    ),
    "a largest batch at a GPU count that is not trained": (
        changed(largest_batch={"workloads": ["small"], "gpus": [2, 8], "most": 8}),
        "largest_batch.gpus[1]",
        ("8 is not in matrix.gpus", "allowed: 1, 2"),
    ),
    "a largest batch of a workload without a cell there": (
        changed(
            largest_batch={"workloads": ["small"], "gpus": [2], "most": 8},
            matrix__only=[{"gpus": [1]}, {"gpus": [2], "workloads": ["other"]}],
            matrix__workloads=["small", "other"],
            workloads__other=RAW["workloads"]["small"],
        ),
        "largest_batch.workloads[0]",
        ("'small' has no cell at 2 GPUs", "nothing of it would be searched"),
    ),
    "a largest batch on a CPU without an end": (
        changed(largest_batch={"workloads": ["small"]}),
        "largest_batch.most",
        ("missing", "cluster.device: cpu"),
    ),
    "no GPUs": (changed(matrix__gpus=[0]), "matrix.gpus[0]", ("got 0", "greater than or equal to")),
    "negative GPUs": (changed(matrix__gpus=[2, -1]), "matrix.gpus[1]", ("got -1",)),
    "half a GPU": (changed(matrix__gpus=[1.5]), "matrix.gpus[0]", ("got 1.5", "whole number")),
    "a fractional number": (changed(matrix__gpus=[2.0]), "matrix.gpus[0]", ("got 2.0", "whole")),
    "a boolean for a count": (changed(matrix__gpus=[True]), "matrix.gpus[0]", ("got true",)),
    "text for a count": (
        changed(matrix__gpus=["2"]),
        "matrix.gpus[0]",
        ("got '2'", "write 2 without quotes"),
    ),
    "one count without a list": (changed(matrix__gpus=2), "matrix.gpus", ("got 2", "a list")),
    "a mapping for a list": (changed(matrix__gpus={1: 2}), "matrix.gpus", ("a list",)),
    "an empty matrix": (changed(matrix__seeds=[]), "matrix.seeds", ("is empty",)),
    "a matrix without strategies": (
        changed(matrix__strategies=[]),
        "matrix.strategies",
        ("is empty",),
    ),
    "a null matrix": (changed(matrix=None), "matrix", ("got null", "a mapping")),
    "a list for the matrix": (changed(matrix=["ddp"]), "matrix", ("a mapping",)),
    "a duplicate seed": (
        changed(matrix__seeds=[0, 1, 0]),
        "matrix.seeds",
        ("0 is named 2 times", "once"),
    ),
    "a duplicate strategy": (
        changed(matrix__strategies=["ddp", "ddp"]),
        "matrix.strategies",
        ("'ddp' is named 2 times",),
    ),
    "a duplicate variant with a label": (
        changed(
            variants__slim={"base": "ddp", "label": "Slim"},
            matrix__strategies=["ddp", "slim", "slim"],
        ),
        "matrix.strategies",
        ("'slim' is named 2 times",),
    ),
    "a negative seed": (changed(matrix__seeds=[-1]), "matrix.seeds[0]", ("got -1",)),
    "a seed of more bits than torch takes": (
        changed(matrix__seeds=[10**30]),
        "matrix.seeds[0]",
        ("less than or equal to 2147483647",),
    ),
    "a part of a node beside a whole one": (
        changed(
            matrix__gpus=[8, 5],
            cluster__gpus_per_node=5,
            workloads__small__batch={"per_gpu": 2},
        ),
        "matrix.gpus[0]",
        ("got 8", "cluster.gpus_per_node is 5"),
    ),
    "a baseline that does not run": (
        changed(baseline="ddpp"),
        "baseline",
        ("'ddpp' is not in matrix.strategies", "did you mean 'ddp'?"),
    ),
    # names
    "a run out of its folder": (changed(run=".."), "run", ("got '..'", "must match")),
    "a run with a slash": (changed(run="a/b"), "run", ("must match",)),
    "a run without a name": (changed(run=None), "run", ("got null", "text")),
    "a date for a run": (
        changed(run=datetime.date(2026, 1, 2)),
        "run",
        ("got 2026-01-02", "quotes"),
    ),
    "a run that no file system takes": (changed(run="x" * 300), "run", ("at most 64 characters",)),
    "a number for a workload's name": (
        changed(workloads={"small": RAW["workloads"]["small"], 3: RAW["workloads"]["small"]}),
        "workloads",
        ("3 is no name", "letters"),
    ),
    "a path for a workload's name": (
        changed(workloads={"small": RAW["workloads"]["small"], "a/b": RAW["workloads"]["small"]}),
        "workloads",
        ("'a/b' is no name",),
    ),
    "a workload that would write among the gate's results": (
        changed(workloads__parity=RAW["workloads"]["small"]),
        "workloads.parity",
        ("choose another",),
    ),
    "no workloads": (changed(workloads={}), "workloads", ("is empty",)),
    "null for the workloads": (changed(workloads=None), "workloads", ("got null", "a mapping")),
    "a null workload": (changed(workloads__spare=None), "workloads.spare", ("got null",)),
    # variants
    "a variant of an unknown base": (
        changed(variants__other={"base": "dpd"}),
        "variants.other.base",
        ("unknown strategy 'dpd'", "did you mean 'dp'?", "fsdp2"),
    ),
    "a variant of a variant": (
        changed(variants__other={"base": "slim"}),
        "variants.other.base",
        ("unknown strategy 'slim'",),
    ),
    "a variant without a base": (
        changed(variants__other={"bucket_cap_mb": 1}),
        "variants.other.base",
        ("missing", "allowed: dp, ddp"),
    ),
    "a list for a base": (
        changed(variants__other={"base": ["ddp"]}),
        "variants.other.base",
        ("unknown strategy ['ddp']",),
    ),
    "a variant of earlier versions": (
        changed(matrix__strategies=["ddp", "zero3_native_bf16"]),
        "matrix.strategies[1]",
        ("it is called zero3_bf16_communication now",),
    ),
    "an unknown option of a variant": (
        changed(variants__other={"base": "ddp", "bucket_mb": 1}),
        "variants.other.bucket_mb",
        ("unknown option of ddp", "did you mean 'bucket_cap_mb'?", "comm_hook"),
    ),
    "an option of earlier versions": (
        changed(variants__other={"base": "fsdp2", "mixed_precision": "bf16"}),
        "variants.other.mixed_precision",
        ("was replaced by param_dtype and reduce_dtype: bf16 is now param_dtype: bf16",),
    ),
    "an option of another strategy": (
        changed(variants__other={"base": "dp", "bucket_mb": 1}),
        "variants.other.bucket_mb",
        ("unknown option of dp", "cudnn_benchmark"),
    ),
    "a bad value of an option": (
        changed(variants__other={"base": "fsdp", "sharding": "full_shar"}),
        "variants.other.sharding",
        ("got 'full_shar'", "did you mean 'full_shard'?", "shard_grad_op"),
    ),
    "an option out of its range": (
        changed(variants__other={"base": "ddp", "bucket_cap_mb": 0}),
        "variants.other.bucket_cap_mb",
        ("got 0",),
    ),
    "a negative threshold of clipping": (
        changed(variants__other={"base": "deepspeed_zero1", "gradient_clipping": -1}),
        "variants.other.gradient_clipping",
        ("got -1",),
    ),
    "a number for an option's name": (
        changed(variants__other={"base": "ddp", 3: 1}),
        "variants.other",
        ("3 is no name",),
    ),
    "a variant in the place of a strategy": (
        changed(variants__fsdp={"base": "ddp"}),
        "variants.fsdp",
        ("name of a strategy",),
    ),
    "a variant in the place of the oracle": (
        changed(variants__oracle={"base": "ddp"}),
        "variants.oracle",
        ("choose another",),
    ),
    "text for a variant": (changed(variants__other="ddp"), "variants.other", ("a mapping",)),
    "null for the variants": (
        changed(variants=None, matrix__strategies=["ddp"]),
        "variants",
        ("got null", "a mapping"),
    ),
    # the batch
    "a global batch that the GPUs do not divide": (
        changed(matrix__gpus=[1, 3]),
        f"{W}.batch.global",
        ("got 16", "3 does not divide it"),
    ),
    "both kinds of batch": (
        changed(workloads__small__batch__per_gpu=8),
        f"{W}.batch",
        ("got both", "null in an overlay"),
    ),
    "an empty batch": (changed(workloads__small__batch={}), f"{W}.batch", ("got neither",)),
    "a null batch": (changed(workloads__small__batch=None), f"{W}.batch", ("got null",)),
    "micro-batches of unequal size": (
        changed(matrix__gpus=[1], workloads__small__batch__accumulate=3),
        f"{W}.batch.accumulate",
        ("got 3", "16 images"),
    ),
    "a batch too small for batch-norm": (
        changed(matrix__gpus=[1], workloads__small__batch={"per_gpu": 1}),
        f"{W}.batch",
        ("batch-norm", "at least 2"),
    ),
    "a batch of more images than there are": (
        changed(matrix__gpus=[1], workloads__small__batch={"per_gpu": 128}),
        f"{W}.batch",
        ("128 images at 1 GPU", "64 training images"),
    ),
    "a batch for more than 32 bits": (
        changed(workloads__small__batch={"global": 2**40}),
        f"{W}.batch.global",
        ("less than or equal to 2147483647",),
    ),
    # model and data set
    "an unknown model": (
        changed(workloads__small__model__name="resnet5O"),
        f"{W}.model.name",
        ("unknown model 'resnet5O'", "did you mean 'resnet56'?", "vit_h_14"),
    ),
    "a number for a model": (
        changed(workloads__small__model__name=8),
        f"{W}.model.name",
        ("text",),
    ),
    "text for the model's section": (
        changed(workloads__small__model="resnet8"),
        f"{W}.model",
        ("got 'resnet8'", "a mapping"),
    ),
    "a stem where there is no choice": (
        changed(workloads__small__model__stem="imagenet"),
        f"{W}.model.stem",
        ("only one stem",),
    ),
    "an unknown data set": (
        changed(workloads__small__dataset__name="cifar"),
        f"{W}.dataset.name",
        ("got 'cifar'", "did you mean 'cifar10'?", "synthetic"),
    ),
    "more images than CIFAR has": (
        changed(workloads__small__dataset={"name": "cifar10", "train_images": 60_000}),
        f"{W}.dataset.train_images",
        ("got 60000", "cifar10 has 50000"),
    ),
    "more test images than CIFAR has": (
        changed(workloads__small__dataset={"name": "cifar100", "test_images": 10_001}),
        f"{W}.dataset.test_images",
        ("cifar100 has 10000",),
    ),
    "a choice of classes in CIFAR": (
        changed(workloads__small__dataset={"name": "cifar10", "classes": 5}),
        f"{W}.dataset.classes",
        ("only synthetic",),
    ),
    "images that a ViT cannot cut into patches": (
        changed(
            workloads__small__model__name="vit_h_14", workloads__small__dataset__image_size=200
        ),
        f"{W}.dataset.image_size",
        ("got 200", "a multiple of 14"),
    ),
    "synchronised batch-norm without batch-norm": (
        changed(workloads__small__model__name="convnext_tiny", workloads__small__batchnorm="sync"),
        f"{W}.batchnorm",
        ("convnext_tiny has no batch-norm",),
    ),
    "a number for a switch": (
        changed(workloads__small__dataset__augment=2),
        f"{W}.dataset.augment",
        ("got 2", "true or false"),
    ),
    # optimizer and precision
    "tf32 on a CPU": (
        changed(workloads__small__precision="tf32"),
        f"{W}.precision",
        ("tf32", "cluster.device is cpu"),
    ),
    "an unknown precision": (
        changed(workloads__small__precision="fp23"),
        f"{W}.precision",
        ("got 'fp23'", "did you mean 'fp32'?", "fp32, tf32, bf16, fp16"),
    ),
    "no precision": (
        changed(workloads__small__precision=None),
        f"{W}.precision",
        ("got null", "allowed: fp32"),
    ),
    "nesterov without momentum": (
        changed(
            workloads__small__optimizer={"learning_rate": 0.1, "momentum": 0, "nesterov": True}
        ),
        f"{W}.optimizer.nesterov",
        ("momentum above 0",),
    ),
    "fused with fp16": (
        changed(
            workloads__small__precision="fp16",
            workloads__small__optimizer={"learning_rate": 0.1, "fused": True},
        ),
        f"{W}.optimizer.fused",
        ("set it to false, or precision to bf16",),
    ),
    "nesterov with adam": (
        changed(
            workloads__small__optimizer={"name": "adam", "learning_rate": 0.1, "nesterov": True}
        ),
        f"{W}.optimizer.nesterov",
        ("sgd",),
    ),
    "no learning rate": (
        changed(workloads__small__optimizer={"name": "sgd"}),
        f"{W}.optimizer.learning_rate",
        ("missing",),
    ),
    "a learning rate of zero": (
        changed(workloads__small__optimizer__learning_rate=0),
        f"{W}.optimizer.learning_rate",
        ("got 0", "greater than 0"),
    ),
    "an infinite learning rate": (
        changed(workloads__small__optimizer__learning_rate=math.inf),
        f"{W}.optimizer.learning_rate",
        ("finite",),
    ),
    "a boolean learning rate": (
        changed(workloads__small__optimizer__learning_rate=True),
        f"{W}.optimizer.learning_rate",
        ("got true", "a number"),
    ),
    "a number that YAML reads as text": (
        changed(workloads__small__optimizer__learning_rate=yaml.safe_load("1e-3")),
        f"{W}.optimizer.learning_rate",
        ("got '1e-3'", "write 1.0e-3 without quotes"),
    ),
    "a number with an exponent, in quotes": (
        changed(measure__steady_min_s="3.5E1"),
        "measure.steady_min_s",
        ("got '3.5E1'", "write 3.5e+1 without quotes"),
    ),
    "a count in quotes": (
        changed(workloads__small__epochs="2"),
        f"{W}.epochs",
        ("got '2'", "write 2 without quotes"),
    ),
    "a switch in quotes": (
        changed(workloads__small__dataset__augment="True"),
        f"{W}.dataset.augment",
        ("got 'True'", "write true without quotes"),
    ),
    "one beta": (
        changed(workloads__small__optimizer__betas=[0.9]),
        f"{W}.optimizer.betas[1]",
        ("missing",),
    ),
    "three betas": (
        changed(workloads__small__optimizer__betas=[0.9, 0.9, 0.9]),
        f"{W}.optimizer.betas",
        ("got 3 entries", "2 are allowed"),
    ),
    "a beta that torch refuses": (
        changed(workloads__small__optimizer__betas=[0.9, 1]),
        f"{W}.optimizer.betas[1]",
        ("got 1", "less than 1"),
    ),
    "a warm-up longer than the training": (
        changed(workloads__small__schedule__warmup_epochs=3),
        f"{W}.schedule.warmup_epochs",
        ("got 3", "epochs, 2"),
    ),
    "the linear rule in strong scaling": (
        changed(workloads__small__learning_rate_rule="linear"),
        f"{W}.learning_rate_rule",
        ("weak scaling",),
    ),
    "no epochs": (changed(workloads__small__epochs=0), f"{W}.epochs", ("got 0",)),
    # the rest
    "a null section": (changed(measure=None), "measure", ("got null", "a mapping")),
    "an endless window": (
        changed(measure__steady_max_s=math.inf),
        "measure.steady_max_s",
        ("finite",),
    ),
    "a window whose cap is below its least length": (
        changed(measure__steady_max_s=0.1),
        "measure.steady_max_s",
        ("got 0.1", "steady_min_s, 0.2"),
    ),
    "the length of a window, as earlier versions had it": (
        changed(measure__steady_s=30),
        "measure.steady_s",
        ("was replaced by steady_min_s, steady_max_s and steady_half_width_pct",),
    ),
    "the option that compared suspect cells": (
        changed(validity={"compare_suspect": True}),
        "validity",
        ("was removed: only a device fault excludes a cell", "leave it out"),
    ),
    "a warm-up that cannot be": (
        changed(measure__warmup_max_steps=2),
        "measure.warmup_max_steps",
        ("got 2", "warmup_min_steps, 3"),
    ),
    "no GPUs a node": (
        changed(cluster__gpus_per_node=0),
        "cluster.gpus_per_node",
        ("got 0",),
    ),
    "an unknown device": (
        changed(cluster__device="gpu"),
        "cluster.device",
        ("allowed: cuda, cpu",),
    ),
    "a time limit that no clock takes": (
        changed(cluster__time_limit_minutes=10**30),
        "cluster.time_limit_minutes",
        ("less than or equal to",),
    ),
    "a speed of a workload that is not there": (
        changed(cluster__expected_items_per_s={"smal": 100}),
        "cluster.expected_items_per_s",
        ("unknown workload 'smal'", "did you mean 'small'?"),
    ),
    "a data directory that is not there": (
        changed(data__dir="no/such/folder"),
        "data.dir",
        ("'no/such/folder' is not a folder", "create it"),
    ),
    "a file for a data directory": (changed(data__dir="Makefile"), "data.dir", ("not a folder",)),
    "a data directory without a name": (
        changed(data__dir=""),
        "data.dir",
        ("at least 1 character",),
    ),
    "a data directory too long to be": (
        changed(data__dir="d" * 5000),
        "data.dir",
        ("is not a folder",),
    ),
    "an image that is not there": (
        changed(site={"container": "no/such.sif"}),
        "site.container",
        ("'no/such.sif' is not a file", "apptainer pull"),
    ),
    "a variable that the launcher sets": (
        changed(site={"environment": {"RANK": "0"}}),
        "site.environment.RANK",
        ("set for each rank by the launcher",),
    ),
    "a secret with a value": (
        changed(site={"environment": {"A_TOKEN": "x"}, "secret_environment": ["A_TOKEN"]}),
        "site.secret_environment[0]",
        ("A_TOKEN has a value in site.environment", "export it"),
    ),
    "a secret that the launcher sets": (
        changed(site={"secret_environment": ["RANK"]}),
        "site.secret_environment[0]",
        ("set for each rank by the launcher",),
    ),
    **{
        f"an option of a user's own file that JSON changes: {words[-1]}": (
            changed(
                matrix__strategies=["dp", "ddp", "slim", "mine"],
                strategies={"mine": {"file": "docs/examples/one_all_reduce.py"} | options},
            ),
            "strategies.mine.options",
            words,
        )
        for options, words in (
            ({"options": {"a": [1, math.nan]}}, ("got {'a': [1, nan]}", "as a.1; ")),
            ({"options": {"a": datetime.date(2026, 1, 2)}}, ("text", "as a; a date", "quotes")),
            ({"options": {"a": {"b": b"x"}}}, ("as a.b; ",)),
            ({"options": {"a": {1: 2}}}, ("text as keys; put 1 in quotes",)),
            ({"options": yaml.safe_load("{a: " * 21 + "}" * 21)}, ("more than 20 levels",)),
        )
    },
    "options of sbatch with a quote left open": (
        changed(cluster__slurm_extra="--comment 'x"),
        "cluster.slurm_extra",
        ("no closing quotation",),
    ),
    "an option of sbatch that Snakemake sets": (
        changed(cluster__slurm_extra="--exclusive --constraint=h100"),
        "cluster.slurm_extra",
        ("'--exclusive --constraint=h100'", "sets --constraint itself", "set-resources"),
    ),
    "GPUs that Slurm does not assign, on nodes that jobs share": (
        changed(
            cluster__device="cuda",
            cluster__gpu_request="none",
            cluster__slurm_extra="--exclusive=user",
        ),
        "cluster.slurm_extra",
        ("cluster.gpu_request: none", "would use the same ones", "Add --exclusive"),
    ),
    "a character that no variable can hold": (
        changed(site={"environment": {"A": "x\0y"}}),
        "site.environment.A",
        ("'x\\x00y'", "no text"),
    ),
    "a variable's number without quotes": (
        changed(site={"environment": {"NCCL_IB_DISABLE": 1}}),
        "site.environment.NCCL_IB_DISABLE",
        ("got 1", "goes in quotes"),
    ),
    "a static graph where gradients are accumulated": (
        changed(
            variants={"slim": {"base": "ddp", "static_graph": True}},
            workloads__small__batch={"global": 16, "accumulate": 2},
        ),
        "variants.slim.static_graph",
        ("crashes with gradient accumulation", "workloads.small.batch.accumulate is 2"),
    ),
    "a group of one GPU": (
        changed(variants__other={"base": "fsdp", "shard_size": 1}),
        "variants.other.shard_size",
        ("got 1; it must be node, or a whole number of GPUs that is at least 2",),
    ),
    "a group of a node's GPUs by another name": (
        changed(variants__other={"base": "fsdp2", "reshard_after_forward": "nodes"}),
        "variants.other.reshard_after_forward",
        ("got 'nodes'; it must be true, false, node, or a whole number",),
    ),
    "ZeRO-3 that keeps everything gathered": (
        changed(variants__other={"base": "deepspeed_zero3", "reshard_after_forward": False}),
        "variants.other.reshard_after_forward",
        ("got false; it must be true, node, or a whole number",),
    ),
    "groups that divide no GPU count": (
        changed(variants={"slim": {"base": "fsdp2", "shard_size": 3}}),
        "variants.slim.shard_size",
        ("divides none of matrix.gpus", "would run nowhere", "or node"),
    ),
    "parameters of DDP in host memory": (
        changed(variants__other={"base": "deepspeed_zero1", "offload": "all"}),
        "variants.other.offload",
        ("got 'all'", "allowed: none, optimizer"),
    ),
    "a gate of too few steps": (changed(parity={"steps": 4}), "parity.steps", ("got 4",)),
    "a small rate in text": (
        changed(workloads__small__optimizer__learning_rate=yaml.safe_load("2e-7")),
        f"{W}.optimizer.learning_rate",
        ("got '2e-7'", "write 2.0e-7 without quotes"),
    ),
    "a count in text": (
        changed(workloads__small__epochs=yaml.safe_load("1e3")),
        f"{W}.epochs",
        ("got '1e3', which is text; write 1000 without quotes",),
    ),
    # what would fill a machine
    "a matrix by mistake": (
        changed(matrix__seeds=list(range(3000))),
        "matrix",
        ("1 workloads x 3 strategies x 2 gpus x 3000 seeds are 18,000 cells", "matrix.max_cells"),
    ),
    "images that no machine holds": (
        changed(workloads__small__dataset={"name": "synthetic", "train_images": 10**9}),
        f"{W}.dataset.train_images",
        ("3,072 GB", "cluster.mem_gb_per_gpu is 64"),
    ),
    "a crowd of workers": (
        changed(
            workloads__small__dataset={
                "name": "synthetic",
                "loader": "dataloader",
                "loader_workers": 1000,
            }
        ),
        f"{W}.dataset.loader_workers",
        ("got 1000", "less than or equal to 256"),
    ),
    # models
    "a model without known blocks": (
        changed(workloads__small__model={"name": "densenet121"}),
        f"{W}.model.name",
        ("shardmark does not know its blocks", "allowed: resnet8"),
    ),
    "images that vanish": (
        changed(
            workloads__small__model={"name": "convnext_tiny"},
            workloads__small__dataset={"name": "synthetic", "image_size": 16},
        ),
        f"{W}.dataset.image_size",
        ("got 16; convnext_tiny needs images of at least 32 px",),
    ),
    "nothing": (None, "(top level)", ("got null", "a mapping")),
}


@pytest.mark.parametrize("name", ONE_MISTAKE)
def test_a_mistake_is_one_line_with_its_path_and_what_is_allowed(name: str) -> None:
    raw, path, words = ONE_MISTAKE[name]
    [line] = mistakes(raw)
    assert line.startswith(f"{path}: "), line
    for word in words:
        assert word in line, line
    assert len(line) < 500


def test_the_options_that_snakemake_refuses_are_those_of_its_executor() -> None:
    patterns = " ".join(get_forbidden_slurm_options())
    assert set(re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", patterns)) == set(SET_BY_SNAKEMAKE)


def test_a_model_without_known_blocks_is_no_typing_error() -> None:
    (line,) = mistakes(changed(workloads__small__model={"name": "densenet121"}))
    assert "did you mean" not in line


def test_every_mistake_is_told_in_one_message_each_by_its_path() -> None:
    raw = changed(
        run="..",
        matrix__gpus=[0, 3],
        matrix__seeds=[1, 1],
        matrix__strategies=["ddp", "fdsp"],
        workloads__small__optimizer={"name": "sdg", "learning_rate": -1},
        workloads__small__precision="tf32",
        workloads__spare=[],
        variants__other={"base": "ddp", "bucket_cap_mb": "25"},
        data__dir="nowhere",
        clusters={},
    )
    assert sorted(line.split(": ")[0] for line in mistakes(raw)) == [
        "clusters",
        "data.dir",
        "matrix.gpus[0]",
        "matrix.seeds",
        "matrix.strategies[1]",
        "run",
        "variants.other.bucket_cap_mb",
        f"{W}.batch.global",
        f"{W}.optimizer.learning_rate",
        f"{W}.optimizer.name",
        f"{W}.precision",
        "workloads.spare",
    ]


def test_names_that_are_no_text_do_not_hide_the_other_mistakes() -> None:
    raw = changed(
        workloads={3: RAW["workloads"]["small"]}, variants={None: {"base": "ddp"}}, baseline="dp"
    )
    raw["matrix"] |= {"workloads": ["small"], "strategies": ["dp", "slim"]}
    lines = mistakes(raw)
    assert [line.split(": ")[0] for line in lines] == [
        "workloads",
        "variants",
        "matrix.strategies[1]",
    ]


def test_an_empty_configuration_names_what_it_lacks() -> None:
    assert mistakes({}) == [
        f"{key}: missing, and it has no default" for key in ("run", "matrix", "workloads")
    ]


def test_a_workload_that_no_cell_trains_is_checked_too_but_not_against_the_gpu_counts() -> None:
    small = RAW["workloads"]["small"]
    assert load(changed(workloads__spare=small | {"batch": {"global": 15}}), ROOT)
    [line] = mistakes(changed(workloads__spare=small | {"precision": "fp8"}))
    assert line.startswith("workloads.spare.precision: got 'fp8'")


def test_values_stay_as_they_were_written() -> None:
    config = load(changed(workloads__small__optimizer__learning_rate=1), ROOT)
    assert config.workloads["small"].optimizer.learning_rate == 1
    assert config.workloads["small"].batch.global_ == 16
    assert Config.model_validate_json(config.model_dump_json(by_alias=True)) == config


def shipped(*overlays: str) -> dict[str, Any]:
    """The shipped configuration with overlays, merged as Snakemake merges its config files."""
    raw: dict[str, Any] = {}
    for name in ("config", *overlays):
        update_config(raw, yaml.safe_load((ROOT / f"config/{name}.yaml").read_text()))
    return raw


@pytest.mark.parametrize(
    ("overlays", "run", "cells"),
    [
        ((), "main", 2 * 13 * 4 * 10),
        (("demo",), "demo", 2 * 8),
        (("incumbent",), "incumbent", 7 * 2 * 10),
        (("pilot",), "pilot", 13 + 4 + 2 * 8),
        (("one_gpu",), "one_gpu", (15 + 8) * 6),
        (("two_gpus",), "two_gpus", 15 * 6 + 13 * 2 + 8 * (6 + 1) + 6 * 3 + 2 * 3),
        (("eight_gpus",), "eight_gpus", 2 * 48 + 30 + 4 * 12 + 2 * 14 + 2 * 24 + 12),
        (("eight_gpus", "four_gpus"), "four_gpus", 48 + 30 + 3 * 12 + 14 + 24 + 12),
        (("checks",), "checks", 4 * 8),
    ],
)
def test_every_shipped_configuration_loads(
    overlays: tuple[str, ...], run: str, cells: int, tmp_path: Path
) -> None:
    (tmp_path / "resources").mkdir()
    config = load(shipped(*overlays), tmp_path)
    assert config.run == run
    assert len(list(cells_of(config))) == cells
    for name in ("config", *overlays):
        read_config_file(ROOT / f"config/{name}.yaml")


def test_a_misspelt_baseline_is_one_mistake() -> None:
    (line,) = mistakes(changed(matrix__strategies=["ddpp", "fsdp"]))
    assert "unknown strategy 'ddpp'; did you mean 'ddp'?" in line
    (line,) = mistakes(changed(matrix__strategies=["fsdp"]))
    assert "baseline: 'ddp' is not in matrix.strategies" in line


def test_the_gpt_is_the_same_on_two_four_and_eight_gpus(tmp_path: Path) -> None:
    """Otherwise merge_runs.py could not join their results."""
    (tmp_path / "resources").mkdir()
    loaded = [
        load(shipped(*names) | {"run": "one"}, tmp_path)
        for names in (("two_gpus",), ("eight_gpus",), ("eight_gpus", "four_gpus"))
    ]
    cells = [cell_of(config, "gpt_1b4", "ddp_compiled", 2, 0) for config in loaded]
    assert len({cell.fingerprint() for cell in cells}) == 1


def test_without_a_search_its_strategies_need_not_be_in_the_matrix() -> None:
    search = {"workloads": [], "strategies": ["fsdp2"], "most": 8}
    load(changed(largest_batch=search), ROOT)
    assert mistakes(changed(largest_batch=search | {"workloads": ["small"]}))


def test_a_hint_names_a_longer_name_that_ends_alike() -> None:
    names = ["ddp", "ddp_zero1", "deepspeed_zero1"]
    hint = hint_at_allowed("zero1", names)
    assert hint.startswith("did you mean 'ddp_zero1' or 'deepspeed_zero1'? allowed: ddp, ")
    assert hint_at_allowed("dpd", names).startswith("did you mean 'ddp'? ")


def test_an_overlay_takes_a_key_away_with_null(tmp_path: Path) -> None:
    raw = shipped()
    update_config(raw, {"workloads": {"resnet50_cifar10": {"batch": {"global": 2048}}}})
    assert any("got both" in line for line in mistakes(raw))
    batch = {"per_gpu": None, "global": 2048}
    update_config(raw, {"workloads": {"resnet50_cifar10": {"batch": batch}}})
    (tmp_path / "resources").mkdir()
    assert load(raw, tmp_path).workloads["resnet50_cifar10"].batch.global_ == 2048


# A file's text, the place in it that the message must name, and words that it must hold.
BAD_FILES: dict[str, tuple[str, str, str]] = {
    "a bracket left open": ("run: [a\nmatrix: {}\n", ":2:7", "not valid YAML"),
    "a tab": ("matrix:\n\tgpus: [1]\n", ":2:1", "not valid YAML"),
    "wrong indentation": ("run: a\n  matrix: 1\n", ":2:9", "not valid YAML"),
    "an unknown anchor": ("run: *name\n", ":1:6", "undefined alias"),
    "a list for a key": ("{[1]: 2}\n", ":1:2", "unhashable"),
    "a date that there is not": ("run: 2026-13-45\n", "", "month must be in 1..12"),
    "nothing at all": ("# only a comment\n", "", "holds nothing"),
    "a list": ("- run\n", "", "holds a list"),
    "brackets without end": ("run: " + "[" * 3000, "", "nested too deeply"),
    "brackets without end in JSON": ('{"run": ' * 3000, "", "nested too deeply"),
    "one word": ("demo\n", "", "holds a str"),
    "a list in JSON": ('["run"]', "", "holds a list"),
    "a key that stands twice": (
        "run: a\nmatrix:\n  gpus: [1]\n  seeds: [0]\n  gpus: [2]\n",
        ":5:3",
        "'gpus' stands in line 3 already",
    ),
    "a section that stands twice": ("run: a\nrun: b\n", ":2:1", "'run' stands in line 1"),
    "aliases that stand for a billion values": (
        "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 30)),
        ":1:1",
        "more than 100,000 values, once every alias (*name) is written out",
    ),
    "an alias inside the value that it names": ("a: &a {b: *a}\n", ":1:1", "more than 100,000"),
    "merge keys that stand for a billion values": (
        "a0: &a0 {x: 1}\n"
        + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 30)),
        ":1:1",
        "more than 100,000 values",
    ),
    "a key twice in a list's entry": ("- {a: 1, a: 2}\n", "", "holds a list"),
}


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("010", "reads 010 as 8; write 8 if you mean that, 10 for the decimal number, or '010' in"),
        ("1:30", "reads 1:30 as 90; write 90 if you mean that, or '1:30' in quotes for text"),
        ("1:30.5", "reads 1:30.5 as 90.5; write"),
        ("yes", "reads yes as true; write true if you mean that, or 'yes' in quotes for text"),
        ("Off", "reads Off as false; write false"),
    ],
)
def test_what_yaml_reads_otherwise_is_named_with_its_place(
    written: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"run: a\nmatrix:\n  seeds: [0, {written}]\n")
    with pytest.raises(ConfigError, match=re.escape(f"{path}:3:14: YAML 1.1 {message}")):
        read_config_file(path)
    path.write_text(f"run: a\n{written}: 1\n")
    with pytest.raises(ConfigError, match=re.escape(f"{path}:2:1: YAML 1.1 {message}")):
        read_config_file(path)


def test_an_optimizer_that_torch_has_no_fused_kernel_for_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = dataclasses.replace(OPTIMIZERS["sgd"], settings=("momentum", "weight_decay"))
    monkeypatch.setitem(OPTIMIZERS, "sgd", plain)
    fused = changed(workloads__small__optimizer={"learning_rate": 0.1, "fused": True})
    with pytest.raises(ConfigError, match=r"optimizer\.fused: torch has no fused sgd"):
        load(fused, ROOT)


def test_a_batch_that_is_too_small_to_search_is_one_mistake() -> None:
    with pytest.raises(ConfigError) as raised:
        load(changed(largest_batch={"workloads": ["small"], "most": 0}), ROOT)
    assert str(raised.value).count("largest_batch.most") == 1


def test_a_large_matrix_may_be_asked_for() -> None:
    config = load(changed(matrix__seeds=list(range(3000)), matrix__max_cells=20_000), ROOT)
    assert len(config.matrix.seeds) == 3000


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_is_no_configuration_is_named_with_the_place(name: str, tmp_path: Path) -> None:
    text, place, words = BAD_FILES[name]
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(f"{path}{place}: ")) as caught:
        read_config_file(path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read \(No such file"):
        read_config_file(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"cannot be read \(Is a directory"):
        read_config_file(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("run: caf\u00e9\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.yaml: is not UTF-8 text \(byte 8\)"):
        read_config_file(tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    "text",
    [
        '{"run":\t"a"}',
        "run: &name a\nbaseline: *name\n",
        "a: &x {k: 1}\nb: {<<: *x, k: 2}\nc: {<<: *x, k: 3}\n",
        "a: &x {k: 1}\nb: &y {l: 1}\nc: {<<: *x, <<: *y}\n",
        "a: {gpus: 1}\nb: {gpus: 1}\n",
        "a: ['010', \"1:30\", 'yes', 08, 0, 0.10, 1_000, 0x10, -1, !!str 010]\n",
        "a: |\n  yes\nb: no such thing\n",
    ],
)
def test_what_yaml_and_json_allow_is_let_through(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    read_config_file(path)
