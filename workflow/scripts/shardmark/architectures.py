"""The models that a workload may name, and the module class that is one shard unit in each.

This module does not import torch, so that a configuration can be checked without it. A test
compares the names with torchvision's own list.
"""

from __future__ import annotations

from typing import Any, Literal

# Fully sharded strategies gather one unit at a time. Without a unit per block they would gather
# the whole model at once, which saves no memory and overlaps nothing. So models without known
# blocks are not offered.
_BLOCKS = {
    "BasicBlock": ["resnet18", "resnet34"],
    "Bottleneck": [
        "resnet50",
        "resnet101",
        "resnet152",
        "resnext50_32x4d",
        "resnext101_32x8d",
        "resnext101_64x4d",
        "wide_resnet50_2",
        "wide_resnet101_2",
    ],
    "EncoderBlock": ["vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14"],
    "CNBlock": ["convnext_tiny", "convnext_small", "convnext_base", "convnext_large"],
    "SwinTransformerBlock": ["swin_t", "swin_s", "swin_b"],
}

# n by name. He et al., "Deep Residual Learning for Image Recognition" (2015), section 4.2: depth
# 6n + 2 on 32 px images, widths 16, 32, 64. resnet8 (n = 1) is the smallest of this family.
CIFAR_RESNETS = {"resnet8": 1, "resnet20": 3, "resnet32": 5, "resnet44": 7, "resnet56": 9}

BLOCK_OF_MODEL: dict[str, str] = {
    **dict.fromkeys(CIFAR_RESNETS, "BasicBlock"),
    **{model: block for block, models in _BLOCKS.items() for model in models},
}
MODELS: tuple[str, ...] = tuple(BLOCK_OF_MODEL)


# Prefixes of torchvision models that are not offered.
_OTHER_FAMILIES = (
    "alexnet",
    "densenet",
    "efficientnet",
    "googlenet",
    "inception",
    "maxvit",
    "mnasnet",
    "mobilenet",
    "regnet",
    "shufflenet",
    "squeezenet",
    "swin_v2",
    "vgg",
)

# Smaller images would shrink to nothing: ConvNeXt halves their side five times.
_SMALLEST_PX = {"CNBlock": 32}


def has_no_known_blocks(model: str) -> bool:
    """Whether torchvision has the model but shardmark does not know its blocks."""
    return model not in BLOCK_OF_MODEL and model.startswith(_OTHER_FAMILIES)


def smallest_image_px(model: str) -> int:
    """Return the side of the smallest image that the model accepts, px."""
    return _SMALLEST_PX.get(BLOCK_OF_MODEL[model], 1)


def is_resnet(model: str) -> bool:
    """Whether the model has ResNet's stem, which has a special form for 32 px images."""
    return BLOCK_OF_MODEL[model] in ("BasicBlock", "Bottleneck")


# Batch-norm needs micro-batches of at least two images: a batch of one has no variance.
WITH_BATCH_NORM = set(filter(is_resnet, MODELS))


def is_vit(model: str) -> bool:
    """Whether the model is a torchvision VisionTransformer, which needs the image size."""
    return BLOCK_OF_MODEL[model] == "EncoderBlock"


# Sizes of language models by their parameters; the vocabulary is GPT-2's 50,257 tokens, rounded up
# to a multiple of 128. The two small ones are GPT-2's, which ties its embedding to its output.
GptPreset = Literal["gpt_0b12", "gpt_0b35", "gpt_1b4", "gpt_3b9", "gpt_5b1", "gpt_8b5"]


def _gpt(layers: int, width: int, heads: int, *, tied: bool) -> dict[str, Any]:
    sizes = {"layers": layers, "width": width, "heads": heads, "tied": tied}
    return sizes | {"context": 1024, "vocabulary": 50_304}


GPT_PRESETS: dict[Any, dict[str, Any]] = {
    "gpt_0b12": _gpt(12, 768, 12, tied=True),
    "gpt_0b35": _gpt(24, 1024, 16, tied=True),
    "gpt_1b4": _gpt(24, 2048, 16, tied=False),
    "gpt_3b9": _gpt(32, 3072, 24, tied=False),
    "gpt_5b1": _gpt(36, 3328, 26, tied=False),
    "gpt_8b5": _gpt(40, 4096, 32, tied=False),
}
