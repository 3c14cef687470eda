"""What methods that prune to a given sparsity get and give, and the moves that they are made of.

A `Problem` goes in, a `Pruned` comes out. Between them a `Run` is trained under a mask (`advance`), loses entries
(`cut`), forks or rewinds, in `rounds` that are written down as they end, so that a killed run continues. Every move is
compiled once: counts, rates, masks and keys are traced.

How long pruning goes on is a method's own setting; then all fine-tune for `Training.steps` under the final mask.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mvp_jax import saliency, train
from mvp_jax.core import masks, patterns, prune, trees
from mvp_jax.core.patterns import How, Pattern
from mvp_jax.core.trees import PathRules
from mvp_jax.core.types import Array, Batch, Key, Masks, Params, PyTree, Scores, Variables
from mvp_jax.methods import few_shot
from mvp_jax.methods.few_shot import Pruned, Spent
from mvp_jax.models.api import Model
from mvp_jax.storage import checkpoint
from mvp_jax.train import evaluation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """A pre-trained model, a task, and how sparse the model is to become.

    Attributes:
        model: any model; `models.from_apply` makes one of a function.
        variables: its pre-trained body under the task's head. The parameters may be any pytree.
        train: all that a method may train on: `{"x": [N, ...], "y": int32[N]}`.
        sparsity: the share of the prunable entries to remove, in [0, 1).
        valid: held-out examples for methods that choose.
        pattern: what an entry is.
        rules: over paths, what is prunable; by default the model's own.

    Raises:
        ValueError: for a sparsity outside [0, 1), labels outside the classes, rules that match nothing.
    """

    model: Model
    variables: Variables
    train: Batch
    sparsity: float
    valid: Batch | None = None
    pattern: Pattern = dataclasses.field(default_factory=patterns.Weights)
    rules: PathRules | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity is {self.sparsity}; give the share to remove, in [0, 1)")
        few_shot.check_labels(self.train["y"], self.model.num_classes)
        self.pattern.check(self.sparsity)
        if not any(jax.tree.leaves(self.prunable)):
            raise ValueError(
                "nothing is prunable: the model names no rules; give rules=[...] over the parameters' paths"
            )

    @functools.cached_property
    def prunable(self) -> PyTree:
        """Python booleans by leaf."""
        return trees.select(self.variables.params, self.model.prunable if self.rules is None else self.rules)

    def whole(self) -> Masks:
        """All entries kept."""
        return self.pattern.whole(self.variables.params, self.prunable)

    def keep(self, sparsity: float | None = None) -> PyTree:
        """How many entries stay: integers on the host."""
        return self.pattern.counts(
            self.variables.params, self.prunable, self.sparsity if sparsity is None else sparsity
        )

    def counts(self, schedule: Callable[..., float], rounds: int, before: float = 0.0) -> list[PyTree]:
        """How many stay after each of `rounds` rounds of a schedule; the last are the problem's own."""
        counts = [self.keep()]
        for t in range(rounds - 1, 0, -1):
            own = self.keep(schedule(t, rounds, self.sparsity, before))
            # What is shared out by largest remainders can fall below a later count by one.
            counts.append(jax.tree.map(max, own, counts[-1]))
        return counts[::-1]

    @property
    def examples(self) -> int:
        return int(self.train["y"].shape[0])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training(few_shot.Training):
    """How a method trains, and how long all fine-tune under the final mask (`steps`).

    Attributes:
        decay: of the rate over the final fine-tuning; while there is pruning it is constant.
        warmup: steps over which the rate rises whenever training starts anew.
    """

    decay: Literal["constant", "cosine"] = "constant"
    warmup: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decay not in ("constant", "cosine") or self.warmup < 0:
            raise ValueError(f"decay is 'constant' or 'cosine', warmup >= 0; got {self.decay!r} and {self.warmup}")

    def steps_in(self, problem: Problem, epochs: float) -> int:
        """Steps of a share of an epoch, at least one."""
        return max(1, round(epochs * problem.examples / min(self.batch, problem.examples)))


