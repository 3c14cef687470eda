"""Residual networks: the CIFAR family (He et al., 2015, arXiv:1512.03385, section 4.2), a variant of it with
projections and a spatial head, and the ImageNet networks ResNet-18 to 152 as torchvision defines them.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from mvp_jax.core.types import Array
from mvp_jax.core.units import Group
from mvp_jax.models import api, layers
from mvp_jax.models.hooks import Hooks, Noise


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """Every width of a residual network, one by one, so that a pruned network is another instance.

    Attributes:
        stem_width: the number of channels after the stem.
        stage_widths: the number of channels of each stage's residual stream.
        inner_widths: `[stage][block]`, the filters inside a block: one number for two 3×3 convolutions, two for the
            1×1, 3×3, 1×1 bottleneck.
        strides: the stride of each stage's first block.
        downsample_in_bottleneck: a bottleneck's stride is in its first 1×1 convolution, as first published, and not
            in its 3×3.
        projections: whether each stage's first block has a 1×1 convolution and norm as shortcut. Without one the
            stage continues the stream before it, or pads it with zero channels (option A).
        pad: option A: strided subsampling, and zero channels on both sides where the width grows. Such streams
            cannot be pruned, since their channels change index from stage to stage.
        relu: whether a ReLU follows each `block` or only each `stage`.
        stem: `small` is 3×3; `large` is 7×7 with stride 2, then max pooling.
        pool: the last feature map is averaged down to `pool × pool` cells, which the head sees one by one.
        image_size: the height and width of images in pixels.
        channels: the number of channels of an image.
        classes: the number of classes.
        dropout: the dropout rate before the head.
        conv: `native`, or `im2col` where XLA's convolutions are slow (`lax.map` and `vmap` over members on CPU).
    """

    stem_width: int
    stage_widths: tuple[int, ...]
    inner_widths: tuple[tuple[tuple[int, ...], ...], ...]
    strides: tuple[int, ...]
    projections: tuple[bool, ...]
    pad: bool = False
    relu: Literal["block", "stage"] = "block"
    stem: Literal["small", "large"] = "small"
    pool: int = 1
    image_size: int = 32
    channels: int = 3
    classes: int = 10
    dropout: float = 0.0
    conv: layers.Convolution = "native"
    downsample_in_bottleneck: bool = False

    def __post_init__(self) -> None:
        stages = len(self.stage_widths)
        if not stages or {len(self.inner_widths), len(self.strides), len(self.projections)} != {stages}:
            raise ValueError(
                f"{stages} stage widths, {len(self.inner_widths)} stages of blocks, {len(self.strides)} strides, "
                f"{len(self.projections)} projections; give one of each per stage, at least one"
            )
        inner = [w for stage in self.inner_widths for block in stage for w in block]
        if min([self.stem_width, *self.stage_widths, *inner, self.classes, self.channels]) < 1:
            raise ValueError(f"widths, channels and classes must be at least 1, got {self}")
        if any(len(block) not in (1, 2) for stage in self.inner_widths for block in stage) or not all(
            self.inner_widths
        ):
            raise ValueError(f"each stage needs blocks of one or two inner widths, got {self.inner_widths}")
        before = (self.stem_width, *self.stage_widths)
        for s, (a, b) in enumerate(zip(before, self.stage_widths, strict=False)):
            if self.projections[s]:
                continue
            if not self.pad and (a != b or self.strides[s] != 1):
                raise ValueError(
                    f"stage {s} goes from {a} to {b} channels with stride {self.strides[s]}; project or pad"
                )
            if self.pad and a > b:
                raise ValueError(f"stage {s} goes from {a} to {b} channels; padding can only add channels")
        if self.pad and any(self.projections):
            raise ValueError("shortcuts either pad or project; padded streams cannot be cut, so do not mix them")
        if self.relu not in ("block", "stage") or self.stem not in ("small", "large"):
            raise ValueError(f"relu={self.relu!r}, stem={self.stem!r}; allowed are block|stage and small|large")
        if self.conv not in ("native", "im2col"):
            raise ValueError(f"unknown conv={self.conv!r}; choose native or im2col")
        if self.last_map % self.pool:
            raise ValueError(
                f"the last feature map is {self.last_map} pixels wide and cannot be averaged to {self.pool} cells; "
                "choose a pool that divides it or another image size"
            )

    @property
    def last_map(self) -> int:
        """Width in pixels of the last feature map."""
        size = self.image_size
        for stride in ((2, 2) if self.stem == "large" else ()) + self.strides:
            size = -(-size // stride)
        return size

    def streams(self) -> list[str | None]:
        """The group that the stem's output and each stage's residual stream belong to; `None` if it cannot be cut."""
        if self.pad:
            return [None] * (1 + len(self.stage_widths))
        names = ["stages/0" if not self.projections[0] else "stem/conv"]
        for s, projected in enumerate(self.projections):
            names.append(f"stages/{s}" if projected else names[-1])
        return list(names)


class Block(nnx.Module):
    """A basic or bottleneck block, told its own path so that it can name its units."""

    def __init__(
        self,
        path: str,
        features_in: int,
        inner: tuple[int, ...],
        features: int,
        *,
        stride: int,
        projection: bool,
        pad: bool,
        early: bool,
        how: layers.Convolution,
        noise: Noise,
    ):
        self.path = path
        sizes, strides = (
            ((3, 3), (stride, 1)) if len(inner) == 1 else ((1, 3, 1), (stride, 1, 1) if early else (1, stride, 1))
        )
        widths = (features_in, *inner, features)
        self.convs = len(sizes)
        for j, (size, s) in enumerate(zip(sizes, strides, strict=True)):
            setattr(self, f"conv{j + 1}", layers.Conv(widths[j], widths[j + 1], size, stride=s, how=how, noise=noise))
            setattr(self, f"norm{j + 1}", layers.BatchNorm(widths[j + 1]))
        self.projected = projection
        self.stride = stride
        self.padding = features - features_in if pad else 0
        if projection:
            self.shortcut = Shortcut(features_in, features, stride, how, noise=noise)

    def __call__(self, x: Array, hooks: Hooks, stream: str | None) -> Array:
        y = x
        for j in range(1, self.convs):
            y = jax.nn.relu(getattr(self, f"norm{j}")(getattr(self, f"conv{j}")(y), hooks))
            y = hooks.unit(f"{self.path}/conv{j}", y)
        y = getattr(self, f"norm{self.convs}")(getattr(self, f"conv{self.convs}")(y), hooks)
        if self.projected:
            x = self.shortcut(x, hooks)
        elif self.padding or self.stride > 1:
            low = self.padding // 2
            x = x[:, :: self.stride, :: self.stride]
            x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (low, self.padding - low)))
        if stream is None:
            return y + x
        # Every producer of the stream is gated once, so that a gate acts on a channel linearly, however many
        # blocks the channel passes.
        return hooks.gate(stream, y) + (hooks.gate(stream, x) if self.projected else x)


class Shortcut(nnx.Module):
    """A strided 1×1 convolution with its norm."""

    def __init__(self, features_in: int, features: int, stride: int, how: layers.Convolution, *, noise: Noise):
        self.conv = layers.Conv(features_in, features, 1, stride=stride, how=how, noise=noise)
        self.norm = layers.BatchNorm(features)

    def __call__(self, x: Array, hooks: Hooks) -> Array:
        return self.norm(self.conv(x), hooks)


class Stem(nnx.Module):
    """The first convolution, its norm and, if large, max pooling."""

    def __init__(self, config: ResNetConfig, *, noise: Noise):
        self.large = config.stem == "large"
        size, stride = (7, 2) if self.large else (3, 1)
        self.conv = layers.Conv(config.channels, config.stem_width, size, stride=stride, how=config.conv, noise=noise)
        self.norm = layers.BatchNorm(config.stem_width)

    def __call__(self, x: Array, hooks: Hooks, stream: str | None) -> Array:
        x = jax.nn.relu(self.norm(self.conv(x), hooks))
        if stream is not None:
            x = hooks.unit(stream, x)
        return layers.max_pool(x) if self.large else x


class Stage(nnx.Module):
    """The blocks at one resolution."""

    def __init__(self, config: ResNetConfig, s: int, *, noise: Noise):
        before = (config.stem_width, *config.stage_widths)[s]
        blocks = []
        for b, inner in enumerate(config.inner_widths[s]):
            first = b == 0
            blocks.append(
                Block(
                    f"stages/{s}/blocks/{b}",
                    before if first else config.stage_widths[s],
                    inner,
                    config.stage_widths[s],
                    stride=config.strides[s] if first else 1,
                    projection=first and config.projections[s],
                    pad=config.pad,
                    early=config.downsample_in_bottleneck,
                    how=config.conv,
                    noise=noise,
                )
            )
        self.blocks = layers.children(blocks)
        self.relu = config.relu

    def __call__(self, x: Array, hooks: Hooks, stream: str | None) -> Array:
        blocks = layers.ordered(self.blocks)
        for b, block in enumerate(blocks):
            x = block(x, hooks, stream)
            if self.relu == "block" or b == len(blocks) - 1:
                x = jax.nn.relu(x)
            if stream is not None:
                hooks.tap(stream, x)
        return x


class ResNet(nnx.Module):
    """Stem, stages, average pooling, head."""

    def __init__(self, config: ResNetConfig, *, noise: Noise):
        self.config = config
        self.stem = Stem(config, noise=noise)
        self.stages = layers.children([Stage(config, s, noise=noise) for s in range(len(config.stage_widths))])
        width = config.stage_widths[-1]
        shape = (width,) if config.pool == 1 else (config.pool, config.pool, width)
        self.head = layers.Head(shape, config.classes, noise=noise)

    def __call__(self, x: Array, hooks: Hooks) -> tuple[Array, Array]:
        streams = self.config.streams()
        x = self.stem(x, hooks, streams[0])
        for stage, stream in zip(layers.ordered(self.stages), streams[1:], strict=True):
            x = stage(x, hooks, stream)
        x = layers.average_to(x, self.config.pool)
        return self.head(hooks.dropout(x, self.config.dropout))


def _sizes(config: ResNetConfig) -> dict[str, int]:
    """How many units each group has, in order of depth."""
    streams = config.streams()
    sizes = {"stem/conv": config.stem_width} if streams[0] == "stem/conv" else {}
    for s, stage in enumerate(config.inner_widths):
        if f"stages/{s}" in streams:
            sizes[f"stages/{s}"] = config.stage_widths[s]
        sizes |= {
            f"stages/{s}/blocks/{b}/conv{j}": width
            for b, block in enumerate(stage)
            for j, width in enumerate(block, start=1)
        }
    return sizes


@functools.cache
def _traced(config: ResNetConfig) -> Mapping[str, Group]:
    """What goes with each group's units. A stream is known by the last convolution of its first block."""
    made = {
        name: f"{name}/blocks/0/conv{len(config.inner_widths[int(name[7:])][0]) + 1}" if name.count("/") == 1 else name
        for name in _sizes(config)
        if name != "stem/conv"
    } | ({"stem/conv": "stem/conv"} if "stem/conv" in _sizes(config) else {})
    return api.coupled(
        lambda noise: ResNet(config, noise=noise),
        (config.image_size, config.image_size, config.channels),
        {name: (f"{conv}/kernel", 3) for name, conv in made.items()},
    )


