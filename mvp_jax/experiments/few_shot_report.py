"""What a few-shot job writes besides its rows: overlap study, slim models, tables, pictures, costs."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mvp_jax import compact, pretrained, reports
from mvp_jax.compact import cost
from mvp_jax.core.types import Batch, Variables
from mvp_jax.data import sources
from mvp_jax.experiments.bank_build import Stacked, similarities
from mvp_jax.experiments.plans import FewShotPlan
from mvp_jax.experiments.setup import batch_of
from mvp_jax.methods import Pruned, few_shot
from mvp_jax.models.api import Model, replace_head
from mvp_jax.reports import model_plots, plots
from mvp_jax.storage import checkpoint, event_files, files, records, resume

_STUDIED = 128
"""Images of each task by which the overlap study measures similarity: every pair of tasks takes a forward pass."""


_FEWEST_PAIRS = 20


def study_overlap(plan: FewShotPlan, variables: Variables, bank: Stacked, work: Path) -> None:
    """Writes whether similar tasks keep the same units: overlap by depth, for pairs by similarity and shared classes.

    Args:
        plan: of the job.
        variables: of the pre-trained model.
        bank: all of its entries.
        work: the folder of the run, in which `overlap.json` and its pictures are written once.
    """
    resume.json_or_make(work / "overlap.json", lambda: _overlaps(plan, variables, bank, work))


def _overlaps(plan: FewShotPlan, variables: Variables, bank: Stacked, work: Path) -> dict[str, Any]:
    # Classes take turns in a task's images, so the first ones are a balanced sample.
    sample = [
        sources.take(d.train, np.arange(min(len(d.train.y), _STUDIED)))
        for d in map(bank.images, (e.task for e in bank.entries))
    ]
    near = np.stack([similarities(plan, variables, bank, batch_of(d)) for d in sample])
    chosen = bank.entries
    shared = np.array([[len(set(a.classes) & set(b.classes)) for b in chosen] for a in chosen])
    order = [g.name for g in plan.groups]
    kept = {name: np.asarray(u) for name, u in bank.units.items()}
    pairs = np.triu_indices(len(chosen), 1)
    counts = np.unique(shared[pairs])
    # One bin a number of shared classes; the few pairs that share most have a bin together.
    parts = [float(n) for n in counts[1:] if np.sum(shared[pairs] >= n) >= _FEWEST_PAIRS]
    tables = {
        "similarity": reports.overlap_table(kept, near, 3, order=order),
        "shared_classes": reports.overlap_table(kept, shared, parts or 1, order=order),
    }
    for name, table in tables.items():
        plots.plot_overlap_against_depth(
            table,
            work / f"overlap_by_{name}.png",
            title=f"Overlap of the units two tasks keep, by {name.replace('_', ' ')}",
        )
    both = (near + near.T)[pairs] / 2
    varied = np.ptp(both) > 0 and np.ptp(shared[pairs]) > 0  # constants have no correlation
    correlation = float(np.corrcoef(both, shared[pairs])[0, 1]) if varied else None
    return {"similarity_with_shared_classes": correlation, **tables}


def deliver(
    plan: FewShotPlan,
    problem: few_shot.FewShotProblem,
    model: Model,
    pruned: Pruned,
    names: list[tuple[str, int]],
    train: Batch,
    work: Path,
) -> None:
    """Writes the slim model of each target's first seed, checked against the masked dense model.

    Args:
        plan: of the job.
        problem: the template of the members' problems.
        model: the slim model.
        pruned: what the method gave, every leaf leads with a member.
        names: `(target, seed)` of the members.
        train: the members' training examples, on which slim and masked outputs are compared.
        work: the folder of the run.
    """
    last = pruned.looks[max(pruned.looks)].variables
    for i, (target, seed) in enumerate(names):
        if seed != 0:
            continue
        slim, dense, kept, x = jax.tree.map(
            lambda leaf, i=i: leaf[i], (last, pruned.variables, pruned.units, train["x"])
        )
        difference = compact.check(problem.model, dense, problem.groups, kept, x)
        extra = {"task": target, "method": plan.deliver, "masked_minus_slim": difference, "ratio": plan.ratio}
        pretrained.save(work / "slim" / target, model, slim, units=kept, extra=extra)


def copy_slim(plan: FewShotPlan, work: Path) -> None:
    """The slim models as Orbax states too; by process 0, the only one that Orbax lets save by itself."""
    for folder in _slim_models(work):
        with checkpoint.Checkpoints(folder / "orbax", alone=True) as saved:
            if saved.latest() is None:
                saved.save(plan.steps[-1], pretrained.reload(folder)[1])


def _slim_models(work: Path) -> list[Path]:
    """Their folders; hidden ones are what a killed run was writing."""
    folder = work / "slim"
    return [folder / name for name in files.listing(folder) if files.complete(folder / name, "model.json")]


def report(plan: FewShotPlan, variables: Variables, rows: list[dict[str, Any]], work: Path) -> None:
    """Tables and pictures: `results.csv`, `results.md`, `accuracy.png`, `cost.png`; slim models as Orbax states."""
    copy_slim(plan, work)
    records.write_csv(rows, work / "results.csv")
    if plan.tensorboard:
        event_files.write_rows(rows, work / "board" / "results", "steps")
    ours = "mvp" if "mvp" in plan.lines else next(iter(plan.lines))
    table = reports.summary(rows, ours)
    records.write_text(work / "results.md", reports.to_markdown(table, ours))
    plots.plot_accuracy_against_steps(
        rows,
        work / "accuracy.png",
        ours=ours,
        split="valid",
        chance=1 / plan.sizes.classes_per_task,
        title="Validation accuracy against fine-tuning steps",
    )
    last = [r for r in table if r["steps"] == plan.steps[-1]]
    records.show(reports.to_terminal(last, ours, title=f"{plan.ratio:.0%} of the units pruned, {plan.steps[-1]} steps"))
    report_cost(plan, variables, work)


def report_cost(plan: FewShotPlan, variables: Variables, work: Path) -> None:
    """Parameters, FLOPs, bytes of arrays and compiled latency, dense against the slim models on disk."""
    folders = _slim_models(work)
    if not folders:
        return
    slim, slim_variables = pretrained.reload(folders[0])
    x = jnp.zeros((64, *slim.input_shape), slim.input_dtype)
    dense = replace_head(variables, plan.task_model)
    found: list[dict[str, Any]] = []
    for name, model, values in (("dense", plan.task_model, dense), ("slim", slim, slim_variables)):
        of = cost.of(model, values)
        seconds = cost.latency(jax.jit(lambda v, x, model=model: model.apply(v, x)[0]), values, x)
        found.append(
            {
                "name": name,
                "params": of.params,
                "flops": of.flops,
                "bytes": of.bytes,
                "latency_ms": 1000 * seconds,
            }
        )
    differences = {p.name: pretrained.describe(p)["extra"]["masked_minus_slim"] for p in folders}
    checked = self_check(plan, variables)
    records.write_json(
        work / "cost.json",
        {"batch": 64, "models": found, "masked_minus_slim": differences, "random_cuts": checked._asdict()},
    )
    model_plots.plot_cost(found, work / "cost.png")
    worst = max(differences.values())
    ratio = found[0]["latency_ms"] / found[1]["latency_ms"]
    records.say(
        f"slim models in {work / 'slim'}: {found[1]['params'] / found[0]['params']:.1%} of the parameters, "
        f"{found[1]['flops'] / found[0]['flops']:.1%} of the FLOPs, {ratio:.2f} times as fast at batch 64; "
        f"largest difference to the masked model {worst:.1e}, on random cuts of the pre-trained one "
        f"{max(checked.differences):.1e} of its largest logit"
    )


def self_check(plan: FewShotPlan, variables: Variables) -> compact.Verification:
    """Masked against slim on random cuts of the pre-trained model, by tracing it: no list of groups is trusted."""
    model = plan.model
    x = batch_of(sources.take(plan.setting.pools.test, np.arange(4)))["x"]
    return compact.verify(
        lambda v, x: model.apply(v, x)[0], variables, plan.groups, x, key=jax.random.key(plan.seed + 3), cuts=3
    )


def write_neighbours(
    plan: FewShotPlan, bank: Stacked, names: list[tuple[str, int]], near: np.ndarray, work: Path
) -> None:
    """Who was near whom, and how many classes they share; for people."""
    of = {t.name: t for t in plan.setting.targets}
    found = []
    for (target, seed), scores in zip(names, near, strict=True):
        best = np.argsort(-scores, kind="stable")[: plan.k]
        found.append(
            {
                "target": target,
                "seed": seed,
                "classes": [plan.setting.class_names[c] for c in of[target].classes],
                "nearest": [
                    {
                        "task": bank.entries[i].task,
                        "similarity": float(scores[i]),
                        "classes": [plan.setting.class_names[c] for c in bank.entries[i].classes],
                        "shared": len(set(bank.entries[i].classes) & set(of[target].classes)),
                    }
                    for i in best
                ],
            }
        )
    records.write_json(work / "neighbours.json", found)
