"""What a module is given: where its initial weights come from, and what it is told about the pass it is in."""

import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from mvp_jax.core.types import Array, Key


class Noise:
    """Where a module's initial weights come from: slices of one long normal draw.

    A draw per layer would cost a compiled generator per layer, seconds for a small network. Made without a key it
    only counts, and gives zeros.
    """

    def __init__(self, key: Key | None = None, total: int = 0):
        self.used = 0
        self._values = None if key is None else jax.random.normal(key, (total,), jnp.float32)

    def __call__(self, shape: Sequence[int], deviation: float) -> Array:
        """Normal values of this shape, mean 0."""
        start, self.used = self.used, self.used + math.prod(shape)
        if self._values is None:
            return jnp.zeros(shape, jnp.float32)
        return jnp.reshape(deviation * self._values[start : self.used], shape)


class Hooks:
    """What a module is told about the pass it is in, and where it reports units: gates, taps, dropout keys.

    A module calls `unit` where a group's units are complete. It lives for one trace and holds no state beyond it.
    """

    def __init__(
        self,
        *,
        train: bool = False,
        key: Key | None = None,
        gates: Mapping[str, Array] | None = None,
        momentum: float | None = None,
        dropout: Array | float | None = None,
        tapping: bool = False,
    ):
        self.train = train
        self.momentum = momentum
        self._key = key
        self._drawn = 0
        self._gates = gates or {}
        self._dropout = dropout
        self._taps: dict[str, list[Array]] | None = {} if tapping else None

    def gate(self, name: str, x: Array, axis: int = -1) -> Array:
        """`x` times the group's gate, whose units lie along `axis`; without a gate `x` itself."""
        if name not in self._gates:
            return x
        g = self._gates[name]
        shape = [1] * x.ndim
        shape[axis] = g.shape[-1]
        if g.ndim == 2:
            shape[0] = g.shape[0]
        return x * jnp.reshape(g, shape).astype(x.dtype)

    def tap(self, name: str, x: Array, axis: int = -1, *, where: Array | None = None) -> None:
        """Notes each unit's mean magnitude over the positions `where`, bool `[N, T]`; several taps are averaged."""
        if self._taps is not None:
            size = jnp.abs(x).astype(jnp.promote_types(x.dtype, jnp.float32))
            if where is not None:
                # The mean over some, as the mean over all of something larger; 0, not nan, where there are none.
                share = jnp.maximum(jnp.mean(where, axis=1, keepdims=True), 1 / where.shape[1])
                size = size * jnp.reshape(where / share, (*where.shape, *(1 for _ in x.shape[2:])))
            positions = tuple(a for a in range(1, x.ndim) if a != axis % x.ndim)
            self._taps.setdefault(name, []).append(jnp.mean(size, axis=positions))

    def unit(self, name: str, x: Array, axis: int = -1, *, where: Array | None = None) -> Array:
        """Reports a group's units: multiplies them by their gate, notes their magnitudes, and returns them."""
        x = self.gate(name, x, axis)
        self.tap(name, x, axis, where=where)
        return x

    def dropout(self, x: Array, rate: float) -> Array:
        """Inverted dropout in training; the `dropout` knob overrides the configured rate and may be traced."""
        p = rate if self._dropout is None else self._dropout
        if not self.train or self._key is None or (isinstance(p, float) and p == 0.0):
            return x
        self._drawn += 1
        keep = jax.random.uniform(jax.random.fold_in(self._key, self._drawn), x.shape) >= p
        return jnp.where(keep, x / (1.0 - jnp.asarray(p, x.dtype)), 0.0)

    def activations(self) -> dict[str, Array]:
        """The magnitudes that were noted in this pass, `{group: [N, C]}`."""
        return {name: sum(taps[1:], taps[0]) / len(taps) for name, taps in (self._taps or {}).items()}
