"""The user's own training, whose small network does what language models do with their parameters.

Each option changes one thing, once inside a block and once outside of all blocks, because sharded
strategies treat the two differently.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from shardmark.workload.contract import Inputs
from shardmark.workload.own import Training

VOCABULARY, WIDTH, LENGTH = 64, 32, 16


class Block(nn.Module):
    """A feed-forward block, with a layer that it calls only if nothing is unused."""

    def __init__(self, *, unused: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)
        self.spare = nn.Linear(WIDTH, WIDTH)
        self.unused = unused

    def forward(self, x: Tensor) -> Tensor:
        """Shape (batch, tokens, width) to the same shape."""
        x = x + self.down(functional.gelu(self.up(self.norm(x))))
        return x if self.unused else x + self.spare(x)


class Network(nn.Module):
    """Embedding, three blocks and an output layer.

    Args:
        tied: the embedding is the output layer's weight, and two blocks share a matrix.
        reused: the first block and the last norm are called twice in a forward pass.
        unused: a layer of each block, and one outside of the blocks, is never called.
        frozen: the embedding, the second block, and each block's norm are not trained.
    """

    def __init__(self, *, tied: bool, reused: bool, unused: bool, frozen: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList([Block(unused=unused) for _ in range(3)])
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.spare = nn.Linear(WIDTH, WIDTH)
        self.reused, self.unused = reused, unused
        if tied:
            self.head.weight = self.embedding.weight
        if frozen:
            for part in (self.embedding, self.blocks[1], *(block.norm for block in self.blocks)):
                part.requires_grad_(False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (batch, tokens, vocabulary) of int64 tokens (batch, tokens)."""
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        if self.reused:
            x = self.blocks[0](self.norm(x))
        if not self.unused:
            x = self.spare(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


class OddUses(Training):
    """Predicts each next token of a generated sequence."""

    def build_model(self, seed: int) -> nn.Module:
        """The network with the uses that the options name."""
        torch.manual_seed(seed)
        names = ("tied", "reused", "unused", "frozen")
        model = Network(**{name: name in self.options["uses"] for name in names})
        with torch.no_grad():
            model.head.weight.mul_(3.0)
        return model

    def shard_units(self, model: nn.Module) -> list[nn.Module]:
        """Its blocks."""
        assert isinstance(model, Network)
        return list(model.blocks)

    def load(self, *, train: bool) -> Tensor:
        """Sequences that count in steps of their own, int64 (samples, length + 1)."""
        generator = torch.Generator().manual_seed(0)
        samples = self.definition.dataset.samples
        first = torch.randint(VOCABULARY, (samples, 1), generator=generator)
        step = torch.randint(1, 4, (samples, 1), generator=generator)
        return (first + step * torch.arange(LENGTH + 1)) % VOCABULARY

    def loss(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """The sum of the cross-entropies of each next token."""
        (tokens,) = inputs
        logits = model(tokens[:, :-1]).flatten(0, 1).float()
        return functional.cross_entropy(logits, tokens[:, 1:].flatten(), reduction="sum")
