"""The networks: torchvision's, changed only where a fair comparison needs it.

torchvision is imported only in the functions that need it, because its import takes as long as
torch's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from shardmark.architectures import BLOCK_OF_MODEL, CIFAR_RESNETS, is_resnet, is_vit
from shardmark.config.schema import VisionWorkload
from shardmark.workload.keyed_random import Keyed, KeyedDropout, KeyedStochasticDepth
from shardmark.workload.vision.cifar_resnet import CifarResNet

CIFAR_STEM_UP_TO_PX = 64
# Large enough that the norm of a surrogate's first gradient is above 1, where frameworks clip. Not
# larger, because large logits round more coarsely and that noise makes the gate less sensitive.
# Measured with three seeds and 1, 2 and 4 replicas: norms of at least 1.5 and a noise floor of at
# most 8e-7 in the loss. torchvision's ViT would start from zero logits, and no gradient would reach
# its blocks.
_SURROGATE_LOGIT_SCALE = {"BasicBlock": 3.0, "Bottleneck": 3.0}


class Classifier(nn.Module):
    """A network and the random keys that its dropout draws from.

    The keys are an input beside the images: a strategy may split a batch over replicas, and each
    replica must draw the masks of its own samples.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.draws = any(_draws(module) for module in network.modules())

    def forward(self, images: Tensor, keys: Tensor) -> Tensor:
        """Compute logits (batch, classes) of images (batch, 3, side, side), keys int64 (batch,)."""
        # Walking the modules takes 1,500 Python calls in ResNet-50, 6 % of all in a step of ZeRO-1.
        # It can't be done once, because DataParallel makes new modules in each forward pass.
        if self.draws:
            for module in self.modules():
                if _draws(module):
                    module.keys = keys
        logits: Tensor = self.network(images)
        return logits


def _draws(module: nn.Module) -> bool:
    """Whether a module draws from keys; at a rate of 0, as in torchvision's ViT, it does not."""
    return isinstance(module, Keyed) and module.rate > 0


def build_model(workload: VisionWorkload, seed: int) -> Classifier:
    """Build the workload's network on the CPU in float32; weights depend only on ``seed``."""
    return _build(workload, seed, _network)


def build_surrogate(workload: VisionWorkload, seed: int) -> Classifier:
    """Build the parity gate's surrogate, a small network of the workload model's own blocks.

    It has SiLUs instead of ReLUs: at a ReLU's kink a rounding error switches a whole gradient on or
    off, so two correct programs diverge within a few steps. Its logits are large, so that the
    gradient's norm exceeds any threshold at which a framework might clip. No strategy knows of
    either change.
    """
    model = _build(workload, seed, _surrogate_network)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.SiLU())
    classes = _classifier(model, workload)[1]
    generator = torch.Generator().manual_seed(seed)
    scale = _SURROGATE_LOGIT_SCALE.get(BLOCK_OF_MODEL[workload.model.name], 1.0)
    std = scale / classes.in_features**0.5
    nn.init.normal_(classes.weight, std=std, generator=generator)
    return model


def surrogate_name(workload: VisionWorkload) -> str:
    """A description of the surrogate for the workload's model, in words."""
    block = BLOCK_OF_MODEL[workload.model.name]
    return f"{block} x {'2' if block != 'BasicBlock' else '3'}, narrow"


def shard_units(model: nn.Module, workload: VisionWorkload) -> list[nn.Module]:
    """The modules that a fully sharded strategy gathers one by one, in forward order."""
    block = BLOCK_OF_MODEL[workload.model.name]
    return [module for module in model.modules() if type(module).__name__ == block]


def _build(
    workload: VisionWorkload, seed: int, network: Callable[[VisionWorkload], nn.Module]
) -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = network(workload)
        _insert_hidden_layer(model, workload)
    _replace_dropout(model)
    if workload.batchnorm == "sync" and dist.is_initialized() and dist.get_world_size() > 1:
        model = _synchronise_batchnorm(model)
    return Classifier(model)


def _network(workload: VisionWorkload) -> nn.Module:
    name = workload.model.name
    if name in CIFAR_RESNETS:
        return CifarResNet(CIFAR_RESNETS[name], workload.classes)
    import torchvision

    size = workload.dataset.image_size
    extra = {"image_size": size} if is_vit(name) else {}
    model: nn.Module = torchvision.models.get_model(
        name, weights=None, num_classes=workload.classes, **extra
    )
    stem = workload.model.stem
    if is_resnet(name) and (stem == "cifar" or (stem == "auto" and size <= CIFAR_STEM_UP_TO_PX)):
        model.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
    return model


