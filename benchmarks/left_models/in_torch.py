"""The first models of `in_jax` in PyTorch, and Torch-Pruning on them."""

import warnings
from typing import Any

import torch
import torch.nn.functional as F
import torch_pruning
from torch import nn

from left_models.in_jax import CLASSES, HEADS, HIDDEN, TOKENS, WIDTH


class ChannelNorm(nn.LayerNorm):
    """A layer norm over the channels of an image."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Stage(nn.Module):
    """A ConvNeXt block."""

    def __init__(self, width: int):
        super().__init__()
        self.depth = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.depth(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.fc2(F.gelu(self.fc1(y)))).permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """Two stages of one block each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm0, self.stage0 = nn.Conv2d(3, 32, 4, 4), ChannelNorm(32), Stage(32)
        self.norm1, self.down, self.stage1 = ChannelNorm(32), nn.Conv2d(32, 64, 2, 2), Stage(64)
        self.norm2, self.head = nn.LayerNorm(64), nn.Linear(64, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stage1(self.down(self.norm1(self.stage0(self.norm0(self.stem(x))))))
        return self.head(self.norm2(x.mean((2, 3))))


class Block(nn.Module):
    """A transformer block, norms before or after."""

    def __init__(self, *, first: bool):
        super().__init__()
        self.first = first
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        self.heads = HEADS

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        weights = torch.softmax(q @ k.transpose(-1, -2) / 4.0, -1)
        return self.o((weights @ v).transpose(1, 2).flatten(2))

    def mlp(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.first:
            x = x + self.attend(self.norm1(x))
            return x + self.mlp(self.norm2(x))
        x = self.norm1(x + self.attend(x))
        return self.norm2(x + self.mlp(x))


class Vit(nn.Module):
    """Patches, learned positions, two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.position = nn.Conv2d(3, WIDTH, 8, 8), nn.Parameter(torch.zeros(1, TOKENS, WIDTH))
        self.blocks = nn.Sequential(Block(first=True), Block(first=True))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.blocks(x)).mean(1))


class Bert(nn.Module):
    """Embedded tokens, learned positions, two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.position = nn.Linear(24, WIDTH), nn.Parameter(torch.zeros(1, TOKENS, WIDTH))
        self.blocks = nn.Sequential(Block(first=False), Block(first=False))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.embed(x) + self.position)[:, 0])


class MixerBlock(nn.Module):
    """Layers over tokens, then over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.token1, self.token2 = nn.Linear(TOKENS, 32), nn.Linear(32, TOKENS)
        self.fc1, self.fc2 = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.token2(F.gelu(self.token1(self.norm1(x).transpose(1, 2))))
        x = x + y.transpose(1, 2)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Mixer(nn.Module):
    """Patches, two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.blocks = nn.Conv2d(3, WIDTH, 8, 8), nn.Sequential(MixerBlock(), MixerBlock())
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.blocks(self.patch(x).flatten(2).transpose(1, 2))).mean(1))


class StandardisedConv(nn.Conv2d):
    """A convolution by a kernel with mean 0 and variance 1 for each output."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        w = w * torch.rsqrt(w.square().mean((1, 2, 3), keepdim=True) + 1e-10)
        return F.conv2d(x, w, None, self.stride, self.padding)


class Residual(nn.Module):
    """Norm and activation before each of two convolutions."""

    def __init__(self, kind: type[nn.Conv2d], inputs: int, outputs: int, stride: int):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, inputs), nn.GroupNorm(8, outputs)
        self.conv1 = kind(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = kind(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = kind(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm1(x))
        x = x if self.shortcut is None else self.shortcut(y)
        return x + self.conv2(F.relu(self.norm2(self.conv1(y))))


class GroupNormed(nn.Module):
    """Two residual blocks, the second twice as wide."""

    def __init__(self, kind: type[nn.Conv2d] = nn.Conv2d):
        super().__init__()
        self.stem = kind(3, 32, 3, 1, 1, bias=False)
        self.block0, self.block1 = Residual(kind, 32, 32, 1), Residual(kind, 32, 64, 2)
        self.norm, self.head = nn.GroupNorm(8, 64), nn.Linear(64, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.norm(self.block1(self.block0(self.stem(x))))).mean((2, 3)))


MODELS = {
    "convnext": (ConvNeXt, (2, 3, 32, 32)),
    "vit": (Vit, (2, 3, 32, 32)),
    "bert": (Bert, (2, TOKENS, 24)),
    "mixer": (Mixer, (2, 3, 32, 32)),
    "group_norm_resnet": (GroupNormed, (2, 3, 16, 16)),
    "big_transfer": (lambda: GroupNormed(StandardisedConv), (2, 3, 16, 16)),
}


def left(name: str) -> tuple[int, int]:
    """How many parameters a model has, and has after Torch-Pruning took half of all it can take; it must still run.

    Heads go as a whole, as in `left.halves`.
    """
    make, shape = MODELS[name]
    torch.manual_seed(0)
    model, example = make().eval(), torch.randn(shape)
    before = count(model)
    blocks = [m for m in model.modules() if isinstance(m, Block)]
    heads = {layer: b.heads for b in blocks for layer in (b.q, b.k, b.v)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = torch_pruning.pruner.BasePruner(
            model,
            example,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=0.5,
            # Told to keep tokens, which it takes for channels; without that it stops with an error.
            ignored_layers=[model.head, *(m.token2 for m in model.modules() if isinstance(m, MixerBlock))],
            num_heads=heads,
            prune_num_heads=bool(heads),
            prune_head_dims=not heads,
            head_pruning_ratio=0.5 if heads else 0.0,
            unwrapped_parameters=[(m.position, 2) for m in (model,) if hasattr(m, "position")],
        )
        pruner.step()
    for b in blocks:
        b.heads = pruner.num_heads[b.q]
    with torch.no_grad():
        assert model(example).shape == (2, CLASSES)
    return before, count(model)


def count(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())
