"""The job `sparsity`: runs methods × sparsities × targets × seeds, and makes rows with their accuracy and cost.

Each case (method, sparsity, target, seed) is written when it is done, with its mask, so that a killed job goes on where
it stopped. A method is judged twice: by the model it returns, and by its mask alone, which is put on the pre-trained
weights; these are then fine-tuned for as many steps as every method's model.

With `rates.factors` every method first runs at several learning rates on further targets, and takes the best of them at
each sparsity. Masks alone are all fine-tuned at the same rate, so that they differ in nothing else.
"""

import contextlib
import dataclasses
import functools
import itertools
import time
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from mvp_jax.compact import cost
from mvp_jax.core import masks, trees
from mvp_jax.core.types import Masks, Variables
from mvp_jax.data import sources, tasks
from mvp_jax.experiments import rates
from mvp_jax.experiments.plans import SparsityPlan
from mvp_jax.experiments.setup import batch_of
from mvp_jax.methods import Pruned, registry, sparse
from mvp_jax.models.api import replace_head
from mvp_jax.parallel import processes
from mvp_jax.storage import checkpoint, files, records, resume
from mvp_jax.train import evaluation, metrics, probe

Case: TypeAlias = tuple[str, float, str, int]
"""One run of the job: `(method, sparsity, target, seed)`."""


def problems(
    plan: SparsityPlan, variables: Variables, *, tuning: bool = False
) -> dict[tuple[str, int], tuple[sparse.SparsityProblem, tasks.TaskData]]:
    """Returns the problem and the data of every target and seed, `{(target, seed): (problem, data)}`.

    A problem has the pre-trained model under a head that is fitted to the target's training examples, or is the frozen
    zero-shot head. Its sparsity is the plan's first.

    Args:
        plan: the job's plan.
        variables: the variables of the pre-trained model.
        tuning: whether the targets are those on which learning rates are chosen; their data have no test examples.
    """
    setting, sizes, model = plan.setting, plan.sizes, plan.task_model
    body = replace_head(variables, model)
    found = {}
    targets, seeds = (setting.tuning, _tuning_seeds(plan)) if tuning else (setting.targets, range(plan.seeds))
    for target, seed in itertools.product(targets, seeds):
        own = tasks.materialise(
            target,
            setting.pools.target,
            shots=sizes.shots,
            valid=sizes.valid,
            test=None if tuning else sizes.test,
            valid_from=setting.pools.valid,
            test_from=None if tuning else setting.pools.test,
            seed=plan.seed + seed,
        )
        data = batch_of(own.train)
        if plan.zero_shot is None:
            start = probe.fit_head(model, body, data)
        else:
            start = replace_head(body, model, kernel=jnp.asarray(plan.zero_shot[:, list(target.classes)]))
        found[target.name, seed] = (
            sparse.SparsityProblem(
                model=model,
                variables=start,
                train=data,
                valid=batch_of(own.valid),
                sparsity=plan.sparsities[0],
                pattern=plan.pattern,
            ),
            own,
        )
    return found


def run(plan: SparsityPlan, variables: Variables, work: Path) -> list[dict[str, Any]]:
    """Runs every case and returns the rows of the results table; cases that are on disk are read, not run again.

    Cases are shared out over processes. Writes a file of rows and a mask for each case.

    Args:
        plan: the job's plan.
        variables: the variables of the pre-trained model.
        work: the folder of the run.
    """
    cases = [
        (method, sparsity, target.name, seed)
        for target in plan.setting.targets
        for seed in range(plan.seeds)
        for sparsity in plan.sparsities
        for method in plan.methods
        if method != "unpruned" or sparsity == plan.sparsities[0]
    ]
    factors = {(c.method, c.share): c.factor for c in choose_rates(plan, variables, work)}
    made = problems(plan, variables)
    flops = cost.of(plan.task_model, next(iter(made.values()))[0].variables)
    own = processes.share(cases)
    with records.progress(len(own), "pruning the targets by every method") as advance:
        for case in own:
            factor = factors.get(case[:2], 1.0)
            resume.json_or_make(row_file(work, case), functools.partial(_one, plan, made, case, flops, work, factor))
            files.remove(work / "running" / row_file(work, case).stem)  # the case is finished
            advance(1, f"{case[0]} {case[1]:.0%}")
    processes.barrier("tried")
    processes.only_first("rounds removed", lambda: files.remove(work / "running"))  # all cases are finished
    return [row for case in cases for row in records.read_json(row_file(work, case))["rows"]]