def _groups(config: ResNetConfig) -> tuple[Group, ...]:
    """Widths do not matter for what is coupled, so that all networks of one build share a trace."""
    twos = tuple(tuple((2,) * len(block) for block in stage) for stage in config.inner_widths)
    small = dataclasses.replace(config, inner_widths=twos, classes=2, dropout=0.0, conv="native")
    if not config.pad:
        small = dataclasses.replace(small, stem_width=2, stage_widths=(2,) * len(config.stage_widths))
    return api.sized(_traced(small), _sizes(config))


def _resized(config: ResNetConfig, sizes: Mapping[str, int]) -> ResNetConfig:
    streams = config.streams()
    old = (config.stem_width, *config.stage_widths)
    new = [int(sizes.get(name, w)) if name is not None else w for name, w in zip(streams, old, strict=True)]
    inner = tuple(
        tuple(
            tuple(int(sizes.get(f"stages/{s}/blocks/{b}/conv{j}", w)) for j, w in enumerate(block, start=1))
            for b, block in enumerate(stage)
        )
        for s, stage in enumerate(config.inner_widths)
    )
    return dataclasses.replace(config, stem_width=new[0], stage_widths=tuple(new[1:]), inner_widths=inner)


@functools.cache
def build(config: ResNetConfig) -> api.Model:
    """The model of a configuration; equal configurations give the same object.

    Groups are named by the layer that makes the units (`stages/0/blocks/1/conv1`), residual streams by their first
    stage (`stages/1`), a stem with a stream of its own `stem/conv`.

    >>> model = build(resnet8(width=4, image_size=8))
    >>> [g.name for g in model.groups]
    ['stages/0/blocks/0/conv1', 'stages/1/blocks/0/conv1', 'stages/2/blocks/0/conv1']
    >>> model.resize({"stages/1/blocks/0/conv1": 3}).config.inner_widths
    (((4,),), ((3,),), ((16,),))
    """
    groups = _groups(config)

    def resize(sizes: Mapping[str, int]) -> api.Model:
        api.check_sizes(sizes, groups)
        return build(_resized(config, sizes))

    return api.from_module(
        lambda noise: ResNet(config, noise=noise),
        config=config,
        groups=groups,
        prunable=(r"(stem|stages)/.*/kernel",),
        resize=resize,
        with_classes=lambda n: build(dataclasses.replace(config, classes=n)),
        input_shape=(config.image_size, config.image_size, config.channels),
        num_classes=config.classes,
        dropout=config.dropout,
    )