class Run(NamedTuple):
    """A method under way; a pytree, so it is saved and restored as it is.

    Attributes:
        state: what is trained; its masks follow `kept`.
        kept: the entries that are left.
        spent: up to now.
        more: what a method carries besides.
    """

    state: train.TrainState
    kept: Masks
    spent: Spent
    more: PyTree = ()


class Method(Protocol):
    """The contract. `saved` keeps every round, and continues where a killed call stopped."""

    def __call__(
        self, problem: Problem, settings: Any, key: Key, *, saved: checkpoint.Checkpoints | None = None
    ) -> Pruned: ...


def begin(problem: Problem, training: Training, key: Key, more: PyTree = ()) -> Run:
    """A run at its start: nothing pruned, nothing trained."""
    kept = problem.whole()
    whole = problem.pattern.masks(kept, problem.variables.params, problem.prunable)
    variables = jax.tree.map(jnp.asarray, problem.variables)
    return Run(train.create(variables, training.tx, key, masks=whole), kept, Spent(0, 0), more)


def advance(
    problem: Problem, training: Training, run: Run, steps: int, *, last: bool = False, total: int | None = None
) -> Run:
    """`steps` of masked training; with `last` the rate decays as set, over `total` (default: these) steps."""
    if not steps:
        return run
    state, _ = train.fit(
        problem.model,
        run.state,
        problem.train,
        steps,
        tx=training.tx,
        learning_rate=training.learning_rate,
        batch=training.batch,
        augment=training.augment,
        decay=training.decay if last else "constant",
        total=total,
        warmup=training.warmup,
    )
    return spend(run._replace(state=state), steps, steps * min(training.batch, problem.examples))


def spend(run: Run, steps: int, examples: int) -> Run:
    """The same run, so much dearer."""
    return run._replace(spent=Spent(run.spent.steps + steps, run.spent.examples + examples))


def anew(training: Training, run: Run, key: Key, *, moments: bool = False) -> Run:
    """Training starts anew from the weights as they are: step 0, another stream of batches, empty moments if asked."""
    state = run.state._replace(step=jnp.zeros((), jnp.int32), key=key)
    if moments:
        state = state._replace(opt_state=training.tx.init(state.variables.params))
    return run._replace(state=state)


@functools.partial(jax.jit, static_argnames=("pattern", "how"))
def _select(
    params: Params, kept: Masks, values: PyTree, keep: PyTree, *, pattern: Pattern, how: How
) -> tuple[Masks, Masks]:
    chosen = pattern.select(pattern.entries(values, kept, how), keep, kept)
    return chosen, pattern.masks(chosen, params, kept)


def cut(problem: Problem, run: Run, keep: PyTree, values: PyTree | None = None, how: How = "l2") -> Run:
    """Keeps the best of the entries that are left, and masks the weights.

    Args:
        problem: its pattern says what an entry is.
        run: what is cut.
        keep: see `Problem.keep`; traced.
        values: numbers in the parameters' shapes; by default the weights themselves, so their magnitude.
        how: as in `patterns.How`.
    """
    params = run.state.variables.params
    values = params if values is None else values
    kept, new = _select(params, run.kept, values, keep, pattern=problem.pattern, how=how)
    return with_masks(run, kept, new)


def with_masks(run: Run, kept: Masks, new: Masks) -> Run:
    """The run under other masks."""
    params, rest = run.state.variables
    state = run.state._replace(variables=Variables(masks.apply(params, new), rest), masks=new)
    return run._replace(state=state, kept=kept)


def forget(training: Training, run: Run) -> Run:
    """Moments of pruned weights set to zero: a weight that is let in again starts without momentum."""

    def clear(leaf: Array, mask: Array) -> Array:
        return jnp.where(mask, leaf, jnp.zeros((), leaf.dtype))

    opt_state = optax.tree_utils.tree_map_params(training.tx, clear, run.state.opt_state, run.state.masks)
    return run._replace(state=run.state._replace(opt_state=opt_state))


