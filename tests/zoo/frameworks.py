"""Models written with Flax Linen, Flax NNX and Equinox."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx

from mvp_jax.core.types import Variables
from tests.zoo.cases import Builders, Case, draw, normal, unit, why

IMAGE = (2, 8, 8, 3)
STATISTICS = "scale,bias,mean,var:0"


def _random(tree: Any) -> Any:
    """Fresh arrays are zeros and ones in part; these are not."""
    return draw(jax.tree.map(jnp.shape, tree))


class _LinenConvNet(linen.Module):
    @linen.compact
    def __call__(self, x):
        for features, stride in ((6, 1), (8, 2)):
            x = linen.Conv(features, (3, 3), strides=stride)(x)
            x = linen.relu(linen.BatchNorm(use_running_average=True)(x))
        return linen.Dense(5)(x.mean((1, 2)))


def linen_conv() -> Case:
    """Convolutions and batch norms; statistics are a collection of their own."""
    model, x = _LinenConvNet(), normal(*IMAGE)
    return Case(
        apply=model.apply,
        variables=_random(model.init(jax.random.key(0), x)),
        inputs=(x,),
        truth=(
            unit(6, f"Conv_0/kernel:3 Conv_0/bias:0 BatchNorm_0/{STATISTICS} Conv_1/kernel:2", name="Conv_0"),
            unit(8, f"Conv_1/kernel:3 Conv_1/bias:0 BatchNorm_1/{STATISTICS} Dense_0/kernel:0", name="Conv_1"),
        ),
        frozen=why("Conv_0/kernel:2", "input") | why("Dense_0/kernel:1", "output"),
    )


class _LinenAttention(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.Dense(10)(x)
        y = linen.LayerNorm()(x)
        x = x + linen.MultiHeadDotProductAttention(num_heads=3, qkv_features=12, name="attention")(y)
        return linen.Dense(5)(linen.LayerNorm()(x))


def linen_attention() -> Case:
    """The library's own attention and layer norm."""
    model, x = _LinenAttention(), normal(2, 5, 3)
    return Case(
        apply=model.apply,
        variables=_random(model.init(jax.random.key(0), x)),
        inputs=(x,),
        truth=(
            unit(
                10,
                "Dense_0/kernel:1 Dense_0/bias:0 LayerNorm_0,LayerNorm_1/scale,bias:0 "
                "attention/query,key,value/kernel:0 attention/out/kernel:2 attention/out/bias:0 Dense_1/kernel:0",
                kind="stage",
            ),
            unit(
                3,
                "attention/query,key,value/kernel:1 attention/query,key,value/bias:0 attention/out/kernel:0",
                kind="head",
            ),
            unit(4, "attention/query,key/kernel:2 attention/query,key/bias:1", kind="qk"),
            unit(4, "attention/value/kernel:2 attention/value/bias:1 attention/out/kernel:1", kind="value"),
        ),
    )


class _NnxNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(3, 6, (3, 3), rngs=rngs)
        self.norm1 = nnx.BatchNorm(6, use_running_average=True, rngs=rngs)
        self.conv2 = nnx.Conv(6, 8, (3, 3), strides=2, use_bias=False, rngs=rngs)
        self.norm2 = nnx.BatchNorm(8, use_running_average=True, rngs=rngs)
        self.hidden = nnx.Linear(8, 7, rngs=rngs)
        self.norm3 = nnx.LayerNorm(7, rngs=rngs)
        self.head = nnx.Linear(7, 5, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm1(self.conv1(x)))
        x = nnx.relu(self.norm2(self.conv2(x)))
        return self.head(self.norm3(nnx.relu(self.hidden(x.mean((1, 2))))))


def nnx_conv() -> Case:
    """A module split into a graph and plain dicts."""
    graph, params, rest = nnx.split(_NnxNet(nnx.Rngs(0)), nnx.Param, ...)

    def apply(variables, x):
        return nnx.merge(graph, variables.params, variables.rest)(x)

    return Case(
        apply=apply,
        variables=Variables(_random(nnx.to_pure_dict(params)), _random(nnx.to_pure_dict(rest))),
        inputs=(normal(*IMAGE),),
        truth=(
            unit(6, f"conv1/kernel:3 conv1/bias:0 norm1/{STATISTICS} conv2/kernel:2", kind="filter", name="conv1"),
            unit(8, f"conv2/kernel:3 norm2/{STATISTICS} hidden/kernel:0", kind="filter", name="conv2"),
            unit(7, "hidden/kernel:1 hidden/bias:0 norm3/scale,bias:0 head/kernel:0", name="hidden"),
        ),
    )


def equinox_conv() -> Case:
    """A module is a pytree of arrays; channels come first. Its layer norm takes the variance in two passes."""
    import equinox as eqx

    class Net(eqx.Module):
        conv1: eqx.nn.Conv2d
        conv2: eqx.nn.Conv2d
        fc1: eqx.nn.Linear
        norm: eqx.nn.LayerNorm
        fc2: eqx.nn.Linear
        fc3: eqx.nn.Linear

        def __call__(self, x):
            x = jax.nn.relu(self.conv2(jax.nn.relu(self.conv1(x))))
            x = jax.nn.relu(self.fc1(x.reshape(-1)))
            return self.fc3(jax.nn.relu(self.fc2(self.norm(x))))

    keys = jax.random.split(jax.random.key(0), 5)
    net = Net(
        conv1=eqx.nn.Conv2d(3, 6, 3, stride=2, padding=1, key=keys[0]),
        conv2=eqx.nn.Conv2d(6, 8, 3, stride=2, padding=1, key=keys[1]),
        fc1=eqx.nn.Linear(32, 10, key=keys[2]),
        norm=eqx.nn.LayerNorm(10),
        fc2=eqx.nn.Linear(10, 7, key=keys[3]),
        fc3=eqx.nn.Linear(7, 5, key=keys[4]),
    )
    arrays, static = eqx.partition(net, eqx.is_inexact_array)

    def apply(arrays, x):
        return jax.vmap(eqx.combine(arrays, static))(x)

    return Case(
        apply=apply,
        variables=_random(arrays),
        inputs=(normal(2, 3, 8, 8),),
        truth=(
            unit(6, "conv1/weight:0 conv1/bias:0 conv2/weight:1", kind="filter", name="conv1"),
            unit(8, "conv2/weight:0 conv2/bias:0 fc1/weight:1", kind="filter", name="conv2"),
            unit(10, "fc1/weight:0 fc1,norm/bias:0 norm/weight:0 fc2/weight:1", kind="neuron", name="fc1"),
            unit(7, "fc2/weight:0 fc2/bias:0 fc3/weight:1", kind="neuron", name="fc2"),
        ),
        frozen=why("fc3/weight:0 fc3/bias:0", "output"),
    )


CASES: Builders = {f.__name__: f for f in (linen_conv, linen_attention, nnx_conv, equinox_conv)}
