"""What is measured of a finished model: scores on the test examples, sizes, latency, densities, changed answers."""

import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mvp_jax.compact import cost
from mvp_jax.core import trees
from mvp_jax.core.types import Array, Masks, Params, PyTree, Units, Variables
from mvp_jax.core.units import Group
from mvp_jax.delivery.inputs import TaskInputs, pixels
from mvp_jax.models.api import Model
from mvp_jax.reports import intervals
from mvp_jax.reports.model_report import ChangedExample, Latency, LayerDensity, ModelVersion, Score
from mvp_jax.train import evaluation, metrics

_LATENCY_BATCH = 8
_REPEATS = 21
_MOST_EXAMPLES = 60
NOTICEABLE = 0.25
"""By which share of the labels' standard deviation an error has to change for an answer of a regression to count as
changed."""


class Answers(NamedTuple):
    """What a model says of the test examples.

    Attributes:
        outputs: logits `[N, Y]`, or numbers `[N, 1]` of a regression.
        labels: the true classes `int[N]`, or numbers.
    """

    outputs: np.ndarray
    labels: np.ndarray

    @property
    def correct(self) -> np.ndarray:
        """`bool[N]`: whether the class with the highest logit is the true one."""
        right: np.ndarray = self.outputs.argmax(-1) == self.labels
        return right


def answers(inputs: TaskInputs, model: Model, variables: Variables) -> Answers:
    """Returns what a model says of the test examples; this is where they are read.

    Args:
        inputs: the task.
        model: dense or slim.
        variables: its variables.
    """
    outputs, _ = evaluation.infer(model, variables, inputs.test["x"], batch=64)
    return Answers(np.asarray(outputs), np.asarray(inputs.test["y"]))


def test_scores(names: Sequence[str], given: Answers) -> tuple[Score, ...]:
    """Returns metrics on the test examples with 95 % intervals.

    An accuracy has Wilson's interval, other metrics one by the bootstrap over examples.

    Args:
        names: the names of the metrics.
        given: what the model says.
    """
    values, count = metrics.score(names, given.outputs, given.labels), len(given.labels)
    found = []
    low: float | None
    high: float | None
    for name, value in values.items():
        if name == "accuracy":
            low, high = intervals.accuracy_interval(int(given.correct.sum()), count)
        else:
            ends = intervals.bootstrap(
                lambda o, y, name=name: metrics.score((name,), o, y)[name],  # type: ignore[misc]
                given.outputs if name in metrics.OF_SCORES else given.outputs.argmax(-1),
                given.labels,
                seed=0,
            )
            low, high = ends or (None, None)
        found.append(Score(name, value, low, high, count))
    return tuple(found)


def versions(
    inputs: TaskInputs,
    found: Sequence[tuple[str, Model, Variables, int, bool]],
    x: Array | None = None,
) -> tuple[tuple[ModelVersion, ...], tuple[Answers, ...]]:
    """Returns what there is to say of each version of a model, and what each answers on the test examples.

    Args:
        inputs: the task.
        found: `(name, model, variables, bytes on disk, whether its latency is measured)` of each.
        x: the examples on which latency is measured; `None`: the first validation examples.
    """
    x = inputs.valid["x"][:_LATENCY_BATCH] if x is None else x
    given = [answers(inputs, model, variables) for _, model, variables, _, _ in found]
    timed = [i for i, one in enumerate(found) if one[4]]

    def program(i: int) -> Callable[[], Any]:
        _, model, variables, _, _ = found[i]
        compiled = jax.jit(lambda v, x: model.apply(v, x)[0])
        return lambda: compiled(variables, x)

    spreads = cost.latencies([program(i) for i in timed], repeats=_REPEATS) if timed else ()
    took = {
        i: Latency(int(x.shape[0]), *(1000 * seconds for seconds in (spread.median, spread.low, spread.high)))
        for i, spread in zip(timed, spreads, strict=True)
    }
    made = []
    for i, (name, model, variables, size, _) in enumerate(found):
        of = cost.of(model, variables)
        made.append(
            ModelVersion(
                name=name,
                scores=test_scores(inputs.metrics, given[i]),
                parameters=of.params,
                nonzero=int(sum(np.count_nonzero(np.asarray(p)) for p in jax.tree.leaves(variables.params))),
                bytes=size,
                flops=cost.flops(model.apply, variables, (1, *x.shape[1:]), dtype=x.dtype),
                latency=took.get(i),
            )
        )
    return tuple(made), tuple(given)


