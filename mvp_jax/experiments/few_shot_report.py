"""What a few-shot job writes besides its rows: the study of overlap, slim models, tables, pictures and costs."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mvp_jax import compact, pretrained, reports
from mvp_jax.compact import cost
from mvp_jax.core.types import Batch, Variables
from mvp_jax.data import sources
from mvp_jax.experiments import rates
from mvp_jax.experiments.bank_build import Stacked, similarities
from mvp_jax.experiments.plans import FewShotPlan
from mvp_jax.experiments.setup import batch_of
from mvp_jax.methods import Pruned, few_shot, registry
from mvp_jax.models.api import Model, replace_head
from mvp_jax.reports import model_plots
from mvp_jax.storage import checkpoint, event_files, files, records, resume

_STUDIED = 128
"""The number of images of a task by which the study of overlap measures similarity: few, as every pair of tasks takes a
forward pass."""


_FEWEST_PAIRS = 20


def study_overlap(plan: FewShotPlan, variables: Variables, bank: Stacked, work: Path) -> None:
    """Writes how much the units of two tasks overlap in each layer, for pairs of tasks by how similar they are.

    Pairs are binned by their similarity, by how many classes they share, and, where classes have superclasses such as
    alphabets, by how often a class of the one and a class of the other are of one superclass. Writes `overlap.json` and
    `overlap_by_similarity.png`, `overlap_by_shared_classes.png` and `overlap_by_superclass.png`, unless they are there.

    Args:
        plan: the job's plan.
        variables: the variables of the pre-trained model.
        bank: the bank, all of whose entries are compared.
        work: the folder of the run.
    """
    resume.json_or_make(work / "overlap.json", lambda: _overlaps(plan, variables, bank, work))


def _overlaps(plan: FewShotPlan, variables: Variables, bank: Stacked, work: Path) -> dict[str, Any]:
    # Classes take turns in a task's images, so the first ones are a balanced sample.
    sample = [
        sources.take(d.train, np.arange(min(len(d.train.y), _STUDIED)))
        for d in map(bank.images, (e.task for e in bank.entries))
    ]
    ranked = []
    with records.progress(len(sample), "how alike the bank's tasks are") as advance:
        for data in sample:
            ranked.append(np.asarray(similarities(plan, variables, bank, batch_of(data))))
            advance(1)
    near = np.stack(ranked)
    chosen = bank.entries
    shared = np.array([[len(set(a.classes) & set(b.classes)) for b in chosen] for a in chosen])
    order = [g.name for g in plan.groups]
    kept = {name: np.asarray(u) for name, u in bank.units.items()}
    pairs = np.triu_indices(len(chosen), 1)
    counts = np.unique(shared[pairs])
    # One bin for each number of shared classes; the few pairs that share most have one bin together.
    parts = [float(n) for n in counts[1:] if np.sum(shared[pairs] >= n) >= _FEWEST_PAIRS]
    tables = {
        "similarity": reports.overlap_table(kept, near, 3, order=order),
        "shared_classes": reports.overlap_table(kept, shared, parts or 1, order=order),
    }
    binned = {
        "similarity": f"similarity ({plan.similarity})",
        "shared_classes": "number of shared classes",
        "superclass": "share of the pairs of classes that are of one superclass",
    }
    together = _of_one_superclass([e.classes for e in chosen], plan.setting.superclasses)
    if np.ptp(together[pairs]) > 0:
        # Tasks drawn within superclasses are of one or of two; others are binned by thirds.
        ends = [1.0] if np.isin(together[pairs].round(6), (0, 1)).all() else 3
        tables["superclass"] = reports.overlap_table(kept, together, ends, order=order)
    for name, table in tables.items():
        reports.plot_overlap_against_depth(
            table,
            work / f"overlap_by_{name}.png",
            binned=binned[name],
            title=f"Overlap of the units two tasks keep, by {name.replace('_', ' ')}",
        )
    both = (near + near.T)[pairs] / 2
    varied = np.ptp(both) > 0 and np.ptp(shared[pairs]) > 0  # constants have no correlation
    correlation = float(np.corrcoef(both, shared[pairs])[0, 1]) if varied else None
    return {"similarity_with_shared_classes": correlation, **tables}


def _of_one_superclass(classes: Sequence[Sequence[int]], superclasses: Sequence[int]) -> np.ndarray:
    """The share of the pairs of a class of one task and a class of the other that are of one superclass, `[T, T]`."""
    if not superclasses:
        return np.zeros((len(classes), len(classes)))
    of = np.asarray(superclasses)
    shares = np.stack([np.bincount(of[list(own)], minlength=of.max() + 1) / len(own) for own in classes])
    return shares @ shares.T


def deliver(
    plan: FewShotPlan,
    problem: few_shot.FewShotProblem,
    model: Model,
    pruned: Pruned,
    names: list[tuple[str, int]],
    train: Batch,
    work: Path,
) -> None:
    """Writes the slim model of each target's first seed into the folder `slim/TARGET`.

    Beside it stands the largest absolute difference between its outputs and the masked dense model's.

    Args:
        plan: the job's plan.
        problem: the problem that all members share.
        model: the slim model.
        pruned: what the method returned; every array leads with the member.
        names: the `(target, seed)` of the members.
        train: the members' training examples, on which the outputs of slim and masked models are compared.
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
    """Writes each slim model as an Orbax checkpoint too, into its folder `orbax`; call it in process 0 only.

    Args:
        plan: the job's plan; its last number of fine-tuning steps numbers the checkpoint.
        work: the folder of the run.
    """
    for folder in _slim_models(work):
        with checkpoint.Checkpoints(folder / "orbax", alone=True) as saved:
            if saved.latest() is None:
                saved.save(plan.steps[-1], pretrained.reload(folder)[1])


