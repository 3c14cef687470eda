"""The job `mvp`: runs every few-shot method on every target, from one bank, and makes the rows of the results table.

A member is one target with one seed. All members of a chunk run at once, method after method. Since every method ends
in the same slim shapes, programs are compiled for the first method and reused by the others. Each pair of a method and
a chunk is written when it is done, so that a killed job goes on where it stopped.

With `rates.factors` every method first runs at several learning rates on further targets, and takes the best of them.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mvp_jax import bank as banks
from mvp_jax.compact import cost
from mvp_jax.core.types import Array, Batch, Key, Variables
from mvp_jax.data import tasks
from mvp_jax.experiments import few_shot_report, rates, universal
from mvp_jax.experiments.bank_build import Stacked, similarities
from mvp_jax.experiments.plans import FewShotPlan
from mvp_jax.experiments.setup import batch_of
from mvp_jax.methods import Line, Pruned, few_shot
from mvp_jax.models.api import Model, replace_head
from mvp_jax.parallel import processes
from mvp_jax.storage import records, resume
from mvp_jax.train import evaluation, population


class Members(NamedTuple):
    """The members of a job or of a chunk, stacked; every array leads with their number `M`.

    Attributes:
        train: training examples, `{"x": [M, n, ...], "y": int32[M, n]}`; methods see no others.
        valid: validation examples, in the same form.
        test: test examples, in the same form; none of the members on which learning rates are chosen.
        similarity: how near each of the bank's `T` entries is to the member's target, `float[M, T]`, from `train`.
        key: `[M]`, a random key for each member.
    """

    train: Batch
    valid: Batch
    test: Batch
    similarity: Array
    key: Key


def members_of(
    plan: FewShotPlan, variables: Variables, bank: Stacked, *, tuning: bool = False
) -> tuple[list[tuple[str, int]], Members]:
    """Returns the `(target, seed)` of every member, and the members' data.

    Args:
        plan: the job's plan.
        variables: the variables of the pre-trained model.
        bank: the bank, for the similarities.
        tuning: whether the members are those on which learning rates are chosen; they have no test examples.
    """
    names, data, near = [], [], []
    pools, first = plan.setting.pools, rates.SEEDS_FROM
    seeds = range(first, first + plan.rates.seeds) if tuning else range(plan.seeds)
    for target in plan.setting.tuning if tuning else plan.setting.targets:
        for seed in seeds:
            own = tasks.materialise(
                target,
                pools.target,
                shots=plan.sizes.shots,
                valid=plan.sizes.valid,
                test=None if tuning else plan.sizes.test,
                valid_from=pools.valid,
                test_from=None if tuning else pools.test,
                seed=plan.seed + seed,
            )
            names.append((target.name, seed))
            data.append(own)
            near.append(similarities(plan, variables, bank, batch_of(own.train)))
    stacked = tasks.stack(data)
    return names, Members(
        train=batch_of(stacked.train),
        valid=batch_of(stacked.valid),
        test=batch_of(stacked.test),
        similarity=jnp.stack(near),
        key=jax.random.split(jax.random.key(plan.seed + (5 if tuning else 2)), len(names)),
    )


def voters_of(plan: FewShotPlan, variables: Variables, bank: Stacked) -> few_shot.Neighbours:
    """Returns the whole bank as voters: every entry's arrays in the dense model's shapes.

    Their similarity is 0; each member's own takes its place when a method is run.

    Args:
        plan: the job's plan.
        variables: the variables of the pre-trained model.
        bank: the bank.
    """
    return banks.in_dense_shapes(
        bank.slim,
        bank.units,
        bank.saliency,
        jnp.zeros(len(bank.entries)),
        groups=plan.groups,
        like=replace_head(variables, plan.task_model),
        head=plan.model.head,
    )


# What is done for each member, as instances that compare by value, so that equal work reuses its compiled program.


@dataclasses.dataclass(frozen=True)
class _Prune:
    line: Line
    defaults: few_shot.FewShotDefaults

    def __call__(
        self, data: Batch, similarity: Array, key: Key, template: few_shot.FewShotProblem, rate: Array
    ) -> Pruned:
        # The rate is an argument, so that another one compiles nothing where this is traced as a whole.
        settings, near = self.line.settings(_at_rate(self.defaults, rate)), template.neighbours
        if near is not None:
            near = near._replace(similarity=similarity)
        return self.line.run(dataclasses.replace(template, train=data, neighbours=near), settings, key)


def _at_rate(defaults: few_shot.FewShotDefaults, rate: Any) -> few_shot.FewShotDefaults:
    return dataclasses.replace(defaults, tuning=dataclasses.replace(defaults.tuning, learning_rate=rate))


@dataclasses.dataclass(frozen=True)
class _Accuracy:
    model: Model

    def __call__(self, variables: Variables, data: Batch) -> Array:
        accuracy: Array = evaluation.evaluate(self.model, variables, data)["accuracy"]
        return accuracy


class Outcome(NamedTuple):
    """What a method returned for a chunk of `M` members, and how good it is.

    Attributes:
        pruned: the pruned models; every array leads with `M`.
        model: the slim model whose variables `pruned.looks` holds.
        accuracy: `{(fine-tuning steps, split): float[M]}`.
    """

    pruned: Pruned
    model: Model
    accuracy: dict[tuple[int, str], np.ndarray]


def run_line(
    line: Line,
    defaults: few_shot.FewShotDefaults,
    problem: few_shot.FewShotProblem,
    members: Members,
    *,
    mapping: population.MemberMapping = "vmap",
    mesh: Mesh | None = None,
    test: bool = True,
) -> Outcome:
    """Runs one method for all members of a chunk, and returns its models with their accuracies.

    Args:
        line: the method's line of the registry.
        defaults: the settings that the method makes its own from; `defaults.tuning.looks` says after how many
            fine-tuning steps models are judged.
        problem: the problem that all members share, with the whole bank as neighbours; its training examples and
            similarities are replaced by each member's.
        members: the members of the chunk.
        mapping: how the members are run: `vmap`: at once; `map`: in turn in one program; `loop`: in turn by one call
            each; `auto`: whichever suits the device.
        mesh: the devices that the members are shared out over; `None`: one device.
        test: whether models are judged on the test split too.
    """
    # What a method does not need would only make its programs differ from the others'.
    wanted = line.needs | line.uses
    template = dataclasses.replace(
        problem,
        neighbours=problem.neighbours if "neighbours" in wanted else None,
        universal=problem.universal if "universal" in wanted else None,
    )
    pruned: Pruned = population.over(
        _Prune(line, _at_rate(defaults, 1.0)),
        members.train,
        members.similarity,
        members.key,
        shared=(template, np.float32(defaults.tuning.learning_rate)),
        mapping=mapping,
        mesh=mesh,
    )
    counts = {name: int(jnp.sum(kept[0])) for name, kept in pruned.units.items()}
    model, accuracy = problem.model.resize(counts), {}
    for at, look in pruned.looks.items():
        for split in ("valid", "test") if test else ("valid",):
            accuracy[at, split] = np.asarray(
                population.over(_Accuracy(model), look.variables, getattr(members, split), mapping=mapping, mesh=mesh)
            )
    return Outcome(pruned, model, accuracy)


@functools.cache
def _cost_of(model: Model) -> cost.Cost:
    """The cost of a model, traced once: every method and chunk but the unpruned reference ends in the same one."""
    return cost.of(model, jax.eval_shape(model.init, jax.random.key(0)))


def rows_of(
    method: str, ratio: float, members: list[tuple[str, int]], outcome: Outcome, *, learning_rate: float | None = None
) -> list[dict[str, Any]]:
    """Returns the rows of the results table for one method: a row for each number of steps, split and member.

    Args:
        method: the method's name.
        ratio: the fraction of the units that is removed.
        members: the `(target, seed)` of the members whose rows are wanted: the first ones of the chunk.
        outcome: what the method returned for the chunk.
        learning_rate: the rate of the method's fine-tuning; `None`: the rows do not say it.
    """
    looks = outcome.pruned.looks
    of = _cost_of(outcome.model)
    examples = {at: np.asarray(look.spent.examples) for at, look in looks.items()}
    return [
        {
            "target": target,
            "seed": seed,
            "method": method,
            "ratio": ratio,
            "steps": at,
            "split": split,
            "accuracy": float(accuracy[i]),
            "cost_examples": int(examples[at][i]),
            "params": of.params,
            "flops": of.flops,
            **({} if learning_rate is None else {"learning_rate": learning_rate}),
        }
        for (at, split), accuracy in sorted(outcome.accuracy.items())
        for i, (target, seed) in enumerate(members)
    ]


def compare(plan: FewShotPlan, variables: Variables, bank: Stacked, work: Path) -> list[dict[str, Any]]:
    """Runs every method for every target and seed, and returns the rows of the results table.

    Rows that an earlier run has finished are read from the folder and not made again. The chunks of members are shared
    out over processes.

    Args:
        plan: the job's plan.
        variables: the variables of the pre-trained model.
        bank: the bank.
        work: the folder of the run; rows, slim models and `neighbours.json` are written there.
    """
    names, members = members_of(plan, variables, bank)
    if processes.first():
        few_shot_report.write_neighbours(plan, bank, names, np.asarray(members.similarity), work)
    problem = plan.problem(variables, jax.tree.map(lambda leaf: leaf[0], members.train))
    problem = dataclasses.replace(problem, neighbours=voters_of(plan, variables, bank))
    if any("universal" in line.needs | line.uses for line in plan.lines.values()):
        problem = dataclasses.replace(problem, universal=universal.learn(plan, variables, bank, work))
    size = min(plan.at_once, len(names))
    choices = choose_rates(plan, variables, bank, problem, size, work)
    tuned = {c.method: _at_rate(plan.defaults, c.learning_rate) for c in choices}
    starts = list(range(0, len(names), size))
    own, rows = processes.share(starts), {}
    with records.progress(len(plan.lines) * len(own), "pruning the targets by every method") as advance:
        for start in own:
            here, part = names[start : start + size], _chunk(members, start, size)
            for method in plan.lines:
                defaults = tuned.get(method, plan.defaults)
                make = functools.partial(_rows, plan, method, defaults, problem, part, here, work)
                rows[start, method] = resume.json_or_make(_row_file(work, method, start), make)
                advance(1, method)
    processes.barrier("compared")
    return [
        row
        for start in starts
        for method in plan.lines
        for row in rows.get((start, method)) or records.read_json(_row_file(work, method, start))
    ]


def _chunk(members: Members, start: int, size: int) -> Members:
    """Returns `size` members from a number on.

    A last, smaller chunk would compile everything anew; so it is filled up by its first member, for the surplus to be
    dropped.
    """
    index = np.arange(start, start + size)
    index = np.where(index < len(members.key), index, start)
    part: Members = jax.tree.map(lambda leaf: leaf[index], members)
    return part


def choose_rates(
    plan: FewShotPlan,
    variables: Variables,
    bank: Stacked,
    problem: few_shot.FewShotProblem,
    size: int,
    work: Path,
) -> list[rates.RateChoice]:
    """Chooses the learning rate of every method by the validation accuracy on targets that are not reported.

    What counts is the mean over these targets, their seeds, and all numbers of fine-tuning steps above 0. Each method,
    factor and chunk is written when it is done, and the choices to `rates.csv`. Pairs of a method and a chunk are
    shared out over processes.

    Args:
        plan: the job's plan; `plan.rates` has the factors.
        variables: the variables of the pre-trained model.
        bank: the bank.
        problem: the problem that all members share.
        size: the number of members in a chunk, that of the reported ones, so that they reuse what is compiled here.
        work: the folder of the run.

    Returns:
        The choice of each method; none without factors.
    """
    if not plan.rates.factors:
        return []
    names, members = members_of(plan, variables, bank, tuning=True)
    starts = range(0, len(names), size)
    own = processes.share([(method, start) for method in plan.lines for start in starts])
    with records.progress(len(own) * len(plan.rates.factors), "choosing learning rates on other targets") as advance:
        for method, start in own:
            here, part = names[start : start + size], _chunk(members, start, size)
            for factor in plan.rates.factors:
                make = functools.partial(_tried, plan, method, factor, problem, part, here)
                resume.json_or_make(_rate_file(work, method, factor, start), make)
                advance(1, f"{method} x {factor:g}")
    processes.barrier("rates")
    choices = []
    for method in plan.lines:
        tried = {
            factor: [row for start in starts for row in records.read_json(_rate_file(work, method, factor, start))]
            for factor in plan.rates.factors
        }
        choices.append(rates.choose(method, plan.ratio, tried, learning_rate=plan.defaults.tuning.learning_rate))
    processes.only_first("rates written", lambda: rates.write(choices, work, "ratio"))
    return choices


def _tried(
    plan: FewShotPlan,
    method: str,
    factor: float,
    problem: few_shot.FewShotProblem,
    members: Members,
    names: list[tuple[str, int]],
) -> list[dict[str, Any]]:
    """Returns the validation accuracies of one method at one rate: rows for each member and number of steps above 0."""
    defaults = _at_rate(plan.defaults, plan.defaults.tuning.learning_rate * factor)
    how: dict[str, Any] = {"mapping": plan.mapping, "mesh": plan.mesh}
    outcome = run_line(plan.lines[method], defaults, problem, members, test=False, **how)
    return [
        {"target": target, "seed": seed, "steps": at, "accuracy": float(accuracy[i])}
        for (at, _), accuracy in sorted(outcome.accuracy.items())
        for i, (target, seed) in enumerate(names)
        if at > 0
    ]


def _rate_file(work: Path, method: str, factor: float, start: int) -> Path:
    return work / "rates" / f"{method}-{factor:g}-{start:04d}.json"


def _rows(
    plan: FewShotPlan,
    method: str,
    defaults: few_shot.FewShotDefaults,
    problem: few_shot.FewShotProblem,
    members: Members,
    names: list[tuple[str, int]],
    work: Path,
) -> list[dict[str, Any]]:
    """Returns the rows of one method on a chunk of members; writes its slim models if it is the one to deliver."""
    outcome = run_line(plan.lines[method], defaults, problem, members, mapping=plan.mapping, mesh=plan.mesh)
    for (target, seed), alive in zip(names, np.asarray(outcome.pruned.alive), strict=False):
        if not alive:
            records.say(f"{method} diverged on {target}, seed {seed}; its row is of the last finite weights")
    if method == plan.deliver:
        few_shot_report.deliver(plan, problem, outcome.model, outcome.pruned, names, members.train, work)
    return rows_of(method, plan.ratio, names, outcome, learning_rate=defaults.tuning.learning_rate)


def _row_file(work: Path, method: str, start: int) -> Path:
    return work / "rows" / f"{method}-{start:04d}.json"
