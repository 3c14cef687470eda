"""What there is to say of one pruned model: what it was, what it is, how good it is and what it costs."""

import dataclasses
from typing import NamedTuple


@dataclasses.dataclass(frozen=True)
class Score:
    """How good a model is on the test examples.

    Attributes:
        metric: the metric's name: `accuracy`, `f1`, `matthews`, `pearson`, `spearman`, or another one.
        value: its value; of an accuracy in [0, 1].
        low: the lower end of the 95 % interval; `None`: not known.
        high: the upper end of the 95 % interval; `None`: not known.
        count: the number of test examples.
    """

    metric: str
    value: float
    low: float | None
    high: float | None
    count: int


class ScoreDifference(NamedTuple):
    """How much better the pruned model is than the dense one on the same test examples; below 0: worse.

    Attributes:
        value: the first score of the pruned model less that of the dense model, in the scores' unit.
        low: the lower end of the 95 % interval; `None`: not known.
        high: the upper end of the 95 % interval; `None`: not known.
    """

    value: float
    low: float | None
    high: float | None


class Latency(NamedTuple):
    """How long a forward pass takes here, in milliseconds.

    Attributes:
        batch: the number of examples in a pass.
        median: the median of the repetitions.
        low: the lower quartile.
        high: the upper quartile.
    """

    batch: int
    median: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelVersion:
    """One version of the model: dense, pruned (zeros in the dense shapes) or slim (smaller arrays).

    Attributes:
        name: `dense`, `pruned` or `slim`.
        scores: on the test examples; the first is the one that counts.
        parameters: the number of parameters.
        nonzero: the number of parameters that are not zero.
        bytes: the size of its weights on disk.
        flops: floating-point operations of a forward pass over one example.
        latency: how long a forward pass takes here; `None`: not measured.
    """

    name: str
    scores: tuple[Score, ...]
    parameters: int
    nonzero: int
    bytes: int
    flops: float
    latency: Latency | None = None


class LayerDensity(NamedTuple):
    """How much of one array of the model is kept.

    Attributes:
        path: its path among the parameters.
        size: the number of its entries, or of its units.
        kept: the number of entries or units that are kept.
        what: what is counted: `weights`, `heads`, `neurons`, `filters` and so on.
    """

    path: str
    size: int
    kept: int
    what: str


class TrainingCurve(NamedTuple):
    """Loss and validation score along one training.

    Attributes:
        name: what was trained: `dense` or `pruned`.
        steps: the numbers of steps after which it was looked at.
        loss: the mean training loss since the look before.
        valid: the score on the validation examples; `None` where it was not computed.
    """

    name: str
    steps: tuple[int, ...]
    loss: tuple[float, ...]
    valid: tuple[float | None, ...]


class ChangedExample(NamedTuple):
    """A test example on which the dense and the pruned model differ.

    Attributes:
        text: the text, or both texts of a pair; empty for a picture.
        picture: the picture as PNG; empty for a text.
        label: the true class or number, in words.
        dense: what the dense model says.
        pruned: what the pruned model says.
        confidence: the pruned model's probability of what it says; `None` for a regression, whose `label`, `dense`
            and `pruned` are numbers.
    """

    text: str
    picture: bytes
    label: str
    dense: str
    pruned: str
    confidence: float | None


class ChangedCounts(NamedTuple):
    """On how many test examples the dense and the pruned model differ.

    Attributes:
        worse: the dense model is right and the pruned one wrong, or of a regression further off.
        better: the pruned model is right and the dense one wrong, or of a regression nearer.
        other: both are wrong, or of a regression equally far off.
    """

    worse: int
    better: int
    other: int


class SearchTrial(NamedTuple):
    """One attempt of a search for the smallest model that is good enough.

    Attributes:
        amount: the share that was removed.
        score: the score on the validation examples.
        enough: whether that was good enough.
    """

    amount: float
    score: float
    enough: bool


class WrittenFile(NamedTuple):
    """A file or folder beside the report.

    Attributes:
        path: its path relative to the report.
        what: what it is and how it is loaded, in a sentence.
        bytes: its size.
    """

    path: str
    what: str
    bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelReport:
    """All that `report.html`, `report.md` and `report.json` say of a pruned model.

    Attributes:
        title: the heading.
        facts: what was done with what, as pairs of a name and a value in words: checkpoint, data, goal, method.
        versions: the dense model, the pruned one and, if there is one, the slim one.
        layers: how much of each array is kept, in the order of depth.
        curves: the trainings.
        examples: test examples on which the answer changed; the report shows at most 20 of each kind.
        trials: the attempts of a search, if there was one, in the order in which they were made.
        files: what was written beside the report.
        notes: sentences that a reader should know, such as that an interval is wide.
        difference: the pruned model's first score less the dense model's; `None`: not known.
        changed: how many examples changed; `None`: `examples` are all of them.
        target: the validation score that a trial of the search had to reach; `None`: there was no search.
        valid_metric: the metric of the curves' validation scores and of the trials; empty: that of the first score.

    Raises:
        ValueError: if the first two versions are not `dense` and `pruned` with a score each, a layer keeps more than
            it has, or a curve's lengths differ.
    """

    title: str
    facts: tuple[tuple[str, str], ...]
    versions: tuple[ModelVersion, ...]
    layers: tuple[LayerDensity, ...] = ()
    curves: tuple[TrainingCurve, ...] = ()
    examples: tuple[ChangedExample, ...] = ()
    trials: tuple[SearchTrial, ...] = ()
    files: tuple[WrittenFile, ...] = ()
    notes: tuple[str, ...] = ()
    difference: ScoreDifference | None = None
    changed: ChangedCounts | None = None
    target: float | None = None
    valid_metric: str = ""

    def __post_init__(self) -> None:
        names = [v.name for v in self.versions]
        if names[:2] != ["dense", "pruned"] or names[2:] not in ([], ["slim"]):
            raise ValueError(f"versions are {names}; give dense, pruned and, if there is one, slim, in this order")
        without = [v.name for v in self.versions[:2] if not v.scores]
        if without:
            raise ValueError(f"no score of {without}; give at least one score for the dense and the pruned version")
        for layer in self.layers:
            if not 0 <= layer.kept <= layer.size:
                raise ValueError(f"layer {layer.path!r} keeps {layer.kept} of {layer.size}; give from 0 to all of them")
        for curve in self.curves:
            lengths = {len(curve.steps), len(curve.loss), len(curve.valid)}
            if len(lengths) > 1:
                raise ValueError(
                    f"the curve of {curve.name!r} has {len(curve.steps)} steps, {len(curve.loss)} losses and "
                    f"{len(curve.valid)} validation scores; give as many of each, with None where there is none"
                )
