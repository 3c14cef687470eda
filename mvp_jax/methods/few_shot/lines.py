"""The table of the few-shot methods: Meta-Vote Pruning, its baselines and its controls; a new one is one line here."""

import dataclasses
from typing import Any

from mvp_jax.methods.few_shot import api, ifp, metasoup, mvp, oneshot, reptile, select
from mvp_jax.methods.line import ComparisonRole, Line, fixed
from mvp_jax.models import resnet
from mvp_jax.models.api import Model


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewShotDefaults:
    """What the few-shot methods of one comparison have in common, from which each takes its settings.

    Attributes:
        tuning: how every method fits its head and fine-tunes; it takes the place of the other settings' `tuning`.
        search: settings of iterative filter pruning.
        vote: settings of the meta-vote, with which its variants and controls run too.
        selection: settings of Meta-Vote Pruning with a selected start; `vote` takes the place of its own.
        weak: settings of the meta-soup.
        universal: settings of Reptile with iterative hard thresholding.
        examples: one-shot scores are computed on the first `examples` training examples.

    Raises:
        ValueError: if the vote is followed by pruning rounds: methods are compared at the final ratio.
    """

    tuning: api.Tuning = dataclasses.field(default_factory=api.Tuning)
    search: ifp.Settings = dataclasses.field(default_factory=ifp.Settings)
    vote: mvp.Settings = dataclasses.field(default_factory=mvp.Settings)
    selection: select.Settings = dataclasses.field(default_factory=select.Settings)
    weak: metasoup.Settings = dataclasses.field(default_factory=metasoup.Settings)
    universal: reptile.Settings = dataclasses.field(default_factory=reptile.Settings)
    examples: int = 512

    def __post_init__(self) -> None:
        if self.vote.rounds:
            raise ValueError("methods are compared at the final ratio; set vote.rounds=0")


def _vote(given: FewShotDefaults) -> mvp.Settings:
    return dataclasses.replace(given.vote, tuning=given.tuning)


def _anchored(given: FewShotDefaults) -> mvp.Settings:
    return dataclasses.replace(_vote(given), k=max(2, given.vote.k))


def _selected(given: FewShotDefaults) -> select.Settings:
    return dataclasses.replace(given.selection, vote=_vote(given))


def _ifp(given: FewShotDefaults) -> ifp.Settings:
    return dataclasses.replace(given.search, tuning=given.tuning)


def _ifp_10x(given: FewShotDefaults) -> ifp.Settings:
    # At ten times the budget only the end is of interest.
    return dataclasses.replace(_ifp(given), tuning=dataclasses.replace(given.tuning, looks=given.tuning.looks[-1:]))


def _metasoup(given: FewShotDefaults) -> metasoup.Settings:
    return dataclasses.replace(given.weak, vote=_vote(given))


def _reptile(given: FewShotDefaults) -> reptile.Settings:
    return dataclasses.replace(given.universal, tuning=given.tuning)


def _oneshot(given: FewShotDefaults) -> oneshot.Settings:
    return oneshot.Settings(examples=given.examples, tuning=given.tuning)


def _voting(
    name: str, slots: mvp.MetaVote, title: str, summary: str, role: ComparisonRole, settings: Any = _vote
) -> Line:
    needs = frozenset({"neighbours"})
    return Line(mvp.by(slots, name), settings, summary, kind="few_shot", title=title, role=role, needs=needs)


def _scored(score: oneshot.UnitCriterion, title: str, summary: str, **more: Any) -> Line:
    run = fixed(oneshot.oneshot, oneshot.Settings, score=score)
    return Line(run, _oneshot, summary, kind="few_shot", title=title, **more)


def _has_batch_norm(model: Model) -> bool:
    return isinstance(model.config, resnet.ResNetConfig)


