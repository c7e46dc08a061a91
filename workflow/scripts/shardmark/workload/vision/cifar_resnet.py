"""ResNets for 32 px images, which torchvision does not have.

torchvision is not imported here, because its import would be half of a process's start-up time.
"""

from __future__ import annotations

from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2015, figure 5 left).

    Args:
        width: channels of the input.
        out_width: channels of the output.
        stride: stride of the first convolution.
    """

    def __init__(self, width: int, out_width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, out_width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out_width, out_width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or width != out_width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(width, out_width, 1, stride=stride, bias=False),
                nn.BatchNorm2d(out_width),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Shape (batch, width, side, side) to (batch, out_width, side / stride, side / stride)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        activated: Tensor = self.relu(out + self.shortcut(x))
        return activated


class CifarResNet(nn.Module):
    """ResNet of depth 6n + 2 for 32 px images (He et al. 2015, section 4.2).

    Where the shape changes, its shortcuts are 1x1 projections (the paper's option B; the paper's
    CIFAR networks use option A).

    Args:
        blocks: number of blocks per stage, the paper's n; there are three stages.
        classes: number of classes.
    """

    def __init__(self, blocks: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)
        )
        stages: list[nn.Module] = []
        width = 16
        for out_width, stride in ((16, 1), (32, 2), (64, 2)):
            for index in range(blocks):
                stages.append(BasicBlock(width, out_width, stride if index == 0 else 1))
                width = out_width
        self.blocks = nn.Sequential(*stages)
        self.fc = nn.Linear(width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits (batch, classes) of images (batch, 3, side, side)."""
        features = self.blocks(self.stem(images)).mean(dim=(2, 3))
        logits: Tensor = self.fc(features)
        return logits
