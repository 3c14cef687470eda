"""The methods that prune to a sparsity by name: Instant Soup Pruning, its controls, and what it is compared with.

Budgets are counted from Instant Soup Pruning's own: its rounds follow from the sparsity and from what a round prunes,
its main weights train `main` steps in all, its members `K` times `weak` more. What prunes while it trains gets the
total; gradual pruning stands there with the main cost too. The gradual soup and what it is compared with count in
serial steps: as many as Instant Soup Pruning takes on a device for each member, unless they are given. Every method
then fine-tunes equally long under its final mask.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from mvp_jax.methods import weak_members
from mvp_jax.methods.line import ComparisonRole, Line, fixed
from mvp_jax.methods.sparse import dynamic, gradual, gradual_soup, imp, isp, movement, oneshot, soup
from mvp_jax.methods.sparse.problem import SparsityProblem, SparsityTraining
from mvp_jax.models.api import Model


class SearchBudget(NamedTuple):
    """What Instant Soup Pruning takes before the fine-tuning.

    Attributes:
        rounds: how often it prunes.
        main: steps of the main weights.
        total: steps of the main weights and of all members.
        serial: steps that follow one another: of the main weights and of one member.
    """

    rounds: int
    main: int
    total: int
    serial: int


def budget(problem: SparsityProblem, settings: isp.Settings) -> SearchBudget:
    """Returns what Instant Soup Pruning with the exact vote (`mean`) takes for a problem."""
    rounds = max(1, isp.least_rounds(problem, settings))
    main = settings.training.steps_in(problem, settings.epochs)
    weak_steps = settings.training.steps_in(problem, settings.weak_epochs)
    total = rounds * (main + settings.members * weak_steps)
    return SearchBudget(rounds, rounds * main, total, rounds * (main + weak_steps))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SparsityDefaults:
    """What the methods of one comparison at a sparsity have in common, from which each takes its settings.

    Attributes:
        problem: its sparsity and number of examples set the budgets.
        base: settings of Instant Soup Pruning; its `training` is every method's.
        round_steps: training steps of iterative magnitude pruning and of sparse soups before and after each cut.
        examples: how many training examples data-driven scores look at.
        soups: members of the sparse soups.
        serial_steps: serial training steps of the gradual soup while it prunes; `None`: those of Instant Soup Pruning.
        events: how many times it averages members and prunes, never more than it has steps; `None`: as many as Instant
            Soup Pruning has rounds.
        averaging: how the gradual soup averages its members: its settings, of which `rank`, `outer_momentum`,
            `outer_rate` and `souped_from` are taken.
        rate: a number by which every learning rate of the method is multiplied: that of `base`, or a method's own.

    Raises:
        ValueError: if `rate` is not positive, or for more events than steps.
    """

    problem: SparsityProblem
    base: isp.Settings
    round_steps: int
    examples: int = 512
    soups: int = 3
    serial_steps: int | None = None
    events: int | None = None
    averaging: gradual_soup.Settings = dataclasses.field(default_factory=gradual_soup.Settings)
    rate: float = 1.0

    def __post_init__(self) -> None:
        gradual.check_events(self.serial_steps, self.events)
        if not self.rate > 0:
            raise ValueError(f"rate must be positive, as it multiplies learning rates, got {self.rate}")

    @functools.cached_property
    def spend(self) -> SearchBudget:
        """What Instant Soup Pruning takes."""
        return budget(self.problem, self.base)

    @property
    def training(self) -> SparsityTraining:
        """How every method trains."""
        return self.base.training


def _oneshot(given: SparsityDefaults) -> oneshot.Settings:
    return oneshot.Settings(examples=given.examples, training=given.training)


def _steady(given: SparsityDefaults, steps: int) -> dict[str, Any]:
    """Settings of what prunes while it trains: as many cuts as Instant Soup Pruning has rounds."""
    events = max(given.spend.rounds, 2)
    return {"steps": max(steps, events), "events": events, "training": given.training}


def _gradual(given: SparsityDefaults) -> gradual.Settings:
    return gradual.Settings(**_steady(given, given.spend.total))


def _gradual_main(given: SparsityDefaults) -> gradual.Settings:
    return gradual.Settings(**_steady(given, given.spend.main))


def _serial(given: SparsityDefaults, times: int = 1) -> dict[str, Any]:
    """Settings of what is compared with the gradual soup: `times` its serial steps, and as many cuts."""
    events = given.spend.rounds if given.events is None else given.events
    steps = given.spend.serial if given.serial_steps is None else given.serial_steps
    return {"steps": times * steps, "events": min(events, steps), "training": given.training}


def _gradual_soup(given: SparsityDefaults) -> gradual_soup.Settings:
    base = given.base
    return dataclasses.replace(
        given.averaging, **_serial(given), members=base.members, mapping=base.mapping, mesh=base.mesh
    )


def _gradual_serial(given: SparsityDefaults) -> gradual.Settings:
    return gradual.Settings(**_serial(given))


def _gradual_wide(given: SparsityDefaults) -> gradual.Settings:
    return gradual.Settings(**_serial(given), workers=given.base.members)


def _gradual_long(given: SparsityDefaults) -> gradual.Settings:
    return gradual.Settings(**_serial(given, given.base.members))


def _movement(given: SparsityDefaults) -> movement.Settings:
    training = given.training
    if training.optimizer != "adamw":  # scores that are learned want an adaptive rate
        training = dataclasses.replace(training, optimizer="adamw", learning_rate=1e-3)
    return movement.Settings(**_steady(given, given.spend.total) | {"training": training})


def _dynamic(given: SparsityDefaults) -> dynamic.Settings:
    return dynamic.Settings(**_steady(given, given.spend.total))


def _imp(given: SparsityDefaults) -> imp.Settings:
    return imp.Settings(rounds=given.spend.rounds, steps=given.round_steps, training=given.training)


def _sms(given: SparsityDefaults) -> soup.SparseSoupSettings:
    return soup.SparseSoupSettings(
        members=given.soups,
        rounds=min(3, given.spend.rounds),
        first=given.round_steps,
        steps=given.round_steps,
        training=given.training,
        mapping=given.base.mapping,
        mesh=given.base.mesh,
    )


def _instant(given: SparsityDefaults) -> soup.InstantSoupSettings:
    base = given.base
    return soup.InstantSoupSettings(
        members=base.members,
        rounds=given.spend.rounds,
        epochs=base.epochs,
        weak_epochs=base.weak_epochs,
        diversity=base.diversity,
        inherit=base.inherit,
        training=base.training,
        mapping=base.mapping,
        mesh=base.mesh,
    )


def _isp(given: SparsityDefaults) -> isp.Settings:
    return given.base


def _varied(given: SparsityDefaults) -> isp.Settings:
    diversity = dataclasses.replace(
        given.base.diversity,
        learning_rate=(0.25, 4.0),
        label_smoothing=(0.0, 0.2),
        augment=(0.0, 1.0),
        weight_decay=(0.0, 0.1),
    )
    return dataclasses.replace(given.base, diversity=diversity)


def _published(given: SparsityDefaults) -> isp.Settings:
    base = given.base
    training = dataclasses.replace(base.training, warmup=0)
    return isp.Settings.published(training, mapping=base.mapping, mesh=base.mesh)


def _stable(given: SparsityDefaults) -> isp.Settings:
    # A single member has no deviation to rank by.
    return dataclasses.replace(given.base, members=max(2, given.base.members))


def _line(
    run: Callable[..., Any], settings: Callable[[SparsityDefaults], Any], title: str, summary: str, **more: Any
) -> Line:
    return Line(run, functools.partial(_at_rate, settings), summary, kind="sparse", title=title, **more)


def _at_rate(make: Callable[[SparsityDefaults], Any], given: SparsityDefaults) -> Any:
    """Returns a method's settings with its learning rate multiplied; members' rates are multiples of this one."""
    settings = make(given)
    if given.rate == 1.0:
        return settings
    training = settings.training
    scaled = dataclasses.replace(training, learning_rate=given.rate * training.learning_rate)
    return dataclasses.replace(settings, training=scaled)


def _vote(
    title: str,
    summary: str,
    settings: Callable[[SparsityDefaults], Any] = _isp,
    *,
    role: ComparisonRole = "variant",
    **fields: Any,
) -> Line:
    run = fixed(isp.isp, isp.Settings, **fields) if fields else isp.isp
    return _line(run, settings, title, summary, role=role)


def _score(score: oneshot.WeightCriterion, title: str, summary: str, **more: Any) -> Line:
    return _line(fixed(oneshot.oneshot, oneshot.Settings, score=score), _oneshot, title, summary, **more)


def _weight_score(score: oneshot.WeightCriterion, title: str, summary: str, **more: Any) -> Line:
    return _score(score, title, summary, only_weights=True, **more)


def _can_be_linear(model: Model) -> bool:
    """Whether synaptic flow's linear network exists: attention and LayerNorm cannot be made linear."""
    return not hasattr(model.config, "attention_scale")