LINES: dict[str, Line] = {
    "dense": Line(
        oneshot.dense, _oneshot, "no unit pruned: the reference", kind="few_shot", title="dense", role="reference"
    ),
    "mvp": _voting(
        "mvp",
        mvp.VOTE,
        "MVP",
        "Meta-Vote Pruning: the nearest tasks elect the units, and the weights start from the mean of these tasks",
        "proposed",
    ),
    "mvp_select": Line(
        select.select,
        _selected,
        "the leave-one-out error on the task's examples selects a start among copies of near entries, votes and means",
        kind="few_shot",
        title="MVP, selected start",
        role="proposed",
        needs=frozenset({"neighbours"}),
        uses=frozenset({"universal"}),
    ),
    "mvp_anchored": _voting(
        "mvp_anchored",
        mvp.MetaVote(elect=mvp.anchored, weights=mvp.anchor),
        "MVP, anchored",
        "starts from the nearest entry; the other entries vote on its doubtful and its missing units",
        "variant",
        _anchored,
    ),
    "mvp_weighted": _voting(
        "mvp_weighted",
        mvp.MetaVote(weigh=mvp.by_similarity),
        "MVP, weighted by similarity",
        "votes and means are weighted by similarity",
        "variant",
    ),
    "ifp": Line(
        ifp.ifp, _ifp, "iterative filter pruning at the same number of steps", kind="few_shot", title="IFP, same steps"
    ),
    "ifp_10x": Line(
        fixed(ifp.ifp, ifp.Settings, budget=10),
        _ifp_10x,
        "iterative filter pruning at ten times the steps",
        kind="few_shot",
        title="IFP, ten times the steps",
    ),
    "copy_nearest": _voting(
        "copy_nearest",
        mvp.COPY,
        "copy of the nearest",
        "control: a copy of the nearest entry, mask and weights",
        "control",
    ),
    "copy_random": _voting(
        "copy_random",
        dataclasses.replace(mvp.COPY, voters=mvp.random),
        "copy of a random entry",
        "control: a copy of a random entry",
        "control",
    ),
    "copy_farthest": _voting(
        "copy_farthest",
        dataclasses.replace(mvp.COPY, voters=mvp.farthest),
        "copy of the farthest",
        "control: a copy of the farthest entry",
        "control",
    ),
    "vote_farthest": _voting(
        "vote_farthest",
        mvp.MetaVote(voters=mvp.farthest),
        "vote of the farthest",
        "control: the farthest tasks vote",
        "control",
    ),
    "vote_universal": _voting(
        "vote_universal",
        mvp.MetaVote(voters=mvp.everyone),
        "vote of the whole bank",
        "control: the whole bank votes",
        "control",
    ),
    "vote_pretrained_weights": _voting(
        "vote_pretrained_weights",
        mvp.MetaVote(weights=mvp.pretrained),
        "vote, pre-trained weights",
        "control: the elected units keep their pre-trained weights",
        "control",
    ),
    "own_mask_mean_weights": _voting(
        "own_mask_mean_weights",
        mvp.MetaVote(elect=mvp.own),
        "own units, mean weights",
        "control: the task's own one-shot units with the neighbours' mean weights",
        "control",
    ),
    "mean_weights_no_vote": _voting(
        "mean_weights_no_vote",
        mvp.MetaVote(elect=mvp.of_the_mean),
        "mean weights, no vote",
        "control: the units of largest norm in the neighbours' mean weights",
        "control",
    ),
    "metasoup": Line(
        metasoup.metasoup,
        _metasoup,
        "nearest tasks and weak members of the target vote together",
        kind="few_shot",
        title="meta-soup",
        role="variant",
        needs=frozenset({"neighbours"}),
    ),
    "reptile_iht": Line(
        reptile.reptile_iht,
        _reptile,
        "one sub-network learned from all tasks by Reptile with iterative hard thresholding",
        kind="few_shot",
        title="Reptile with IHT",
        needs=frozenset({"universal"}),
    ),
    "random_units": _scored("random", "random units", "units drawn at random", role="random"),
    "oneshot_magnitude": _scored("magnitude", "one-shot magnitude", "units of largest norm"),
    "oneshot_batch_norm_scale": _scored(
        "batch_norm_scale",
        "one-shot batch-norm scale",
        "units of largest batch-norm scale",
        suits=_has_batch_norm,
        unsuited="has no batch norm",
    ),
    "oneshot_activation": _scored("activation", "one-shot activation", "units of largest mean activation on the task"),
    "oneshot_taylor": _scored("taylor", "one-shot Taylor", "units of largest first-order effect on the task's loss"),
    "oneshot_fisher": _scored(
        "fisher", "one-shot Fisher", "units of largest Fisher information of their gates on the task"
    ),
}
"""The line of every few-shot method by its name, which is a key of `METHODS` and a value of a config's `methods`."""