def _slim_models(work: Path) -> list[Path]:
    """Returns the folders of the complete slim models; hidden folders are those a killed run was writing."""
    folder = work / "slim"
    return [folder / name for name in files.listing(folder) if files.complete(folder / name, "model.json")]


def report(plan: FewShotPlan, variables: Variables, rows: list[dict[str, Any]], work: Path) -> None:
    """Writes the tables and pictures of a finished job, shows the table, and copies slim models to Orbax checkpoints.

    The files are `results.csv`, `results.md`, `accuracy.png`, `accuracy_all.png`, `cost.json` and `cost.png`.

    Args:
        plan: the job's plan.
        variables: the variables of the pre-trained model.
        rows: all rows of the results table.
        work: the folder of the run.
    """
    copy_slim(plan, work)
    records.write_csv(rows, work / "results.csv")
    if plan.tensorboard:
        event_files.write_rows(rows, work / "board" / "results", "steps")
    ours = "mvp" if "mvp" in plan.lines else next(iter(plan.lines))
    names = registry.titles("few_shot")
    table = reports.summary(rows, ours)
    chosen = rates.section(work, names, on_targets=plan.setting.tunes_on_targets)
    records.write_text(work / "results.md", reports.to_markdown(table, ours, names) + chosen)
    draw(rows, work, ours=ours, chance=1 / plan.sizes.classes_per_task)
    last = [r for r in table if r["steps"] == plan.steps[-1]]
    title = f"{plan.ratio:.0%} of the units pruned, {plan.steps[-1]} steps"
    records.show(reports.to_terminal(last, ours, names, title=title))
    report_cost(plan, variables, work)


def draw(rows: list[dict[str, Any]], work: Path, *, ours: str, chance: float) -> None:
    """Draws validation accuracy against fine-tuning steps: `accuracy.png`, and `accuracy_all.png` with all names.

    Args:
        rows: all rows of the results table.
        work: the folder that the pictures are written to.
        ours: the method that the pictures are about.
        chance: the accuracy of guessing, in [0, 1].
    """
    for name, every in (("accuracy.png", False), ("accuracy_all.png", True)):
        reports.plot_accuracy_against_steps(
            rows,
            work / name,
            ours=ours,
            names=registry.titles("few_shot"),
            roles=registry.roles("few_shot"),
            every=every,
            split="valid",
            chance=chance,
            title="Validation accuracy against fine-tuning steps",
        )