def choose_rates(plan: SparsityPlan, variables: Variables, work: Path) -> list[rates.RateChoice]:
    """Chooses the learning rate of every method at every sparsity by validation on targets that are not reported.

    What counts is the mean accuracy of the final models over these targets and their seeds. Each case at each factor is
    written when it is done, and the choices to `rates.csv`. Cases are shared out over processes.

    Args:
        plan: the job's plan; `plan.rates` has the factors.
        variables: the variables of the pre-trained model.
        work: the folder of the run.

    Returns:
        The choice of each method and sparsity; none without factors.
    """
    search = plan.rates
    if not search.factors:
        return []
    made = problems(plan, variables, tuning=True)
    lines = [
        (method, sparsity)
        for sparsity in plan.sparsities
        for method in plan.methods
        if method != "unpruned" or sparsity == plan.sparsities[0]
    ]
    own = processes.share([(*line, *at) for line in lines for at in made])
    with records.progress(len(own) * len(search.factors), "choosing learning rates on other targets") as advance:
        for case in own:
            for factor in search.factors:
                resume.json_or_make(
                    _rate_file(work, case, factor), functools.partial(_tried, plan, made, case, work, factor)
                )
                files.remove(_rate_rounds(work, case, factor))  # the case is finished
                advance(1, f"{case[0]} {case[1]:.0%} x {factor:g}")
    processes.barrier("rates")
    choices = []
    for line in lines:
        places = {f: [_rate_file(work, (*line, *at), f) for at in made] for f in search.factors}
        tried = {f: [records.read_json(path) for path in those] for f, those in places.items()}
        rate = _settings(plan, next(iter(made.values()))[0], line).training.learning_rate
        choices.append(rates.choose(*line, tried, learning_rate=rate))
    shown = [c._replace(share=0.0) if c.method == "unpruned" else c for c in choices]
    processes.only_first("rates written", lambda: rates.write(shown, work, "sparsity"))
    return choices


def _tuning_seeds(plan: SparsityPlan) -> range:
    return range(rates.SEEDS_FROM, rates.SEEDS_FROM + plan.rates.seeds)


def _tried(
    plan: SparsityPlan,
    made: dict[tuple[str, int], tuple[sparse.SparsityProblem, tasks.TaskData]],
    case: Case,
    work: Path,
    factor: float,
) -> dict[str, Any]:
    """Runs one case at one rate, and returns its validation accuracy."""
    _, _, target, seed = case
    names = [t.name for t in plan.setting.tuning]
    key = jax.random.fold_in(jax.random.key(plan.seed + 5), 1000 * names.index(target) + seed)
    template, data = made[target, seed]
    got, _ = _pruned(plan, template, case, key, _rate_rounds(work, case, factor), factor)
    accuracy = evaluation.evaluate(plan.task_model, got.variables, batch_of(data.valid))["accuracy"]
    return {"target": target, "seed": seed, "accuracy": float(accuracy)}


def _rate_rounds(work: Path, case: Case, factor: float) -> Path:
    return work / "running" / f"rates-{factor:g}-{row_file(work, case).stem}"


def _rate_file(work: Path, case: Case, factor: float) -> Path:
    method, sparsity, target, seed = case
    return work / "rates" / f"{method}-{sparsity:g}-{factor:g}-{target}-{seed}.json"


def row_file(work: Path, case: Case) -> Path:
    """Returns the file in which the rows of a case are written.

    Args:
        work: the folder of the run.
        case: the case.
    """
    method, sparsity, target, seed = case
    return work / "rows" / f"{method}-{sparsity:g}-{target}-{seed}.json"


def _one(
    plan: SparsityPlan,
    made: dict[tuple[str, int], tuple[sparse.SparsityProblem, tasks.TaskData]],
    case: Case,
    flops: cost.Cost,
    work: Path,
    factor: float = 1.0,
) -> dict[str, Any]:
    """Runs one case at a multiple of the method's rate and writes its mask.

    Returns its `rows`, and the density of each prunable leaf as `kept`.
    """
    method, sparsity, target, seed = case
    template, data = made[target, seed]
    problem = dataclasses.replace(template, sparsity=sparsity)
    # The key depends on target and seed only: methods that train alike see the same batches.
    index = [t.name for t in plan.setting.targets].index(target)
    key = jax.random.fold_in(jax.random.key(plan.seed + 2), 1000 * index + seed)
    start = time.perf_counter()
    got, rate = _pruned(plan, template, case, key, work / "running" / row_file(work, case).stem, factor)
    seconds, spent = time.perf_counter() - start, got.spent
    shared = {
        "target": target,
        "seed": seed,
        "method": method,
        "sparsity": sparsity if method != "unpruned" else 0.0,
        "steps": plan.base.training.steps,
        "params": int(masks.count(got.masks, got.variables.params)),
        "flops": flops.flops,
        "cost_steps": spent.steps,
        "cost_examples": spent.examples,
        "cost_flops": 3 * flops.flops * spent.examples,
        "cost_serial_steps": spent.serial_steps,
        "cost_collectives": spent.collectives,
        "seconds": round(seconds, 3),
        "learning_rate": rate,
    }
    if not bool(got.alive):
        records.say(f"{method} diverged on {target}, seed {seed}; its row is of the last finite weights")
    rows = [shared | {"view": "whole"} | judged for judged in _judged(plan, got.variables, data)]
    if plan.masks_alone and method not in ("unpruned", "magnitude"):
        alone = _alone(problem, plan.base.training, got.masks, key)
        shared["learning_rate"] = plan.base.training.learning_rate
        rows += [shared | {"view": "mask"} | judged for judged in _judged(plan, alone, data)]
    _write_mask(mask_file(work, case), problem, got.masks)
    return {"rows": rows, "kept": _density(problem, got.masks)}