LINES: dict[str, Line] = {
    "unpruned": _line(oneshot.unpruned, _oneshot, "unpruned", "no weight pruned: the reference", role="reference"),
    "magnitude": _score("magnitude", "magnitude, one-shot", "the largest weights stay, at once"),
    "random": _score("random", "random weights", "weights drawn at random stay", role="random"),
    "taylor": _score("taylor", "Taylor, one-shot", "weights of largest squared first-order effect on the loss stay"),
    "fisher": _weight_score("fisher", "Fisher, one-shot", "weights of largest diagonal Fisher information stay"),
    "snip": _weight_score("snip", "SNIP", "SNIP: weights of largest absolute first-order effect on the loss stay"),
    "grasp": _weight_score("grasp", "GraSP", "GraSP: weights whose removal reduces the gradient's norm most stay"),
    "synflow": _weight_score(
        "synflow",
        "SynFlow",
        "SynFlow: synaptic flow, without data",
        suits=_can_be_linear,
        unsuited="cannot be made linear",
    ),
    "wanda": _weight_score(
        "wanda", "Wanda", "Wanda: weights of largest magnitude times input norm stay, in every output"
    ),
    "gradual_main": _line(
        gradual.gradual, _gradual_main, "gradual, main cost of ISP", "gradual magnitude pruning at the main cost of ISP"
    ),
    "gradual": _line(
        gradual.gradual, _gradual, "gradual, total cost of ISP", "gradual magnitude pruning at the total cost of ISP"
    ),
    "gradual_soup": _line(
        gradual_soup.gradual_soup,
        _gradual_soup,
        "gradual soup",
        "gradual soup: after each cut, many members continue to train from their pruned mean",
        role="proposed",
    ),
    "gradual_serial": _line(
        gradual.gradual,
        _gradual_serial,
        "gradual, same serial steps",
        "control: gradual magnitude pruning of a single member at the serial steps of the gradual soup",
        role="control",
    ),
    "gradual_wide": _line(
        gradual.gradual,
        _gradual_wide,
        "gradual, K-fold batch",
        "gradual magnitude pruning at the serial steps of the gradual soup, with a batch K times as large",
    ),
    "gradual_long": _line(
        gradual.gradual,
        _gradual_long,
        "gradual, K-fold steps",
        "gradual magnitude pruning at the total cost of the gradual soup: K times the serial steps",
    ),
    "movement": _line(
        movement.movement, _movement, "movement", "movement pruning at the total cost of ISP", only_weights=True
    ),
    "movement_soft": _line(
        fixed(movement.movement, movement.Settings, kind="soft"),
        _movement,
        "movement, soft",
        "soft movement pruning at the total cost of ISP",
        only_weights=True,
    ),
    "set": _line(
        fixed(dynamic.dynamic, dynamic.Settings, grow="random"),
        _dynamic,
        "SET",
        "SET: weights of small magnitude are removed, and others grow at random",
    ),
    "rigl": _line(
        fixed(dynamic.dynamic, dynamic.Settings, grow="gradient"),
        _dynamic,
        "RigL",
        "RigL: weights of small magnitude are removed, and those of large gradient grow",
    ),
    "imp_finetune": _line(
        fixed(imp.imp, imp.Settings, rewind="none"),
        _imp,
        "IMP, no rewinding",
        "iterative magnitude pruning without rewinding",
    ),
    "imp": _line(
        fixed(imp.imp, imp.Settings, rewind="weights"),
        _imp,
        "IMP, weights rewound",
        "iterative magnitude pruning with rewound weights",
    ),
    "imp_rate": _line(
        fixed(imp.imp, imp.Settings, rewind="rate"),
        _imp,
        "IMP, rate rewound",
        "iterative magnitude pruning with a rewound learning rate",
    ),
    "sms": _line(soup.sparse_soups, _sms, "sparse model soup", "sparse model soups"),
    "sms_greedy": _line(
        fixed(soup.sparse_soups, soup.SparseSoupSettings, recipe="greedy"),
        _sms,
        "sparse model soup, greedy",
        "sparse model soups with greedily chosen members",
    ),
    "instant_soup": _line(
        soup.instant_soup,
        _instant,
        "instant model soup",
        "instant model soup: the mean weights of members, pruned in one pass",
    ),
    "isp": _vote("ISP", "Instant Soup Pruning: many weak masks vote", role="proposed"),
    "isp_union": _vote("ISP, union", "a weight is removed only if every member drops it", vote="union"),
    "isp_majority": _vote("ISP, majority", "a weight stays if half of the members keep it", vote="majority"),
    "isp_intersection": _vote("ISP, intersection", "a weight stays only if every member keeps it", vote="intersection"),
    "isp_score": _vote(
        "mean scores, no vote", "control: the members' mean scores decide, without a vote", vote="score", role="control"
    ),
    "isp_one": _vote(
        "ISP, a single member", "control: Instant Soup Pruning with a single member", members=1, role="control"
    ),
    "isp_soup": _vote("ISP, mean weights", "the main weights become the members' mean", soup="mean"),
    "isp_soup_kept": _vote(
        "ISP, mean where kept", "each main weight becomes the mean of the members that keep it", soup="kept"
    ),
    "isp_soup_alike": _vote(
        "ISP, mean of alike members",
        "control: the main weights become the mean of members that differ only in their batches",
        soup="mean",
        diversity=weak_members.NONE,
        role="control",
    ),
    "isp_taylor": _vote(
        "ISP, by Taylor", "members rank weights by their first-order effect on the loss", rank="taylor"
    ),
    "isp_taylor_soup": _vote(
        "ISP, by Taylor, mean weights",
        "members rank weights by their first-order effect on the loss; the main weights become the members' mean",
        rank="taylor",
        soup="mean",
    ),
    "isp_varied": _vote("ISP, varied members", "members with more varied settings vote", _varied),
    "isp_varied_soup": _vote(
        "ISP, varied, mean weights",
        "members with more varied settings vote; the main weights become their mean",
        _varied,
        soup="mean",
    ),
    "isp_published": _vote("ISP, published settings", "Instant Soup Pruning with the published settings", _published),
    "isp_stability": _vote(
        "ISP, by disagreement", "weights on which members disagree are removed", _stable, rank="stability"
    ),
    "isp_stability_soup": _vote(
        "ISP, disagreement, means",
        "weights on which members disagree are removed; the main weights become the members' mean",
        _stable,
        rank="stability",
        soup="mean",
    ),
}
"""Every method to a sparsity: `METHODS[name]` runs it, a config's `methods` names it."""
