"""The job `mvp`: runs every few-shot method on every target, from one bank, and makes the rows of the results table.

A member is one target with one seed. All members of a chunk run at once, method after method. Since every method ends
in the same slim shapes, programs are compiled for the first method and reused by the others. Each pair of a method and
a chunk is written when it is done, so that a killed job goes on where it stopped.
"""

import dataclasses
import functools
from collections.abc import Callable
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
from mvp_jax.experiments import few_shot_report, universal
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
        test: test examples, in the same form.
        similarity: how near each of the bank's `T` entries is to the member's target, `float[M, T]`, from `train`.
        key: `[M]`, a random key for each member.
    """

    train: Batch
    valid: Batch
    test: Batch
    similarity: Array
    key: Key


def members_of(plan: FewShotPlan, variables: Variables, bank: Stacked) -> tuple[list[tuple[str, int]], Members]:
    """Returns the `(target, seed)` of every member, and the members' data.

    Args:
        plan: the job's plan.
        variables: the variables of the pre-trained model.
        bank: the bank, for the similarities.
    """
    names, data, near = [], [], []
    pools = plan.setting.pools
    for target in plan.setting.targets:
        for seed in range(plan.seeds):
            own = tasks.materialise(
                target,
                pools.target,
                shots=plan.sizes.shots,
                valid=plan.sizes.valid,
                test=plan.sizes.test,
                valid_from=pools.valid,
                test_from=pools.test,
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
        key=jax.random.split(jax.random.key(plan.seed + 2), len(names)),
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
    method: Callable[..., Pruned]
    settings: Any

    def __call__(self, data: Batch, similarity: Array, key: Key, template: few_shot.FewShotProblem) -> Pruned:
        near = template.neighbours
        if near is not None:
            near = near._replace(similarity=similarity)
        return self.method(dataclasses.replace(template, train=data, neighbours=near), self.settings, key)


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
        accuracy: `{(fine-tuning steps, split): float[M]}`; on the test split only for the first and the last number of
            steps.
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
    """
    # What a method does not need would only make its programs differ from the others'.
    wanted = line.needs | line.uses
    template = dataclasses.replace(
        problem,
        neighbours=problem.neighbours if "neighbours" in wanted else None,
        universal=problem.universal if "universal" in wanted else None,
    )
    pruned: Pruned = population.over(
        _Prune(line.run, line.settings(defaults)),
        members.train,
        members.similarity,
        members.key,
        shared=(template,),
        mapping=mapping,
        mesh=mesh,
    )
    counts = {name: int(jnp.sum(kept[0])) for name, kept in pruned.units.items()}
    model, accuracy = problem.model.resize(counts), {}
    ends = (min(defaults.tuning.looks), max(defaults.tuning.looks))
    for at, look in pruned.looks.items():
        for split in ("valid", "test") if at in ends else ("valid",):
            accuracy[at, split] = np.asarray(
                population.over(_Accuracy(model), look.variables, getattr(members, split), mapping=mapping, mesh=mesh)
            )
    return Outcome(pruned, model, accuracy)


@functools.cache
def _cost_of(model: Model) -> cost.Cost:
    """The cost of a model, traced once: every method and chunk but the unpruned reference ends in the same one."""
    return cost.of(model, jax.eval_shape(model.init, jax.random.key(0)))


def rows_of(method: str, ratio: float, members: list[tuple[str, int]], outcome: Outcome) -> list[dict[str, Any]]:
    """Returns the rows of the results table for one method: a row for each number of steps, split and member.

    Args:
        method: the method's name.
        ratio: the fraction of the units that is removed.
        members: the `(target, seed)` of the members whose rows are wanted: the first ones of the chunk.
        outcome: what the method returned for the chunk.
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
    starts = list(range(0, len(names), size))
    own, rows = processes.share(starts), {}
    with records.progress(len(plan.lines) * len(own), "pruning the targets by every method") as advance:
        for start in own:
            here = names[start : start + size]
            # A last, smaller chunk would compile everything anew; so it is filled up, and the surplus is dropped.
            index = np.array([start + i if i < len(here) else start for i in range(size)])
            part = jax.tree.map(lambda leaf, r=index: leaf[r], members)
            for method in plan.lines:
                make = functools.partial(_rows, plan, method, problem, part, here, work)
                rows[start, method] = resume.json_or_make(_row_file(work, method, start), make)
                advance(1, method)
    processes.barrier("compared")
    return [
        row
        for start in starts
        for method in plan.lines
        for row in rows.get((start, method)) or records.read_json(_row_file(work, method, start))
    ]


def _rows(
    plan: FewShotPlan,
    method: str,
    problem: few_shot.FewShotProblem,
    members: Members,
    names: list[tuple[str, int]],
    work: Path,
) -> list[dict[str, Any]]:
    """Returns the rows of one method on a chunk of members; writes its slim models if it is the one to deliver."""
    outcome = run_line(plan.lines[method], plan.defaults, problem, members, mapping=plan.mapping, mesh=plan.mesh)
    for (target, seed), alive in zip(names, np.asarray(outcome.pruned.alive), strict=False):
        if not alive:
            records.say(f"{method} diverged on {target}, seed {seed}; its row is of the last finite weights")
    if method == plan.deliver:
        few_shot_report.deliver(plan, problem, outcome.model, outcome.pruned, names, members.train, work)
    return rows_of(method, plan.ratio, names, outcome)


def _row_file(work: Path, method: str, start: int) -> Path:
    return work / "rows" / f"{method}-{start:04d}.json"