def _pruned(
    plan: SparsityPlan, template: sparse.SparsityProblem, case: Case, key: Any, folder: Path, factor: float
) -> tuple[Pruned, float]:
    """Returns what a case's method returned, and its learning rate; with `keep_rounds` rounds are kept in a folder."""
    method, sparsity = case[:2]
    settings = _settings(plan, template, (method, sparsity), factor)
    problem = dataclasses.replace(template, sparsity=sparsity)
    with checkpoint.Checkpoints(folder, keep=1, alone=True) if plan.keep_rounds else contextlib.nullcontext() as saved:
        got: Pruned = registry.line(method, "sparse").run(problem, settings, key, saved=saved)
    jax.block_until_ready(got.variables)
    return got, settings.training.learning_rate


def _settings(
    plan: SparsityPlan, template: sparse.SparsityProblem, line: tuple[str, float], factor: float = 1.0
) -> Any:
    method, sparsity = line
    defaults = sparse.SparsityDefaults(
        problem=dataclasses.replace(template, sparsity=sparsity),
        base=plan.base,
        round_steps=plan.round_steps,
        examples=plan.examples,
        serial_steps=plan.serial_steps,
        events=plan.events,
        averaging=plan.averaging,
        rate=factor,
    )
    return registry.line(method, "sparse").settings(defaults)


def _judged(plan: SparsityPlan, variables: Variables, data: tasks.TaskData) -> list[dict[str, Any]]:
    model = plan.task_model

    def one(part: sources.Arrays) -> dict[str, float]:
        batch = batch_of(part)
        if not plan.metrics:
            return {"accuracy": float(evaluation.evaluate(model, variables, batch)["accuracy"])}
        logits, _ = evaluation.infer(model, variables, batch["x"])
        return metrics.score(tuple(dict.fromkeys(("accuracy", *plan.metrics))), logits, part.y)

    return [{"split": split} | one(part) for split, part in (("valid", data.valid), ("test", data.test))]


def _alone(problem: sparse.SparsityProblem, training: sparse.SparsityTraining, mask: Masks, key: Any) -> Variables:
    """Returns the pre-trained variables under a mask, fine-tuned as every method's model is."""
    fresh = sparse.begin(problem, training, key)
    fresh = sparse.with_masks(fresh, fresh.kept, _as_large(fresh.state.masks, mask))
    return sparse.end(problem, training, sparse.finish(problem, training, fresh, key)).variables


def _as_large(like: Masks, mask: Masks) -> Masks:
    """Returns a mask broadcast to the shapes that a run's masks have, so that nothing compiles anew."""
    return jax.tree.map(lambda m, x: jnp.broadcast_to(x, jnp.shape(m)), like, mask)


def mask_file(work: Path, case: Case) -> Path:
    """Returns the file in which the mask of a case is written, an archive of packed bits.

    Args:
        work: the folder of the run.
        case: the case.
    """
    return work / "masks" / f"{row_file(work, case).stem}.npz"


def _prunable(problem: sparse.SparsityProblem, mask: Masks) -> dict[str, np.ndarray]:
    """Returns the masks of the prunable leaves in the parameters' shapes, by path."""
    params, flags = trees.flatten(problem.variables.params), trees.flatten(problem.prunable)
    return {
        path: np.broadcast_to(np.asarray(m), params[path].shape)
        for path, m in trees.flatten(mask).items()
        if flags[path] or np.ndim(m)
    }


def _write_mask(path: Path, problem: sparse.SparsityProblem, mask: Masks) -> None:
    with records.replacing(path) as temporary:
        np.savez(temporary, **masks.pack(_prunable(problem, mask)))


def _density(problem: sparse.SparsityProblem, mask: Masks) -> dict[str, float]:
    return {path: float(m.mean()) for path, m in _prunable(problem, mask).items()}
