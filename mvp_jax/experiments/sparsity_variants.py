"""Instant Soup Pruning, its controls, and what it is compared with: the lines of the table, by name.

Budgets are counted from Instant Soup Pruning's own: its rounds follow from the sparsity and the share of a round, its
main weights train `main` steps in all, its members `K` times `weak` more. What prunes while it trains gets the total;
gradual pruning stands there with the main cost too. Every line then fine-tunes equally long under its final mask.
"""

import dataclasses
from typing import Any, NamedTuple

from mvp_jax.methods import sparse, weak_members
from mvp_jax.methods.sparse import dynamic, gradual, imp, isp, movement, oneshot, soup


class Entry(NamedTuple):
    """A line of the table: which of `methods.METHODS`, and its settings."""

    method: str
    settings: Any


class Cost(NamedTuple):
    """Steps of Instant Soup Pruning before the fine-tuning: `rounds`, of the main weights, and in all."""

    rounds: int
    main: int
    total: int


def cost(problem: sparse.SparsityProblem, settings: isp.Settings) -> Cost:
    """What the exact vote (`mean`) takes for a problem."""
    rounds = max(1, isp.least_rounds(problem, settings))
    main = settings.training.steps_in(problem, settings.epochs)
    weak_steps = settings.training.steps_in(problem, settings.weak_epochs)
    return Cost(rounds, rounds * main, rounds * (main + settings.members * weak_steps))


def lineup(
    problem: sparse.SparsityProblem, base: isp.Settings, *, round_steps: int, examples: int = 512, soups: int = 3
) -> dict[str, Entry]:
    """Every line for a problem.

    Args:
        problem: its sparsity and number of examples set the budgets.
        base: Instant Soup Pruning as it is to be run.
        round_steps: of iterative magnitude pruning and sparse soups: training before and after each cut.
        examples: what data-driven scores look at.
        soups: members of the sparse soups.

    Returns:
        `{name: entry}`.
    """
    training, spend = base.training, cost(problem, base)
    change = dataclasses.replace
    adaptive = training if training.optimizer == "adamw" else change(training, optimizer="adamw", learning_rate=1e-3)
    events = max(spend.rounds, 2)

    def steady(steps: int, **how: Any) -> dict[str, Any]:
        steps = max(steps, events)
        return {"steps": steps, "events": events, "training": training, **how}

    table = {"unpruned": Entry("unpruned", oneshot.Settings(training=training))}
    # Synaptic flow needs a network that can be made linear; attention and LayerNorm cannot.
    transformer = hasattr(problem.model.config, "attention_scale")
    for score in oneshot.SCORES:
        if score == "synflow" and transformer:
            continue
        table[score] = Entry("once", oneshot.Settings(score=score, examples=examples, training=training))
    table |= {
        "gradual_main": Entry("gradual", gradual.Settings(**steady(spend.main))),
        "gradual": Entry("gradual", gradual.Settings(**steady(spend.total))),
        "movement": Entry("movement", movement.Settings(**steady(spend.total) | {"training": adaptive})),
        "movement_soft": Entry(
            "movement", movement.Settings(kind="soft", **steady(spend.total) | {"training": adaptive})
        ),
        "set": Entry("dynamic", dynamic.Settings(**steady(spend.total, grow="random"))),
        "rigl": Entry("dynamic", dynamic.Settings(**steady(spend.total, grow="gradient"))),
    }
    for name, rewind in (("imp_finetune", "none"), ("imp", "weights"), ("imp_rate", "rate")):
        settings = imp.Settings(rounds=spend.rounds, steps=round_steps, rewind=rewind, training=training)  # type: ignore[arg-type]
        table[name] = Entry("imp", settings)
    sms = soup.SparseSoupSettings(
        members=soups, rounds=min(3, spend.rounds), first=round_steps, steps=round_steps, training=training,
        mapping=base.mapping, mesh=base.mesh,
    )  # fmt: skip
    table |= {"sms": Entry("sparse_soups", sms), "sms_greedy": Entry("sparse_soups", change(sms, recipe="greedy"))}
    instant = soup.InstantSoupSettings(
        members=base.members, rounds=spend.rounds, epochs=base.epochs, weak_epochs=base.weak_epochs,
        diversity=base.diversity, inherit=base.inherit, training=training, mapping=base.mapping, mesh=base.mesh,
    )  # fmt: skip
    varied = change(
        base.diversity, learning_rate=(0.25, 4.0), label_smoothing=(0.0, 0.2), augment=(0.0, 1.0),
        weight_decay=(0.0, 0.1),
    )  # fmt: skip
    variants = {
        "isp": base,
        "isp_union": change(base, vote="union"),
        "isp_majority": change(base, vote="majority"),
        "isp_intersection": change(base, vote="intersection"),
        "isp_score": change(base, vote="score"),
        "isp_one": change(base, members=1),
        "isp_soup": change(base, soup="mean"),
        "isp_soup_kept": change(base, soup="kept"),
        "isp_soup_alike": change(base, soup="mean", diversity=weak_members.NONE),
        "isp_taylor": change(base, rank="taylor"),
        "isp_taylor_soup": change(base, rank="taylor", soup="mean"),
        "isp_varied": change(base, diversity=varied),
        "isp_varied_soup": change(base, diversity=varied, soup="mean"),
        "isp_published": isp.Settings.published(change(training, warmup=0), mapping=base.mapping, mesh=base.mesh),
    }
    table["instant_soup"] = Entry("instant_soup", instant)
    if base.members > 1:  # one alone is neither stable nor not
        variants |= {
            "isp_stability": change(base, rank="stability"),
            "isp_stability_soup": change(base, rank="stability", soup="mean"),
        }
    return table | {name: Entry("isp", settings) for name, settings in variants.items()}
