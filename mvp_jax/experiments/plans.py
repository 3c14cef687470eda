"""Plans: the checked configs of the jobs that prune, in the library's own types instead of ConfigDict."""

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
from mvp_jax.experiments.rates import RateSearch
from mvp_jax.experiments.setup import Setting, Sizes
from mvp_jax.methods import Line, few_shot
from mvp_jax.methods.few_shot import ifp, reptile
from mvp_jax.methods.sparse import gradual, gradual_soup, isp
from mvp_jax.models.api import Model
from mvp_jax.models.functions import freeze
from mvp_jax.storage import event_files
from mvp_jax.train import metrics, population


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobPlan:
    """What the plans of all jobs that prune have: the data, and the pre-trained model or how it is made.

    Attributes:
        setting: the pools of examples, the classes and the tasks.
        model: the dense network.
        checkpoint: the file or folder that its weights are read from; empty: it is pre-trained here.
        pretraining: how it is pre-trained.
        seed: the seed of everything that is drawn.
        tensorboard: whether curves are also written for TensorBoard.
        rates: how each method's learning rate is chosen.
    """

    setting: Setting
    model: Model
    checkpoint: str
    pretraining: PretrainPlan
    seed: int
    tensorboard: bool = False
    rates: RateSearch = dataclasses.field(default_factory=RateSearch)

    def board(self, folder: Path, *, after: int | None = None) -> contextlib.AbstractContextManager[Any]:
        """Returns a context that gives where curves for TensorBoard go, or `None` if none are asked for.

        Args:
            folder: of the event files.
            after: what an earlier run wrote of later steps is dropped.
        """
        return event_files.Board(folder, after=after) if self.tensorboard else contextlib.nullcontext()


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewShotPlan(JobPlan):
    """The plan of the job `mvp`: pruning for few-shot tasks from a bank.

    A member is a bank task, or a target with a seed.

    Attributes:
        groups: the groups whose units are pruned.
        keep: `(group, number of units kept)` for each of them.
        ratio: the fraction of the units that is removed.
        steps: the numbers of fine-tuning steps after which models are judged, rising from 0.
        lines: the registry's lines of the methods that run, by name.
        deliver: the name of the method whose slim models are written.
        defaults: what each method makes its settings of.
        search: how the bank's models are pruned.
        universal: how the one pruned model for all tasks is learned.
        k: the number of neighbours that are listed in `neighbours.json`.
        seeds: the number of repetitions of each target.
        mapping: how members are run: `vmap`: at once; `map`: in turn in one program; `loop`: in turn by one call each;
            `auto`: whichever suits the device.
        chunk: the number of members that one device runs in one call.
        mesh: the devices that members are shared out over; `None`: one device.
        similarity: the name of the similarity that ranks neighbours, one of `bank_build.SIMILARITIES`.
        sizes: the numbers of classes and examples of tasks.
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
        """The dense model, with a task's number of classes."""
        return self.model.with_classes(self.sizes.classes_per_task)

    @property
    def slim(self) -> Model:
        """The slim model: the dense one, with a task's number of classes and only the units that are kept."""
        return self.task_model.resize(dict(self.keep))

    @property
    def at_once(self) -> int:
        """The number of members that all devices run in one call, after which their results are written."""
        return (1 if self.mapping == "loop" else self.chunk) * (1 if self.mesh is None else self.mesh.size)

    def problem(self, variables: Variables, data: Batch) -> few_shot.FewShotProblem:
        """Returns the problem of pruning the pre-trained model for a task.

        Args:
            variables: the variables of the pre-trained model; its head is for other classes and is replaced.
            data: the task's training examples, `{"x": [N, ...], "y": int32[N]}`.
        """
        given = few_shot.problem(self.task_model, variables, data, ratio=self.ratio, groups=self.groups)
        return dataclasses.replace(given, keep=self.keep)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SparsityPlan(JobPlan):
    """The plan of the job `sparsity`: a comparison of methods at given sparsities.

    Attributes:
        methods: the names of the methods that run.
        sparsities: the fractions of the weights to remove, rising, each in (0, 1).
        base: the settings of Instant Soup Pruning, from which the training budgets of all methods follow.
        pattern: what is removed together: single weights, channels or units.
        seeds: the number of repetitions of each target.
        sizes: the numbers of classes and examples of targets.
        round_steps: the number of training steps of iterative magnitude pruning and of sparse soups before and after
            each cut.
        examples: the number of training examples that data-driven scores are computed on.
        serial_steps: the serial training steps of the gradual soup before the fine-tuning, and of what is compared with
            it; `None`: as many as Instant Soup Pruning takes.
        events: how many times these methods prune; `None`: as many as Instant Soup Pruning has rounds.
        averaging: how the gradual soup averages its members.
        reference: the name of the method whose masks those of all others are compared with.
        ours: the name of the method whose accuracy that of all others is compared with in the table.
        keep_rounds: whether a method's state is saved after each round, so that a killed method goes on within its run.
        masks_alone: whether masks are also judged alone: on the pre-trained weights, fine-tuned.
        zero_shot: the kernel `[F, all classes]` of a frozen zero-shot head, made of texts; a target's head has the
            columns of its classes. `None`: heads are fitted to each target and go on learning.
        metrics: the names of metrics that are reported beside accuracy, such as `f1`.

    Raises:
        ValueError: for an unknown metric, or one that does not fit the number of classes, or more `events` than
            `serial_steps`.
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
    serial_steps: int | None = None
    events: int | None = None
    averaging: gradual_soup.Settings = dataclasses.field(default_factory=gradual_soup.Settings)
    zero_shot: np.ndarray | None = None
    metrics: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        metrics.check(self.metrics, max(2, self.sizes.classes_per_task))
        gradual.check_events(self.serial_steps, self.events)

    @property
    def task_model(self) -> Model:
        """The dense model, with a task's number of classes; its head is frozen if it was made of texts."""
        model = self.model.with_classes(self.sizes.classes_per_task)
        return model if self.zero_shot is None else freeze(model, model.head)
