"""What a method that prunes to a given sparsity takes: a problem, and how its model is trained."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal, Protocol

import jax

from mvp_jax import graph
from mvp_jax.core import patterns, trees
from mvp_jax.core.patterns import Pattern
from mvp_jax.core.trees import PathRules
from mvp_jax.core.types import Batch, Key, Masks, PyTree, Variables
from mvp_jax.methods import contract, weak_members
from mvp_jax.methods.contract import Pruned
from mvp_jax.models.api import Model
from mvp_jax.storage import checkpoint
from mvp_jax.train import Loss, Metrics, TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class SparsityProblem:
    """A pre-trained model, a task, and how sparse the model is to become.

    Attributes:
        model: any model; `models.from_apply` makes one of a function.
        variables: the model's pre-trained variables, under a head for the task. The parameters may be any pytree.
        train: the training examples, `{"x": [N, ...], "y": [N, ...]}`; these are all that a method may train on.
            Labels are as the loss takes them: `int32[N]` in [0, classes) for the default loss.
        sparsity: the fraction of the prunable entries to remove, in [0, 1).
        loss: `(outputs [N, ...], labels [N, ...]) -> losses [N, ...]`; its mean is minimised. It is a static argument
            of compiled functions, so give the same function every time. To be trained with label smoothing it must
            take `smoothing` as well.
        valid: held-out examples, for methods that choose between models; `None`: there are none.
        pattern: what an entry is; single weights by default. N:M without an axis runs along the axes that the model's
            products sum over, which are found here.
        rules: rules over the parameters' paths that say what is prunable; `None`: the model's own rules.

    Raises:
        ValueError: for a sparsity outside [0, 1), no examples, inputs and labels that differ in number, labels
            outside the classes (default loss only), or rules that match nothing.
    """

    model: Model
    variables: Variables
    train: Batch
    sparsity: float
    loss: Loss = contract.CROSS_ENTROPY
    valid: Batch | None = None
    pattern: Pattern = dataclasses.field(default_factory=patterns.Weights)
    rules: PathRules | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity is {self.sparsity}; give the fraction to remove, in [0, 1)")
        contract.check_examples(self.train, self.loss, self.model.num_classes)
        if self.valid is not None:
            contract.check_examples(self.valid, self.loss, self.model.num_classes, "valid")
        self.pattern.check(self.sparsity)
        if isinstance(self.pattern, patterns.NofM) and self.pattern.axis is None:
            axes = graph.contracted(lambda v, x: self.model.apply(v, x)[0], self.variables, self.train["x"][:1])
            object.__setattr__(self, "pattern", dataclasses.replace(self.pattern, axis=axes))
        if not any(jax.tree.leaves(self.prunable)):
            raise ValueError(
                "nothing is prunable: the model names no rules; give rules=[...] over the parameters' paths"
            )

    @property
    def classifies(self) -> bool:
        """Whether the loss is the default one, so that labels are classes and models can be compared by accuracy."""
        return self.loss is contract.CROSS_ENTROPY

    @functools.cached_property
    def prunable(self) -> PyTree:
        """A tree like the parameters of Python booleans: which leaves are prunable."""
        return trees.select(self.variables.params, self.model.prunable if self.rules is None else self.rules)

    def whole(self) -> Masks:
        """Returns the entries with all of them kept."""
        return self.pattern.whole(self.variables.params, self.prunable)

    def keep(self, sparsity: float | None = None) -> PyTree:
        """Returns how many entries stay at a sparsity, as integers on the host; `None`: the problem's sparsity."""
        return self.pattern.counts(
            self.variables.params, self.prunable, self.sparsity if sparsity is None else sparsity
        )

    def counts(self, schedule: Callable[..., float], rounds: int, before: float = 0.0) -> list[PyTree]:
        """Returns how many entries stay after each round of a schedule.

        Args:
            schedule: a function of `core.schedules`, such as `schedules.geometric`.
            rounds: number of rounds.
            before: the sparsity before the first round.

        Returns:
            One count (or tree of counts) for each round; the last is that of the problem's sparsity.
        """
        counts = [self.keep()]
        for t in range(rounds - 1, 0, -1):
            own = self.keep(schedule(t, rounds, self.sparsity, before))
            # What is shared out by largest remainders can fall below a later count by one.
            counts.append(jax.tree.map(max, own, counts[-1]))
        return counts[::-1]

    @property
    def examples(self) -> int:
        """Number of training examples."""
        return int(self.train["y"].shape[0])


@dataclasses.dataclass(frozen=True, kw_only=True)
class SparsityTraining(contract.Training):
    """How a method for a sparsity trains, and how long it fine-tunes under the final mask (`steps`).

    Attributes:
        decay: how the learning rate falls over the final fine-tuning. While a method prunes, the rate is constant.
        warmup: number of steps over which the learning rate rises linearly, whenever training starts anew.
        watch: called with the training state and the means of the metrics after every `watch_every` steps of the
            weights that are pruned (not of the weak members), for progress and curves; the result does not depend on
            it. `None`: nothing is called, and nothing waits for the device.
        watch_every: number of steps between two calls of `watch`.
    """

    decay: Literal["constant", "cosine"] = "constant"
    warmup: int = 0
    watch: Callable[[TrainState, Metrics], None] | None = dataclasses.field(default=None, compare=False, repr=False)
    watch_every: int = dataclasses.field(default=50, compare=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.watch_every < 1:
            raise ValueError(f"watch_every is {self.watch_every}; give a number of steps, at least 1")
        if self.decay not in ("constant", "cosine") or self.warmup < 0:
            raise ValueError(f"decay is 'constant' or 'cosine', warmup >= 0; got {self.decay!r} and {self.warmup}")

    def steps_in(self, problem: SparsityProblem, epochs: float) -> int:
        """Returns the number of steps, at least one, in so many epochs over the problem's training examples."""
        return max(1, round(epochs * problem.examples / min(self.batch, problem.examples)))


class SparsityMethod(Protocol):
    """The type of every method that prunes to a sparsity.

    With `saved`, the method saves every round there, and continues where a call that was killed stopped.
    """

    def __call__(
        self, problem: SparsityProblem, settings: Any, key: Key, *, saved: checkpoint.Checkpoints | None = None
    ) -> Pruned: ...


def check_exchangeable(problem: SparsityProblem) -> None:
    """Raises `ValueError` for a pattern whose entries cannot be elected or exchanged one by one."""
    if isinstance(problem.pattern, patterns.NofM):
        raise ValueError("votes and exchanges do not keep N of every M; take another pattern, or another method")


def check_smoothing(problem: SparsityProblem, diversity: weak_members.Diversity) -> None:
    """Raises `ValueError` if members are to be trained with label smoothing, but the loss takes no `smoothing`."""
    if diversity.label_smoothing is None:
        return
    takes = inspect.signature(problem.loss).parameters.values()
    if not any(p.name == "smoothing" or p.kind is inspect.Parameter.VAR_KEYWORD for p in takes):
        raise ValueError(
            f"members are to differ in label_smoothing, {diversity.label_smoothing}, but the problem's loss takes no "
            "argument `smoothing`; give the loss one, or leave label_smoothing at None"
        )
