"""How a person's model is trained: the settings of both trainings, and the training of the dense model."""

import contextlib
import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mvp_jax import train
from mvp_jax.core.types import Key, Variables
from mvp_jax.delivery.inputs import TaskInputs
from mvp_jax.methods import sparse
from mvp_jax.models.api import Model, replace_head
from mvp_jax.reports.model_report import TrainingCurve
from mvp_jax.storage import checkpoint, records
from mvp_jax.train import evaluation, metrics, probe

_PROBED = 4096
"""How many training examples a new head is fitted to, at most."""

_PENALTIES = (1e-2, 1e-1, 1.0, 10.0)
"""The strengths of the penalty on a new head that are tried."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeliveryTraining:
    """How the dense model and the pruned one are trained.

    Attributes:
        epochs: passes over the training examples, for each of the two models; in the pruned model's half of them the
            sparsity rises, in the other half it is trained under the final mask.
        steps: number of training steps for each of the two models; `None`: as many as `epochs` are.
        dense_steps: number of training steps of the dense model; `None`: as many as the pruned model's, or none if the
            checkpoint's head is for the task's classes already.
        batch: the number of examples a step.
        learning_rate: the highest learning rate; `None`: 0.01 for networks of convolutions (SGD), and for transformers
            (AdamW) 5e-5 at a width of 768 and inversely proportional to the width.
        weight_decay: of AdamW, decoupled and of kernels alone.
        warmup: the share of the steps over which the learning rate rises; after that it falls as half a cosine.
        clip: gradients are scaled down to this norm; `None`: never.
        looks: how often the validation examples are looked at in a training, at most.

    Raises:
        ValueError: for numbers out of range.

    Reference: Yang et al., "Tensor Programs V", 2022, arXiv:2203.03466, table 3: Adam's rate falls as 1 / width.
    """

    epochs: float = 3.0
    steps: int | None = None
    dense_steps: int | None = None
    batch: int = 32
    learning_rate: float | None = None
    weight_decay: float = 0.01
    warmup: float = 0.06
    clip: float | None = 1.0
    looks: int = 10

    def __post_init__(self) -> None:
        if self.batch < 1 or not self.epochs > 0 or self.looks < 1:
            raise ValueError(f"batch={self.batch}, epochs={self.epochs}, looks={self.looks}; all have to be positive")
        low = [n for n in (self.steps, self.dense_steps) if n is not None and n < 0]
        if low or self.steps == 0:
            raise ValueError(f"steps={self.steps}, dense_steps={self.dense_steps}; steps are at least 1, dense_steps 0")
        if (self.learning_rate is not None and not self.learning_rate > 0) or not 0 <= self.warmup < 1:
            raise ValueError(
                f"learning_rate={self.learning_rate}, warmup={self.warmup}; the rate is positive, the warm-up a share "
                "of the steps in [0, 1)"
            )

    def steps_for(self, examples: int) -> int:
        """Returns the number of training steps of one model, at least 1.

        Args:
            examples: the number of training examples.
        """
        return self.steps or max(1, round(self.epochs * examples / min(self.batch, examples)))

    def dense_for(self, inputs: TaskInputs) -> int:
        """Returns the number of training steps of the dense model."""
        if self.dense_steps is not None:
            return self.dense_steps
        return 0 if inputs.trained else self.steps_for(inputs.examples)

    def every(self, inputs: TaskInputs, steps: int) -> int:
        """Returns the number of steps between two looks at the validation examples.

        There are `looks` of them, or fewer where they would take more than a fifth of the training's time.

        Args:
            inputs: the task.
            steps: the number of training steps.
        """
        # A step on an example takes about three times what a look at it takes.
        affordable = int(0.2 * 3 * steps * self.batch / len(inputs.valid["y"]))
        return max(1, -(-steps // max(2, min(self.looks, affordable))))

    def rate_for(self, model: Model) -> float:
        """Returns the highest learning rate for a model."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 5e-5 * 768 / model.config.dim if is_transformer(model) else 0.01

    def training(self, model: Model, steps: int) -> sparse.SparsityTraining:
        """Returns how a model is trained for so many steps, as the methods for a sparsity take it.

        Args:
            model: the model.
            steps: the number of steps under the final mask.
        """
        attention = is_transformer(model)
        return sparse.SparsityTraining(
            steps=steps,
            learning_rate=self.rate_for(model),
            optimizer="adamw" if attention else "sgd",
            weight_decay=self.weight_decay if attention else 5e-4,
            batch=self.batch,
            clip=self.clip,
            decay="cosine",
            warmup=round(self.warmup * steps),
        )