def rounds(
    body: Callable[[int, Run], Run],
    run: Run,
    until: int | Callable[[int, Run], bool],
    saved: checkpoint.Checkpoints | None = None,
) -> Run:
    """One round after the other, from the first or from where `saved` stopped.

    Args:
        body: `(number of the round, run) -> run`.
        run: at the start.
        until: how many rounds, or whether `(number of the next round, run)` is the end.
        saved: where each round is written.
    """
    first = 0
    if saved is not None and (latest := saved.latest()) is not None:
        run, first = saved.restore(run, step=latest), latest
    for r in itertools.count(first):
        if r >= until if isinstance(until, int) else until(r, run):
            return run
        run = body(r, run)
        if saved is not None:
            saved.save(r + 1, run)
    raise AssertionError("unreachable")


def finish(problem: Problem, training: Training, run: Run, key: Key) -> Run:
    """The fine-tuning that ends every method."""
    return advance(problem, training, anew(training, run, key), training.steps, last=True)


def end(problem: Problem, training: Training, run: Run) -> Pruned:
    """The result, its batch statistics those of the weights as they are."""
    variables = evaluation.reestimate(problem.model, run.state.variables, problem.train["x"][: training.norm_examples])
    kept = run.kept if isinstance(problem.pattern, patterns.WholeUnits) else {}
    return Pruned(variables, run.state.masks, kept, run.spent, run.state.alive)


def check_exchangeable(problem: Problem) -> None:
    """Raises `ValueError` for a pattern whose entries cannot be elected or exchanged one by one."""
    if isinstance(problem.pattern, patterns.NofM):
        raise ValueError("votes and exchanges do not keep N of every M; take another pattern, or another method")


def remaining(kept: Masks, scope: Literal["leaf", "tree"]) -> PyTree:
    """How many entries are left, as `Problem.keep` counts them; waits for the device."""
    counts = jax.tree.map(int, jax.device_get(jax.tree.map(lambda m: jnp.sum(m, dtype=jnp.int32), kept)))
    return sum(jax.tree.leaves(counts)) if scope == "tree" else counts


def fewer(counts: PyTree, share: float) -> PyTree:
    """Counts after a share of what remains has gone."""
    return jax.tree.map(lambda n: prune.keep_count(n, share), counts)


@functools.partial(jax.jit, static_argnames=("model", "training"))
def gradients(model: Model, variables: Variables, data: Batch, *, training: bool = False) -> PyTree:
    """The gradient of the mean loss, in evaluation mode unless `training` (there without dropout)."""
    extra = {"train": True, "key": jax.random.key(0), "knobs": {"dropout": jnp.zeros(())}} if training else {}

    def loss(params: Params) -> Array:
        logits, _ = model.apply(Variables(params, variables.rest), data["x"], **extra)
        return jnp.mean(train.cross_entropy(logits, data["y"]))

    return jax.grad(loss)(variables.params)


def magnitudes(problem: Problem, params: Params) -> Scores:
    """Magnitude of every entry; `jax.vmap` it over members."""
    return problem.pattern.entries(params, problem.prunable, "l2")


def sample(problem: Problem, key: Key, count: int) -> Batch:
    """At most `count` training examples, drawn without replacement."""
    index = jax.random.permutation(key, problem.examples)[: min(count, problem.examples)]
    return {"x": problem.train["x"][index], "y": problem.train["y"][index]}


def noise(key: Key, params: Params) -> PyTree:
    """Uniform noise in the parameters' shapes."""
    return saliency.random(key, params)


def host(values: PyTree) -> PyTree:
    """Counts as int32 arrays, which every call of a compiled function sees alike."""
    return jax.tree.map(np.int32, values)
