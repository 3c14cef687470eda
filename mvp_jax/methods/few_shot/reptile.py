"""A universal sub-network: Reptile over the source tasks, with iterative hard thresholding.

It learns one pruned initialisation for all tasks from the bank's tasks, without a look at the target: the control that
shows whether the similarity of tasks matters.

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
from mvp_jax.methods.contract import Spent
from mvp_jax.methods.few_shot import api
from mvp_jax.models.api import Model
from mvp_jax.train import population


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of Reptile with iterative hard thresholding.

    Attributes:
        outer_steps: the number of steps that the initialisation takes.
        tasks: the number of source tasks in each outer step, drawn without replacement.
        inner_steps: the number of training steps on each of these tasks.
        outer_rate: the fraction of the way that the initialisation moves towards the tasks' mean weights in an outer
            step, in (0, 1].
        threshold_every: the number of outer steps between two hard thresholdings; units that were set to zero may grow
            again in between.
        tuning: learning rate, optimiser and batch of the inner steps, and the target's fine-tuning.

    Raises:
        ValueError: for a number that is out of range.
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


@functools.partial(jax.jit, static_argnames=("groups",))
def threshold(params: Params, keep: PyTree, *, groups: tuple[Group, ...]) -> tuple[Params, dict[str, Array]]:
    """Returns parameters with all but the units of largest l2 norm in each group set to zero, and the units left.

    Args:
        params: parameters in the dense shapes.
        keep: the number of units to keep, `{group: number}`.
        groups: the groups whose units are thresholded.

    Returns:
        The parameters, and the kept units `{group: bool[C]}`.
    """
    kept = prune.by_leaf(units.reduce(params, groups, "l2"), keep)
    expanded = units.expand(kept, groups, params)
    return jax.tree.map(lambda p, m: jnp.where(m, p, 0.0), params, expanded), dict(kept)


@dataclasses.dataclass(frozen=True)
class _Inner:
    """The training on one task; instances compare by value, so that equal work reuses its compiled program."""

    model: Model
    settings: Settings
    loss: train.Loss

    def __call__(self, data: Batch, key: Key, variables: Variables) -> Variables:
        tuning, head = self.settings.tuning, api.head_of(self.model, variables.params)
        # Every task starts under a new head, as the tasks' classes differ.
        begun = variables
        if head:
            fresh = jax.tree.map(jnp.zeros_like, variables.params[head])
            begun = Variables({**variables.params, head: fresh}, variables.rest)
        recipe = train.Recipe(
            model=self.model, tx=tuning.tx, loss=self.loss, batch=tuning.batch, augment=tuning.augment
        )
        state, _ = train.fit(
            recipe,
            train.create(begun, tuning.tx, key),
            data,
            self.settings.inner_steps,
            learning_rate=tuning.learning_rate,
        )
        return state.variables


@jax.jit
def _towards(variables: Variables, ends: Variables, rate: float) -> Variables:
    """Returns variables moved from `variables` towards the mean of `ends` by the fraction `rate` of the way."""
    return jax.tree.map(lambda p, e: p + rate * (jnp.mean(e, 0) - p), variables, ends)


def learn(
    problem: api.FewShotProblem,
    settings: Settings,
    key: Key,
    *,
    mapping: population.MemberMapping = "vmap",
    after: Callable[[], object] = lambda: None,
) -> api.Start:
    """Returns one pruned initialisation for all tasks, learned from the source tasks `problem.sources`.

    Args:
        problem: gives the model, the pre-trained variables, the groups, the numbers of units, the loss, and the
            training examples of `T` source tasks, `sources = {"x": [T, n, ...], "y": [T, n, ...]}`; the problem's own
            training examples are not used.
        settings: how the initialisation is learned.
        key: random key for the choice of tasks and batches.
        mapping: how the tasks of an outer step are run: `vmap`: at once; `map`: in turn in one program; `loop`: in turn
            by one call each; `auto`: whichever suits the device.
        after: called without arguments when an outer step has been handed to the device, to show progress.

    Returns:
        Variables in the dense shapes, and the units to keep.

    Raises:
        ValueError: if there are no source tasks, or fewer than each step takes.
    """
    sources, model, variables = problem.sources, problem.model, problem.variables
    if sources is None:
        raise ValueError("Reptile learns from source tasks, but the problem has none; pass sources=...")
    count = sources["y"].shape[0]
    if count < settings.tasks:
        raise ValueError(f"there are {count} source tasks, but each step takes {settings.tasks}; lower settings.tasks")
    inner = _Inner(model, settings, problem.loss)
    params, rest = variables.params, variables.rest
    kept = units.full(problem.groups)
    for step in range(settings.outer_steps):
        key_tasks, key_fit = jax.random.split(jax.random.fold_in(key, step))
        chosen = jax.random.permutation(key_tasks, count)[: settings.tasks]
        data = jax.tree.map(lambda leaf, chosen=chosen: leaf[chosen], sources)
        keys = jax.random.split(key_fit, settings.tasks)
        ends = population.over(inner, data, keys, shared=(Variables(params, rest),), mapping=mapping)
        params, rest = _towards(Variables(params, rest), ends, settings.outer_rate)
        if (step + 1) % settings.threshold_every == 0 or step + 1 == settings.outer_steps:
            params, kept = threshold(params, problem.sizes, groups=problem.groups)
        after()
    return api.Start(Variables(params, rest), kept)


def start(problem: api.FewShotProblem, settings: Settings, key: Key) -> api.Start:
    """Starts from one pruned initialisation learned from all source tasks (Reptile with iterative hard thresholding).

    It is `problem.universal`, learned once for many targets, or else is learned from `problem.sources`. The head is the
    target's own.

    Args:
        problem: the task, with `universal` or `sources`.
        settings: how the initialisation is learned, if it has to be.
        key: random key for learning it.

    Raises:
        ValueError: if the problem has neither.
    """
    found = problem.universal or learn(problem, settings, key)
    head = api.head_of(problem.model, problem.variables.params)
    own = {head: problem.variables.params[head]} if head else {}
    return found._replace(variables=Variables({**found.variables.params, **own}, found.variables.rest))


def cost_of_learning(problem: api.FewShotProblem, settings: Settings) -> Spent:
    """Returns the cost of learning the initialisation; zero if the problem has one that was learned before."""
    if problem.universal is not None:
        return Spent(0, 0, 0)
    steps = settings.outer_steps * settings.tasks * settings.inner_steps
    examples = 0 if problem.sources is None else problem.sources["y"].shape[1]
    serial = settings.outer_steps * settings.inner_steps
    collectives = settings.outer_steps * int(settings.tasks > 1)
    return Spent(steps, steps * min(settings.tuning.batch, examples), serial, collectives)


reptile_iht = api.method(start, Settings, spends=cost_of_learning)