def cifar(depth: int, *, width: int = 16, **options: object) -> ResNetConfig:
    """The CIFAR family of depth `6n + 2`: three stages of `n` blocks, `width` to `4·width` channels, option A."""
    return ResNetConfig(stem_width=width, projections=(False,) * 3, pad=True, **_three(depth, width), **options)  # type: ignore[arg-type]


def distiller(depth: int, *, width: int = 16, **options: object) -> ResNetConfig:
    """A variant with a stem of `4·width` channels, projections in every stage, no ReLU between the blocks of a stage
    and a head over 2×2 cells (`ResNetSmall` of github.com/karanchahal/distiller).
    """
    return ResNetConfig(
        **{"stem_width": 4 * width, "projections": (True,) * 3, "relu": "stage", "pool": 2, "classes": 100}  # type: ignore[arg-type]
        | _three(depth, width)
        | options
    )


def _three(depth: int, width: int) -> dict[str, object]:
    n, odd = divmod(depth - 2, 6)
    if n < 1 or odd:
        raise ValueError(f"depth {depth} is not 6n + 2; choose 8, 14, 20, 32, 44, 56, ...")
    widths = (width, 2 * width, 4 * width)
    return {"stage_widths": widths, "strides": (1, 2, 2), "inner_widths": tuple(((w,),) * n for w in widths)}


