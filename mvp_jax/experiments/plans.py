"""Checked configs of the jobs that prune, as the library's own types: what their stages need."""

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from mvp_jax.core.patterns import Pattern
from mvp_jax.core.types import Batch, Variables
from mvp_jax.core.units import Group
from mvp_jax.experiments.pretrain_job import PretrainPlan
from mvp_jax.experiments.setup import Setting, Sizes
from mvp_jax.methods import Line, few_shot
from mvp_jax.methods.few_shot import ifp, reptile
from mvp_jax.methods.sparse import isp
from mvp_jax.models.api import Model
from mvp_jax.models.functions import freeze
from mvp_jax.storage import event_files
from mvp_jax.train import metrics, population


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobPlan:
    """Where every job that prunes begins: data, and the pre-trained model or how to make it.

    Attributes:
        setting: pools, classes and tasks.
        model: the dense network.
        checkpoint: where its weights are read from; empty: it is pre-trained here.
        pretraining: how it is pre-trained.
        seed: of everything that is drawn.
        tensorboard: whether curves are written for TensorBoard too.
    """

    setting: Setting
    model: Model
    checkpoint: str
    pretraining: PretrainPlan
    seed: int
    tensorboard: bool = False

    def board(self, folder: Path, *, after: int | None = None) -> contextlib.AbstractContextManager[Any]:
        """Returns a context that gives where curves for TensorBoard go, or `None` if none are asked for.

        Args:
            folder: of the event files.
            after: what an earlier run wrote of later steps is dropped.
        """
        return event_files.Board(folder, after=after) if self.tensorboard else contextlib.nullcontext()


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewShotPlan(JobPlan):
    """A checked config of pruning for few-shot tasks from a bank.

    Attributes:
        groups: whose units are pruned.
        keep: `(group, number of units kept)`.
        ratio: share of the units that is removed.
        steps: fine-tuning steps after which models are judged.
        lines: the methods, by name.
        deliver: the method whose slim models are written.
        defaults: from which each method takes its settings.
        search: how the bank's models are pruned.
        universal: how the one model for all tasks is learned.
        k: neighbours that are shown in the report.
        seeds: of each target.
        mapping: how members are run; see `population.over`.
        chunk: members a call and device.
        mesh: devices to share members out over; `None` for one.
        similarity: by which neighbours are ranked.
        sizes: of tasks.
    """

    groups: tuple[Group, ...]
    keep: tuple[tuple[str, int], ...]
    ratio: float
    steps: tuple[int, ...]
    lines: Mapping[str, Line]
    deliver: str
    defaults: few_shot.FewShotDefaults
    search: ifp.Settings
    universal: reptile.Settings
    k: int
    seeds: int
    mapping: population.MemberMapping
    chunk: int
    mesh: Mesh | None
    similarity: str
    sizes: Sizes

    @property
    def task_model(self) -> Model:
        """The dense model under a head of a task's classes."""
        return self.model.with_classes(self.sizes.classes_per_task)

    @property
    def slim(self) -> Model:
        """The task's model with the units that are kept."""
        return self.task_model.resize(dict(self.keep))

    @property
    def at_once(self) -> int:
        """Members handed to the devices in one call: what is finished after it is kept."""
        return (1 if self.mapping == "loop" else self.chunk) * (1 if self.mesh is None else self.mesh.size)

    def problem(self, variables: Variables, data: Batch) -> few_shot.FewShotProblem:
        """Returns the problem of pruning the pre-trained model for a task's training examples.

        The pre-trained head knows other classes; every method fits its own.
        """
        given = few_shot.problem(self.task_model, variables, data, ratio=self.ratio, groups=self.groups)
        return dataclasses.replace(given, keep=self.keep)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SparsityPlan(JobPlan):
    """A checked config of a comparison at given sparsities.

    Attributes:
        methods: by name.
        sparsities: shares of the weights to remove.
        base: Instant Soup Pruning, from which all budgets follow.
        pattern: what is pruned together.
        seeds: of each target.
        sizes: of the targets.
        round_steps: see `sparse.SparsityDefaults`.
        examples: see `sparse.SparsityDefaults`.
        reference: the method whose masks all others are compared with.
        ours: the method that the table compares all others with.
        keep_rounds: whether the rounds of a method under way are kept too.
        masks_alone: whether masks are judged alone as well.
        zero_shot: a kernel `[F, all classes]` made of texts, whose columns are the heads, frozen. `None`: logistic
            heads, which go on learning.
        metrics: of classes, that are reported beside accuracy; see `metrics.score`.
    """

    methods: tuple[str, ...]
    sparsities: tuple[float, ...]
    base: isp.Settings
    pattern: Pattern
    seeds: int
    sizes: Sizes
    round_steps: int
    examples: int
    reference: str
    ours: str
    keep_rounds: bool
    masks_alone: bool
    zero_shot: np.ndarray | None = None
    metrics: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        metrics.check(self.metrics, max(2, self.sizes.classes_per_task))

    @property
    def task_model(self) -> Model:
        """The dense model under a head of a task's classes, frozen if it was made of texts."""
        model = self.model.with_classes(self.sizes.classes_per_task)
        return model if self.zero_shot is None else freeze(model, model.head)
