"""A universal sub-network: Reptile over the source tasks, with iterative hard thresholding.

One pruned initialisation for all tasks, learned from the bank's tasks and blind to the target: the control that asks
whether similarity matters.

Sources: Nichol et al. 2018, Reptile (arXiv:1803.02999), algorithm 2; Tian et al. 2020, "Meta-learning with Network
Pruning" (arXiv:2007.03219), Reptile with iterative hard thresholding.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mvp_jax import train
from mvp_jax.core import prune, units
from mvp_jax.core.types import Array, Batch, Key, Params, PyTree, Variables
from mvp_jax.core.units import Group
from mvp_jax.methods.few_shot import api
from mvp_jax.models.api import Model
from mvp_jax.train import population


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Reptile with iterative hard thresholding.

    Attributes:
        outer_steps: of the initialisation.
        tasks: source tasks in each, drawn without replacement.
        inner_steps: of training on each of these.
        outer_rate: how far the initialisation moves towards the tasks' mean weights.
        threshold_every: outer steps between two hard thresholdings; units that were cut may grow again in between.
        tuning: rate, optimiser and batch of the inner steps, and the target's fine-tuning.
    """

    outer_steps: int = 20
    tasks: int = 5
    inner_steps: int = 10
    outer_rate: float = 0.5
    threshold_every: int = 5
    tuning: api.Tuning = dataclasses.field(default_factory=api.Tuning)

    def __post_init__(self) -> None:
        if (
            min(self.outer_steps, self.tasks, self.inner_steps, self.threshold_every) < 1
            or not 0 < self.outer_rate <= 1
        ):
            raise ValueError(
                "outer_steps, tasks, inner_steps and threshold_every must be at least 1, and outer_rate in (0, 1], got "
                f"{self.outer_steps}, {self.tasks}, {self.inner_steps}, {self.threshold_every}, {self.outer_rate}"
            )

    @property
    def examples(self) -> int:
        """Training examples that the initialisation takes, for as many targets as use it."""
        return self.outer_steps * self.tasks * self.inner_steps * self.tuning.batch


@functools.partial(jax.jit, static_argnames=("groups",))
def threshold(params: Params, keep: PyTree, *, groups: tuple[Group, ...]) -> tuple[Params, dict[str, Array]]:
    """The units of largest norm in each group; the others' weights become 0."""
    kept = prune.by_leaf(units.reduce(params, groups, "l2"), keep)
    expanded = units.expand(kept, groups, params)
    return jax.tree.map(lambda p, m: jnp.where(m, p, 0.0), params, expanded), dict(kept)


@dataclasses.dataclass(frozen=True)
class _Inner:
    """Training on one task; compares by value, so that equal work finds its program again."""

    model: Model
    settings: Settings

    def __call__(self, data: Batch, key: Key, variables: Variables) -> Variables:
        tuning, head = self.settings.tuning, self.model.head
        # Every task starts under a head of its own: classes are not the same.
        fresh = jax.tree.map(jnp.zeros_like, variables.params[head])
        begun = Variables({**variables.params, head: fresh}, variables.rest)
        state, _ = train.fit(
            self.model, train.create(begun, tuning.tx, key), data, self.settings.inner_steps, tx=tuning.tx,
            learning_rate=tuning.learning_rate, batch=tuning.batch, augment=tuning.augment,
        )  # fmt: skip
        return state.variables


@jax.jit
def _towards(variables: Variables, ends: Variables, rate: float) -> Variables:
    """Moved from `variables` towards the mean of `ends` by a share `rate` of the way."""
    return jax.tree.map(lambda p, e: p + rate * (jnp.mean(e, 0) - p), variables, ends)


def learn(
    model: Model,
    variables: Variables,
    sources: Batch,
    keep: PyTree,
    settings: Settings,
    key: Key,
    *,
    groups: tuple[Group, ...],
    mapping: population.MemberMapping = "vmap",
    after: Callable[[], object] = lambda: None,
) -> api.Start:
    """The universal initialisation.

    Args:
        model: under a head of the source tasks' number of classes.
        variables: pre-trained.
        sources: the tasks' training examples, `{"x": [T, n, ...], "y": int32[T, n]}`.
        keep: units that stay in each group.
        settings: see `Settings`.
        key: draws tasks and batches.
        groups: whose units are pruned.
        mapping: of the tasks in one step; see `population.over`.
        after: called when an outer step has been handed to the device, to show progress.

    Returns:
        Weights in the dense shapes, and the units to keep.

    Raises:
        ValueError: if there are fewer tasks than each step takes.
    """
    count = sources["y"].shape[0]
    if count < settings.tasks:
        raise ValueError(f"there are {count} source tasks, but each step takes {settings.tasks}; lower settings.tasks")
    inner = _Inner(model, settings)
    params, rest = variables.params, variables.rest
    kept = units.full(groups)
    for step in range(settings.outer_steps):
        key_tasks, key_fit = jax.random.split(jax.random.fold_in(key, step))
        chosen = jax.random.permutation(key_tasks, count)[: settings.tasks]
        data = jax.tree.map(lambda leaf, chosen=chosen: leaf[chosen], sources)
        keys = jax.random.split(key_fit, settings.tasks)
        ends = population.over(inner, data, keys, shared=(Variables(params, rest),), mapping=mapping)
        params, rest = _towards(Variables(params, rest), ends, settings.outer_rate)
        if (step + 1) % settings.threshold_every == 0 or step + 1 == settings.outer_steps:
            params, kept = threshold(params, keep, groups=groups)
        after()
    return api.Start(Variables(params, rest), kept)


def start(problem: api.Problem, settings: Settings, key: Key) -> api.Start:
    """The universal initialisation learned from `problem.sources`, under the target's head.

    Raises:
        ValueError: if the problem has no source tasks.
    """
    if problem.sources is None:
        raise ValueError("Reptile learns from source tasks, but the problem has none; pass sources=...")
    found = learn(
        problem.model, problem.variables, problem.sources, problem.sizes, settings, key, groups=problem.groups
    )
    head = problem.variables.params[problem.model.head]
    return found._replace(
        variables=Variables({**found.variables.params, problem.model.head: head}, found.variables.rest)
    )


reptile_iht = api.method(start)