def is_transformer(model: Model) -> bool:
    """Whether a model is made of attention, whose training wants AdamW."""
    return hasattr(model.config, "attention_scale")


def scores(inputs: TaskInputs, model: Model, variables: Variables, part: str = "valid") -> dict[str, float]:
    """Returns the metrics of a model on a part of the data, `{name: value}`, the one that counts first.

    Args:
        inputs: the task.
        model: dense or slim.
        variables: its variables.
        part: `valid`; `train` to see how well it fits.
    """
    data = getattr(inputs, part)
    outputs, _ = evaluation.infer(model, variables, data["x"], batch=64)
    return metrics.score(inputs.metrics, np.asarray(outputs), np.asarray(data["y"]))


class Watch:
    """Shows the progress of a training and notes its curve; an instance is the `watch` of a `SparsityTraining`.

    Args:
        inputs: the task, whose validation examples are looked at.
        name: the name of the curve.
        every: the number of steps between two looks at the validation examples.
        advance: `(steps, note)`, as `records.progress` gives it.
        before: a curve to go on with.
    """

    def __init__(
        self,
        inputs: TaskInputs,
        name: str,
        every: int,
        advance: Callable[..., None],
        before: TrainingCurve | None = None,
    ) -> None:
        self.inputs, self.name, self.every, self.advance = inputs, name, every, advance
        self.steps = list(before.steps) if before else []
        self.losses = list(before.loss) if before else []
        self.valid = list(before.valid) if before else []
        self._since = (0, 0.0)

    @property
    def part(self) -> int:
        """The number of steps after which it is to be called: progress is shown more often than looks are taken."""
        return max(1, self.every // 8)

    def __call__(self, state: train.TrainState, seen: train.Metrics) -> None:
        taken, loss, first = int(seen["taken"]), float(seen["loss"]), self.inputs.metrics[0]
        self._since = (self._since[0] + taken, self._since[1] + taken * loss)
        note = f"loss {loss:.3f}"
        if self._since[0] >= self.every:
            self.look(state.variables)
        if self.valid:
            note += f", validation {first} {self.valid[-1]:.3f}"
        self.advance(taken, note)

    def look(self, variables: Variables) -> None:
        """Notes the loss since the look before and the score on the validation examples.

        Args:
            variables: the model's variables now; nothing is noted if no step was taken since.
        """
        taken, total = self._since
        if taken:
            self.steps.append((self.steps[-1] if self.steps else 0) + taken)
            self.losses.append(total / taken)
            self.valid.append(scores(self.inputs, self.inputs.model, variables)[self.inputs.metrics[0]])
        self._since = (0, 0.0)

    def curve(self) -> TrainingCurve:
        """Returns what was noted so far."""
        return TrainingCurve(self.name, tuple(self.steps), tuple(self.losses), tuple(self.valid))


def with_head(inputs: TaskInputs) -> Variables:
    """Returns the pre-trained variables under the head that their training begins with.

    A head of the checkpoint that is for these classes stays as it is. Otherwise it is fitted to the training examples'
    features, by the strength of the penalty that is best on the validation examples.

    Args:
        inputs: the task.

    Reference: Kumar et al., 2022, arXiv:2202.10054 (a linear probe before fine-tuning).
    """
    model, bare = inputs.model, inputs.variables
    if inputs.trained or not model.head:
        return bare
    x, y = inputs.train["x"][:_PROBED], inputs.train["y"][:_PROBED]
    _, seen = evaluation.infer(model, bare, x, batch=64)
    _, held_out = evaluation.infer(model, bare, inputs.valid["x"], batch=64)
    if seen.shape[-1] != math.prod(bare.params[model.head]["kernel"].shape[:-1]):
        return bare
    heads = [probe.linear(seen, y, model.num_classes, loss=inputs.loss, l2=l2) for l2 in _PENALTIES]
    losses = [float(jnp.mean(inputs.loss(held_out @ kernel + bias, inputs.valid["y"]))) for kernel, bias in heads]
    kernel, bias = heads[int(np.argmin(losses))]
    # Features that hardly vary need a large kernel, which the first steps of the body would turn into huge logits: a
    # change by a hundredth of the features' length may change logits by 1.
    length = jnp.sqrt(jnp.mean(jnp.sum(jnp.square(seen), -1)))
    factor = jnp.minimum(1.0, 100.0 / jnp.maximum(length * jnp.linalg.norm(kernel), 1e-6))
    if not inputs.class_names:
        factor = jnp.ones(())
    kernel, bias = factor * kernel, factor * bias
    return replace_head(bare, model, kernel=kernel, bias=bias)


def train_dense(
    inputs: TaskInputs, training: DeliveryTraining, key: Key, states: pathlib.Path | None = None
) -> tuple[Variables, TrainingCurve]:
    """Fine-tunes the dense model, or goes on where a killed run stopped.

    Args:
        inputs: the task.
        training: how.
        key: random key for batches and dropout.
        states: a folder where the state is saved after each look; `None`: nowhere.

    Returns:
        The variables, and the curve of the training.

    Raises:
        ValueError: if the training diverges.
    """
    steps = training.dense_for(inputs)
    if not steps:
        return with_head(inputs), TrainingCurve("dense", (), (), ())
    how = training.training(inputs.model, steps)
    recipe = train.Recipe(
        model=inputs.model, tx=how.tx, batch=how.batch, loss=inputs.loss, decay="cosine", warmup=how.warmup
    )
    state = train.create(jax.tree.map(jnp.asarray, with_head(inputs)), how.tx, key)
    every = training.every(inputs, steps)
    records.say(f"fine-tuning the dense model: {steps} steps, before the first of which a program is compiled")
    with (
        saved_in(None if states is None else states / "states") as saved,
        records.progress(steps, "fine-tuning the dense model") as advance,
    ):
        watch = Watch(inputs, "dense", every, advance)
        if saved is not None and saved.latest() is not None:
            state = saved.restore(state)
            assert states is not None
            watch = Watch(inputs, "dense", every, advance, _read_curve(states / "curve.json", int(state.step)))
            advance(int(state.step))
        while (done := int(state.step)) < steps:
            count = min(watch.part, every - done % every, steps - done)
            state, seen = train.fit(recipe, state, inputs.train, count, learning_rate=how.learning_rate, total=steps)
            watch(state, seen)
            if done + count == steps:
                watch.look(state.variables)
            if not bool(state.alive):
                raise ValueError(
                    f"the training of the dense model diverged before step {int(state.step) + 1}: a loss or a weight "
                    f"is not finite; lower the learning rate, which is {how.learning_rate:.2g}"
                )
            if saved is not None and states is not None and ((done + count) % every == 0 or done + count == steps):
                records.write_json(states / "curve.json", watch.curve()._asdict())
                saved.save(int(state.step), state)
    variables = evaluation.reestimate(inputs.model, state.variables, inputs.train["x"][: how.norm_examples])
    return variables, watch.curve()


def _read_curve(path: pathlib.Path, step: int) -> TrainingCurve:
    """Returns the curve that was noted up to a step; a kill may have come between the curve and the state."""
    found = records.read_json(path)
    return curve_of(found, sum(at <= step for at in found["steps"]))


def curve_of(found: Mapping[str, Any], count: int | None = None) -> TrainingCurve:
    """Returns a curve that was written as JSON.

    Args:
        found: the fields of the curve, each a list.
        count: how many of its first points are wanted; `None`: all.
    """
    return TrainingCurve(found["name"], *(tuple(found[part][:count]) for part in ("steps", "loss", "valid")))


def saved_in(
    folder: pathlib.Path | None,
) -> contextlib.AbstractContextManager[checkpoint.Checkpoints | None]:
    """Returns a context that gives where states are saved in a folder, the newest of them; `None`: nowhere.

    Args:
        folder: the folder; `None`: nothing is saved.
    """
    if folder is None:
        return contextlib.nullcontext()
    return checkpoint.Checkpoints(folder, keep=1, alone=True)
