"""The networks: names, units, weights."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from parity_cases import case_of
from shardmark.architectures import (
    BLOCK_OF_MODEL,
    CIFAR_RESNETS,
    MODELS,
    has_no_known_blocks,
    is_resnet,
    is_vit,
    smallest_image_px,
)
from shardmark.config.schema import VisionWorkload
from shardmark.parity.cases import surrogate_cell
from shardmark.workload.vision.models import build_model, build_surrogate, shard_units

# Models whose stem there is a choice of.
STEMS = {name for name in MODELS if is_resnet(name)} - set(CIFAR_RESNETS)


def workload(name: str, **model: object) -> VisionWorkload:
    definition = case_of("ddp", 1, model={"name": name} | model).cell.definition
    assert isinstance(definition, VisionWorkload)
    return definition


def test_every_offered_model_is_torchvisions_or_our_own() -> None:
    theirs = set(torchvision.models.list_models(module=torchvision.models))
    assert set(MODELS) <= theirs | set(CIFAR_RESNETS)


def test_every_other_model_of_torchvision_is_refused_with_the_reason() -> None:
    theirs = set(torchvision.models.list_models(module=torchvision.models))
    assert {name for name in theirs if has_no_known_blocks(name)} == theirs - set(MODELS)


@pytest.mark.parametrize("name", [name for name in MODELS if not is_vit(name)])
def test_a_model_takes_images_of_its_smallest_size_and_none_smaller(name: str) -> None:
    smallest = max(8, smallest_image_px(name))  # a dataset's own limit is 8
    with torch.device("meta"):
        model = build_model(workload(name, stem="imagenet" if name in STEMS else "auto"), seed=0)
        model(torch.zeros(2, 3, smallest, smallest), torch.arange(2))
        if smallest > 8:
            with pytest.raises(RuntimeError):
                model(torch.zeros(2, 3, smallest - 1, smallest - 1), torch.arange(2))


@pytest.mark.parametrize("name", ["resnet8", "resnet18", "resnet50", "convnext_tiny", "swin_t"])
def test_a_models_blocks_are_its_shard_units_and_hold_most_parameters(name: str) -> None:
    definition = workload(name)
    model = build_model(definition, seed=0)
    units = shard_units(model, definition)
    inside = sum(p.numel() for unit in units for p in unit.parameters())
    assert len(units) >= 3
    assert inside > 0.75 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("block", sorted(set(BLOCK_OF_MODEL.values())))
def test_a_surrogate_has_the_blocks_of_its_model_and_gradients_everywhere(block: str) -> None:
    name = next(model for model, its in BLOCK_OF_MODEL.items() if its == block)
    side = 224 if block == "EncoderBlock" else 32
    case = case_of(
        "ddp", 1, model={"name": name}, dataset={"name": "synthetic", "image_size": side}
    )
    definition = surrogate_cell(case, "fp32").definition
    assert isinstance(definition, VisionWorkload)
    model = build_surrogate(definition, seed=0)
    assert len(shard_units(model, definition)) >= 2
    images = torch.randn(4, 3, definition.dataset.image_size, definition.dataset.image_size)
    loss = nn.functional.cross_entropy(model(images, torch.arange(4)), torch.arange(4))
    loss.backward()
    squares = [p.grad.square().sum() for p in model.parameters() if p.grad is not None]
    assert len(squares) == len(list(model.parameters()))
    norm = torch.stack(squares).sum().sqrt()
    assert norm > 1, "a framework that clips at 1 would go unseen"


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = build_model(workload("resnet8"), seed=3).state_dict()
    torch.manual_seed(2)
    again = build_model(workload("resnet8"), seed=3).state_dict()
    other = build_model(workload("resnet8"), seed=4).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_resnet50_takes_the_stem_its_images_ask_for() -> None:
    small = build_model(workload("resnet50"), seed=0).network
    assert small.conv1.stride == (1, 1)
    assert isinstance(small.maxpool, nn.Identity)
    imagenet = build_model(workload("resnet50", stem="imagenet"), seed=0).network
    assert imagenet.conv1.kernel_size == (7, 7)


def test_the_hidden_layer_stands_before_the_classes() -> None:
    model = build_model(workload("resnet50", hidden_units=512, dropout=0.3), seed=0).network
    shapes = [layer.out_features for layer in model.fc if isinstance(layer, nn.Linear)]
    assert shapes == [512, 10]
    assert [type(layer).__name__ for layer in model.fc] == [
        "Linear",
        "ReLU",
        "KeyedDropout",
        "Linear",
    ]


def test_a_model_without_dropout_is_not_searched_for_it_in_each_forward_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images, keys = torch.zeros(2, 3, 32, 32), torch.arange(2)
    plain = build_model(workload("resnet8"), seed=0)
    drawing = build_model(workload("resnet8", dropout=0.3), seed=0)
    monkeypatch.setattr(nn.Module, "modules", lambda module: pytest.fail("it was searched"))
    plain(images, keys)
    with pytest.raises(pytest.fail.Exception, match="searched"):
        drawing(images, keys)