def _surrogate_network(workload: VisionWorkload) -> Any:
    classes = workload.classes
    block = BLOCK_OF_MODEL[workload.model.name]
    match block:
        case "BasicBlock":
            return CifarResNet(1, classes)
        case "Bottleneck":
            return _NarrowBottlenecks(classes)
    import torchvision

    match block:
        case "EncoderBlock":
            return torchvision.models.VisionTransformer(
                image_size=32,
                patch_size=8,
                num_layers=2,
                num_heads=2,
                hidden_dim=32,
                mlp_dim=64,
                num_classes=classes,
            )
        case "CNBlock":
            setting = torchvision.models.convnext.CNBlockConfig
            return torchvision.models.ConvNeXt(
                [setting(16, 32, 1), setting(32, None, 1)],
                stochastic_depth_prob=0.1,
                num_classes=classes,
            )
        case "SwinTransformerBlock":
            return torchvision.models.SwinTransformer(
                patch_size=[2, 2],
                embed_dim=16,
                depths=[1, 1],
                num_heads=[2, 2],
                window_size=[4, 4],
                stochastic_depth_prob=0.1,
                num_classes=classes,
                block=torchvision.models.swin_transformer.SwinTransformerBlock,
            )
        case _:
            raise NotImplementedError(f"no surrogate is made of {block}")


class _NarrowBottlenecks(nn.Module):
    """A narrow ResNet of two Bottlenecks for 32 px images."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        from torchvision.models.resnet import Bottleneck

        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)
        )
        shortcuts = [
            nn.Sequential(nn.Conv2d(16, 32, 1, bias=False), nn.BatchNorm2d(32)),
            nn.Sequential(nn.Conv2d(32, 64, 1, stride=2, bias=False), nn.BatchNorm2d(64)),
        ]
        self.blocks = nn.Sequential(
            Bottleneck(16, 8, 1, shortcuts[0]),
            Bottleneck(32, 16, 2, shortcuts[1]),
        )
        self.fc = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        features = self.blocks(self.stem(images)).mean(dim=(2, 3))
        logits: Tensor = self.fc(features)
        return logits


def _insert_hidden_layer(model: nn.Module, workload: VisionWorkload) -> None:
    """Insert the workload's hidden layer and dropout before the last linear layer."""
    hidden, rate = workload.model.hidden_units, workload.model.dropout
    if hidden is None and not rate:
        return
    name, classes = _classifier(model, workload)
    layers: list[nn.Module] = []
    features = classes.in_features
    if hidden is not None:
        layers += [nn.Linear(features, hidden), nn.ReLU()]
        features = hidden
        classes = nn.Linear(features, workload.classes)
    if rate:
        layers.append(nn.Dropout(rate))
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, nn.Sequential(*layers, classes))


def _classifier(model: nn.Module, workload: VisionWorkload) -> tuple[str, nn.Linear]:
    """The name of the linear layer that gives the logits, and the layer."""
    return next(
        (name, module)
        for name, module in reversed(list(model.named_modules()))
        if isinstance(module, nn.Linear) and module.out_features == workload.classes
    )


def _replace_dropout(model: nn.Module) -> None:
    """Replace dropout that draws from a rank's generator with dropout drawn per sample."""
    layer = 100  # lower purposes belong to the augmentation
    for name, module in list(model.named_modules()):
        # StochasticDepth is torchvision's; comparing its name avoids the import.
        if not isinstance(module, nn.Dropout) and type(module).__name__ != "StochasticDepth":
            continue
        layer += 1
        keyed: nn.Module
        if isinstance(module, nn.Dropout):
            keyed = KeyedDropout(module.p, layer)
        else:
            if module.mode != "row":
                raise NotImplementedError(
                    f"{name}: stochastic depth by batch has no per-sample form"
                )
            keyed = KeyedStochasticDepth(float(cast(Any, module.p)), layer)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, keyed)


def _synchronise_batchnorm(model: nn.Module) -> nn.Module:
    if dist.get_backend() == "nccl":
        return cast(nn.Module, cast(Any, nn.SyncBatchNorm).convert_sync_batchnorm(model))
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, GlooSyncBatchNorm2d(module))
    return model


class GlooSyncBatchNorm2d(nn.Module):
    """Batch-norm over the global batch for gloo, since ``nn.SyncBatchNorm`` rejects CPU tensors."""

    def __init__(self, local: nn.BatchNorm2d) -> None:
        super().__init__()
        self.eps = local.eps
        self.momentum = 0.1 if local.momentum is None else local.momentum
        self.weight, self.bias = local.weight, local.bias
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", local.running_mean)
        self.register_buffer("running_var", local.running_var)
        self.register_buffer("num_batches_tracked", local.num_batches_tracked)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (batch, channels, height, width); the shape stays the same."""
        if not self.training:
            return nn.functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        # Every replica has the same number of values, so the mean of means is the mean. A second
        # pass takes the variance around the global mean; E[x^2] - E[x]^2 would cancel more digits.
        world = dist.get_world_size()
        values = x.float()
        mean = _SumOverRanks.apply(values.mean(dim=(0, 2, 3))) / world
        centred = values - mean[:, None, None]
        var = _SumOverRanks.apply((centred * centred).mean(dim=(0, 2, 3))) / world
        with torch.no_grad():
            count = x.numel() // x.shape[1] * world
            unbiased = var * (count / (count - 1))
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(unbiased, self.momentum)
        scale = self.weight * torch.rsqrt(var + self.eps)
        out = centred * scale[:, None, None] + self.bias[:, None, None]
        normalised: Tensor = out.to(x.dtype)
        return normalised


class _SumOverRanks(torch.autograd.Function):
    """All-reduce whose gradient is the all-reduce of the gradients."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        total = x.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        return total