def report_cost(plan: FewShotPlan, variables: Variables, work: Path) -> None:
    """Writes what the dense and the slim model cost: `cost.json` and `cost.png`; nothing if there is no slim model.

    The costs are parameters, FLOPs of a forward pass over one example, bytes of the arrays, and the latency of a
    compiled forward pass over 64 examples in milliseconds, with its quartiles. `latency_clear` says whether the slim
    model's latency differs from the dense one's by more than their spreads.

    Args:
        plan: the job's plan.
        variables: the variables of the pre-trained model.
        work: the folder of the run, with the slim models in `slim`.
    """
    folders = _slim_models(work)
    if not folders:
        return
    slim, slim_variables = pretrained.reload(folders[0])
    models = {
        "dense": (plan.task_model, replace_head(variables, plan.task_model)),
        "slim": (slim, slim_variables),
    }
    x = jnp.zeros((_TIMED, *slim.input_shape), slim.input_dtype)
    spreads = _latencies(models, x)
    found = [
        {
            "name": name,
            **cost.of(model, values)._asdict(),
            "latency_ms": 1000 * spread.median,
            "latency_quartiles_ms": [1000 * spread.low, 1000 * spread.high],
            "latency_clear": spread.faster_than(spreads[0]) or spreads[0].faster_than(spread),
        }
        for (name, (model, values)), spread in zip(models.items(), spreads, strict=True)
    ]
    differences = {p.name: pretrained.describe(p)["extra"]["masked_minus_slim"] for p in folders}
    checked = self_check(plan, variables)
    records.write_json(
        work / "cost.json",
        {"batch": _TIMED, "models": found, "masked_minus_slim": differences, "random_cuts": checked._asdict()},
    )
    model_plots.plot_cost(found, work / "cost.png", title=f"Cost before and after pruning, latency at batch {_TIMED}")
    worst = max(differences.values())
    records.say(
        f"slim models in {work / 'slim'}: {found[1]['params'] / found[0]['params']:.1%} of the parameters, "
        f"{found[1]['flops'] / found[0]['flops']:.1%} of the FLOPs, {latency_in_words(*spreads)}; "
        f"largest difference to the masked model {worst:.1e}, on random cuts of the pre-trained one "
        f"{max(checked.differences):.1e} of its largest logit"
    )


_TIMED = 64
"""The number of examples in a forward pass whose latency is measured."""


def _latencies(models: dict[str, tuple[Model, Variables]], x: Any) -> tuple[cost.LatencySpread, ...]:
    """Measures the latency of a compiled forward pass of each model over the same batch."""

    def call(model: Model, values: Variables) -> Callable[[], Any]:
        compiled = jax.jit(lambda v, x: model.apply(v, x)[0])
        return lambda: compiled(values, x)

    return cost.latencies([call(model, values) for model, values in models.values()])


def latency_in_words(dense: cost.LatencySpread, slim: cost.LatencySpread) -> str:
    """Returns what two latencies say of each other; a speed is claimed only where their quartiles do not overlap.

    >>> latency_in_words(cost.LatencySpread(0.03, 0.029, 0.031, 20), cost.LatencySpread(0.02, 0.019, 0.021, 20))
    '1.50 times as fast (20 ms [19, 21] against 30 ms [29, 31])'
    >>> latency_in_words(cost.LatencySpread(0.03, 0.02, 0.04, 20), cost.LatencySpread(0.02, 0.019, 0.021, 20))
    'no claim of speed: the machine was busy (20 ms [19, 21] against 30 ms [20, 40], medians and quartiles)'
    """

    def shown(spread: cost.LatencySpread) -> str:
        return f"{1000 * spread.median:.3g} ms [{1000 * spread.low:.3g}, {1000 * spread.high:.3g}]"

    both = f"{shown(slim)} against {shown(dense)}"
    if slim.faster_than(dense):
        return f"{dense.median / slim.median:.2f} times as fast ({both})"
    if dense.faster_than(slim):
        return f"slower, {slim.median / dense.median:.2f} times the latency ({both})"
    why = "the machine was busy" if slim.busy or dense.busy else "the latencies overlap"
    return f"no claim of speed: {why} ({both}, medians and quartiles)"


def self_check(plan: FewShotPlan, variables: Variables) -> compact.Verification:
    """Returns how far slim models differ from masked ones, on three random cuts of the pre-trained model.

    The slim functions are made by tracing the dense model, so that the check does not rely on how the model resizes
    itself.

    Args:
        plan: the job's plan.
        variables: the variables of the pre-trained model.
    """
    model = plan.model
    x = batch_of(sources.take(plan.setting.pools.test, np.arange(4)))["x"]
    return compact.verify(
        lambda v, x: model.apply(v, x)[0], variables, plan.groups, x, key=jax.random.key(plan.seed + 3), cuts=3
    )


def write_neighbours(
    plan: FewShotPlan, bank: Stacked, names: list[tuple[str, int]], near: np.ndarray, work: Path
) -> None:
    """Writes `neighbours.json`: the bank tasks nearest to each member's target, and how many classes they share.

    Args:
        plan: the job's plan; `plan.k` is the number of tasks that are written.
        bank: the bank's `T` entries.
        names: the `(target, seed)` of the `M` members.
        near: similarities, `float[M, T]`, higher = nearer.
        work: the folder of the run.
    """
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