def imagenet(depth: Literal[18, 34, 50, 101, 152], *, width: int = 64, **options: object) -> ResNetConfig:
    """ResNet-18, 34, 50, 101 or 152; `stem="small"` fits them to small images."""
    blocks = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
    if depth not in blocks:
        raise ValueError(f"no ResNet-{depth} here; there are {sorted(blocks)}")
    widths = tuple(width * 2**s for s in range(4))
    wide = depth >= 50
    given = {
        "stem_width": width,
        "stage_widths": tuple(4 * w for w in widths) if wide else widths,
        "inner_widths": tuple((((w, w) if wide else (w,)),) * n for w, n in zip(widths, blocks[depth], strict=True)),
        "strides": (1, 2, 2, 2),
        "projections": (wide, True, True, True),
        "stem": "large",
        "image_size": 224,
        "classes": 1000,
    }
    return ResNetConfig(**(given | options))  # type: ignore[arg-type]


PRESETS: dict[str, Callable[..., ResNetConfig]] = {
    **{f"resnet{n}": functools.partial(cifar, n) for n in (8, 20, 32, 56)},
    **{f"resnet{n}_distiller": functools.partial(distiller, n) for n in (8, 20, 32)},
    **{f"resnet{n}": functools.partial(imagenet, n) for n in (18, 34, 50, 101, 152)},
}
"""Configurations by name; each takes `width`, `image_size`, `channels`, `classes` and any other field."""

resnet8, resnet20, resnet32, resnet56 = (PRESETS[f"resnet{n}"] for n in (8, 20, 32, 56))
resnet8_distiller, resnet20_distiller, resnet32_distiller = (PRESETS[f"resnet{n}_distiller"] for n in (8, 20, 32))
resnet18, resnet34, resnet50, resnet101, resnet152 = (PRESETS[f"resnet{n}"] for n in (18, 34, 50, 101, 152))
