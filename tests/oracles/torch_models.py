"""The same architectures written in PyTorch, with the key names of the published checkpoints."""

import torch
from torch import nn
from torch.nn import functional as F


class PadShortcut(nn.Module):
    """Option A: strided subsampling, zero channels on both sides."""

    def __init__(self, extra, stride):
        super().__init__()
        self.extra, self.stride = extra, stride

    def forward(self, x):
        low = self.extra // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, low, self.extra - low))


class BasicBlock(nn.Module):
    def __init__(self, cin, inner, cout, stride, kind, last_relu, shortcut="shortcut"):
        super().__init__()
        self.conv1 = nn.Conv2d(cin, inner, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, cout, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.last_relu = last_relu
        self.short = shortcut
        setattr(self, shortcut, side(cin, cout, stride, kind))

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        y = y + getattr(self, self.short)(x)
        return F.relu(y) if self.last_relu else y


class Bottleneck(nn.Module):
    def __init__(self, cin, inner, cout, stride, kind):
        super().__init__()
        a, b = inner
        self.conv1, self.bn1 = nn.Conv2d(cin, a, 1, bias=False), nn.BatchNorm2d(a)
        self.conv2, self.bn2 = nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b)
        self.conv3, self.bn3 = nn.Conv2d(b, cout, 1, bias=False), nn.BatchNorm2d(cout)
        self.downsample = side(cin, cout, stride, kind)

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


def side(cin, cout, stride, kind):
    if kind == "project":
        return nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))
    if kind == "pad" and (stride != 1 or cin != cout):
        return PadShortcut(cout - cin, stride)
    return nn.Sequential()


class CifarResNet(nn.Module):
    """akamaster's option A if `variant` is "pad", karanchahal's network if "distiller"."""

    def __init__(self, variant, n, width, channels, classes):
        super().__init__()
        self.variant = variant
        c = 4 * width if variant == "distiller" else width
        self.conv1, self.bn1 = nn.Conv2d(channels, c, 3, 1, 1, bias=False), nn.BatchNorm2d(c)
        for s in range(3):
            blocks, cout = [], width * 2**s
            for b in range(n):
                kind = "pad" if variant == "pad" else "project" if b == 0 else "none"
                stride = 2 if s > 0 and b == 0 else 1
                blocks.append(BasicBlock(c, cout, cout, stride, kind, variant == "pad"))
                c = cout
            setattr(self, f"layer{s + 1}", nn.Sequential(*blocks))
        self.linear = nn.Linear(c * (4 if variant == "distiller" else 1), classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        for layer in (self.layer1, self.layer2, self.layer3):
            x = layer(x)
            if self.variant == "distiller":
                x = F.relu(x)
        cell = x.shape[-1] // (2 if self.variant == "distiller" else 1)
        return self.linear(F.avg_pool2d(x, cell).flatten(1))


class ImageNetResNet(nn.Module):
    """torchvision's names and order of operations, any widths; the fields of a `ResNetConfig` say which."""

    def __init__(self, config):
        super().__init__()
        c = config.stem_width
        self.conv1, self.bn1 = nn.Conv2d(config.channels, c, 7, 2, 3, bias=False), nn.BatchNorm2d(c)
        self.layers = []
        for s, stage in enumerate(config.inner_widths):
            blocks, cout = [], config.stage_widths[s]
            for b, inner in enumerate(stage):
                kind = "project" if b == 0 and config.projections[s] else "none"
                stride = config.strides[s] if b == 0 else 1
                if len(inner) == 1:
                    blocks.append(BasicBlock(c, inner[0], cout, stride, kind, True, "downsample"))
                else:
                    blocks.append(Bottleneck(c, inner, cout, stride, kind))
                c = cout
            setattr(self, f"layer{s + 1}", nn.Sequential(*blocks))
            self.layers.append(f"layer{s + 1}")
        self.fc = nn.Linear(c, config.classes)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for name in self.layers:
            x = getattr(self, name)(x)
        return self.fc(x.mean((2, 3)))


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x):
        n, t, d = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, d))


class MLP(nn.Module):
    def __init__(self, dim, width):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, width), nn.Linear(width, dim)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class TransformerBlock(nn.Module):
    def __init__(self, dim, heads, width):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn, self.mlp = Attention(dim, heads), MLP(dim, width)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """timm's names."""

    def __init__(self, config):
        super().__init__()
        d = config.dim
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(config.channels, d, config.patch, config.patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, d))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.tokens, d))
        self.blocks = nn.Sequential(*[TransformerBlock(d, h, m) for h, m in zip(config.heads, config.mlp, strict=True)])
        self.norm, self.head = nn.LayerNorm(d, eps=1e-6), nn.Linear(d, config.classes)

    def forward(self, x):
        x = self.patch_embed.proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


def twin(config):
    """The PyTorch model of a configuration of `mvp_jax.models`."""
    if hasattr(config, "heads"):
        return ViT(config)
    if config.stem == "large":
        return ImageNetResNet(config)
    width, n = config.stage_widths[0], len(config.inner_widths[0])
    return CifarResNet("pad" if config.pad else "distiller", n, width, config.channels, config.classes)


def randomise(module, seed):
    """Values as a trained network might have them, none of them an initial one; batch statistics too."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, t in module.state_dict().items():
            if name.endswith("num_batches_tracked"):
                continue
            if name.endswith("running_var") or (t.ndim == 1 and name.endswith("weight")):
                t.uniform_(0.5, 1.5)
            elif t.ndim > 1 and name.endswith("weight"):
                t.normal_(0.0, (2.0 / t[0].numel()) ** 0.5)
            else:
                t.normal_(0.0, 0.3)
    return module