def densities(
    params: Params, prunable: PyTree, masks: Masks, units: Units, groups: Sequence[Group]
) -> tuple[LayerDensity, ...]:
    """Returns how much of each prunable array is kept, or of each group's units where units were pruned.

    Args:
        params: the parameters in the dense shapes.
        prunable: which of them are prunable, booleans in their structure.
        masks: what is kept, each broadcastable to its parameter.
        units: `{group: bool[C]}`; empty if single weights were pruned.
        groups: the groups of the units.
    """
    if units:
        plural = {"filter": "filters", "head": "heads", "neuron": "neurons"}
        of = {g.name: g for g in groups}
        return tuple(
            LayerDensity(name, int(kept.size), int(np.sum(kept)), plural.get(of[name].kind, f"{of[name].kind} units"))
            for name, kept in units.items()
        )
    arrays, flags, kept = (trees.flatten(tree) for tree in (params, prunable, masks))
    return tuple(
        LayerDensity(path, int(a.size), int(np.sum(np.broadcast_to(np.asarray(kept[path]), a.shape))), "weights")
        for path, a in arrays.items()
        if flags[path]
    )


def changed(inputs: TaskInputs, dense: Answers, pruned: Answers) -> tuple[ChangedExample, ...]:
    """Returns test examples on which two models give different answers, those that became wrong first.

    Of a regression these are the examples whose error grew most, by more than `NOTICEABLE`.

    Args:
        inputs: the task.
        dense: what the dense model says.
        pruned: what the pruned model says.
    """
    if not inputs.class_names:
        before, after = (np.abs(a.outputs[:, 0] - a.labels) for a in (dense, pruned))
        least = NOTICEABLE * float(np.std(dense.labels))
        chosen = [i for i in np.argsort(before - after)[: _MOST_EXAMPLES // 3] if after[i] - before[i] > least]
        numbers = [
            (f"{dense.labels[i]:.2f}", f"{dense.outputs[i, 0]:.2f}", f"{pruned.outputs[i, 0]:.2f}") for i in chosen
        ]
        return tuple(_example(inputs, int(i), *three, None) for i, three in zip(chosen, numbers, strict=True))
    names, said, now = inputs.class_names, dense.outputs.argmax(-1), pruned.outputs.argmax(-1)
    differ = np.flatnonzero(said != now)
    order = differ[np.argsort(np.where(dense.correct, 0, np.where(pruned.correct, 1, 2))[differ], kind="stable")]
    sure = np.asarray(jax.nn.softmax(pruned.outputs)).max(-1)
    return tuple(
        _example(inputs, int(i), names[int(dense.labels[i])], names[int(said[i])], names[int(now[i])], float(sure[i]))
        for i in order
    )


def _example(
    inputs: TaskInputs, i: int, label: str, dense: str, pruned: str, confidence: float | None
) -> ChangedExample:
    part = inputs.data.test
    if inputs.data.kind == "texts":
        text = str(part.x[i]) + ("" if part.pairs is None else f" | {part.pairs[i]}")
        return ChangedExample(text, b"", label, dense, pruned, confidence)
    return ChangedExample("", _thumbnail(pixels(part.x, i, 1)[0]), label, dense, pruned, confidence)


def _thumbnail(picture: np.ndarray) -> bytes:
    """Returns a small PNG of a picture."""
    from PIL import Image

    image = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
    image.thumbnail((96, 96))
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()
