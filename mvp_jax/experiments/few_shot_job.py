"""What the main job finds out, as files: overlap study, comparison of methods, slim models, tables and pictures."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mvp_jax import compact, pretrained, reports
from mvp_jax.compact import cost
from mvp_jax.core.types import Variables
from mvp_jax.data import sources, tasks
from mvp_jax.experiments import few_shot_variants, universal
from mvp_jax.experiments.stages import Plan, Stacked, batch_of, similarities
from mvp_jax.methods import few_shot
from mvp_jax.models.api import replace_head
from mvp_jax.parallel import processes
from mvp_jax.reports import model_plots, plots
from mvp_jax.storage import checkpoint, event_files, files, records

_STUDIED = 128
"""Images of each task by which the overlap study measures similarity: every pair of tasks takes a forward pass."""


_FEWEST_PAIRS = 20


def study_overlap(plan: Plan, variables: Variables, bank: Stacked, work: Path) -> None:
    """Do similar tasks keep the same units? Overlap by depth, pairs binned by similarity and by shared classes."""
    done = work / "overlap.json"
    if files.exists(done):
        return
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
    records.write_json(done, {"similarity_with_shared_classes": correlation, **tables})


def members_of(
    plan: Plan, variables: Variables, bank: Stacked
) -> tuple[list[tuple[str, int]], few_shot_variants.Members]:
    """Targets × seeds with their data and similarities."""
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
    keys = jax.random.split(jax.random.key(plan.seed + 2), len(names))
    return names, few_shot_variants.Members(
        train=batch_of(stacked.train),
        valid=batch_of(stacked.valid),
        test=batch_of(stacked.test),
        similarity=jnp.stack(near),
        key=keys,
    )


def in_dense_shapes(plan: Plan, variables: Variables, entries: Stacked | universal.Learned) -> few_shot.Neighbours:
    """Pruned models as voters: every entry's arrays in the dense model's shapes."""
    like = replace_head(variables, plan.task_model)
    dense = jax.vmap(lambda slim, kept: compact.embed(slim, plan.groups, kept, like))(entries.slim, entries.units)
    count = next(iter(entries.units.values())).shape[0]
    return few_shot.Neighbours(entries.units, dense, entries.saliency, jnp.zeros(count))


def compare(plan: Plan, variables: Variables, bank: Stacked, work: Path) -> list[dict[str, Any]]:
    """Runs every variant for every target and seed; finished (variant, chunk)s are read back, not run again."""
    names, members = members_of(plan, variables, bank)
    near = np.asarray(members.similarity)
    if processes.first():
        _write_neighbours(plan, bank, names, near, work)
    voters: dict[str, few_shot.Neighbours | None] = {"none": None, "learned": None}
    if any(v.voters == "learned" for v in plan.variants.values()):
        voters["learned"] = in_dense_shapes(plan, variables, universal.learn(plan, variables, bank, work))
    entries = in_dense_shapes(plan, variables, bank)
    # As many as the variant lets vote: given more, a copy of the farthest would be of the nearest among the far.
    index = {
        m: few_shot_variants.voters(v.voters, near, v.settings.k, np.random.default_rng(plan.seed))
        for m, v in plan.variants.items()
        if v.voters != "none"
    }
    problem = plan.problem(variables, jax.tree.map(lambda leaf: leaf[0], members.train))
    costs = {
        False: cost.of(problem.slim, jax.tree.map(lambda leaf: leaf[0], bank.slim)),
        True: cost.of(plan.task_model, replace_head(variables, plan.task_model)),
    }
    size = min(plan.at_once, len(names))
    folder = work / "rows"
    starts = list(range(0, len(names), size))
    own = processes.share(starts)
    with records.progress(len(plan.variants) * len(own), "pruning the targets by every method") as advance:
        for start in own:
            here = names[start : start + size]
            # A last, smaller chunk would compile everything anew; it is filled up and the surplus dropped.
            rows_of = np.array([start + i if i < len(here) else start for i in range(size)])
            part = jax.tree.map(lambda leaf, r=rows_of: leaf[r], members)
            for method, variant in plan.variants.items():
                path = folder / f"{method}-{start:04d}.json"
                if path.exists():
                    advance(1, method)
                    continue
                voting = method in index
                outcome = few_shot_variants.run_variant(
                    variant,
                    problem,
                    part,
                    steps=plan.steps,
                    bank=voters.get(variant.voters, entries),
                    index=index[method][rows_of] if voting else None,
                    mapping=plan.mapping,
                    mesh=plan.mesh,
                )
                for (target, seed), alive in zip(here, outcome.alive, strict=False):
                    if not alive:
                        records.say(
                            f"{method} diverged on {target}, seed {seed}; its row is of the last finite weights"
                        )
                if method == "mvp":
                    deliver(plan, problem, outcome, here, part, work)
                examples = part.train["y"].shape[1]
                # Similarity is part of a voter's budget: a forward pass of each entry over the target's images, at a
                # third of what a training example costs.
                ranking = len(bank.entries) * examples // 3 if variant.voters not in voters else 0
                new = [
                    {
                        "target": target,
                        "seed": seed,
                        "method": method,
                        "ratio": plan.ratio,
                        "steps": at,
                        "split": split,
                        "accuracy": float(accuracy[i]),
                        "cost_examples": few_shot_variants.examples_used(variant, at, examples, plan.tuning.batch)
                        + ranking,
                        "params": costs[variant.dense].params,
                        "flops": costs[variant.dense].flops,
                    }
                    for (at, split), accuracy in outcome.accuracy.items()
                    for i, (target, seed) in enumerate(here)
                ]
                records.write_json(path, new)
                advance(1, method)
    processes.barrier("compared")
    found = [folder / f"{method}-{start:04d}.json" for start in starts for method in plan.variants]
    return [row for path in found for row in json.loads(path.read_text())]


def _write_neighbours(plan: Plan, bank: Stacked, names: list[tuple[str, int]], near: np.ndarray, work: Path) -> None:
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


def deliver(
    plan: Plan,
    problem: few_shot.Problem,
    outcome: few_shot_variants.Outcome,
    names: list[tuple[str, int]],
    part: few_shot_variants.Members,
    work: Path,
) -> None:
    """Writes the slim model of each target's first seed, checked against the masked dense model."""
    for i, (target, seed) in enumerate(names):
        if seed != 0:
            continue
        slim, kept, data = jax.tree.map(lambda leaf, i=i: leaf[i], (outcome.variables, outcome.units, part.train))
        dense = few_shot.grow(problem, slim, kept)
        difference = compact.check(problem.model, dense.variables, problem.groups, kept, data["x"])
        folder = work / "slim" / target
        pretrained.save(
            folder,
            problem.slim,
            slim,
            units=kept,
            extra={"task": target, "masked_minus_slim": difference, "ratio": plan.ratio},
        )


def copy_slim(plan: Plan, work: Path) -> None:
    """The slim models as Orbax states too; by process 0, the only one that Orbax lets save by itself."""
    for folder in _slim_models(work):
        with checkpoint.Checkpoints(folder / "orbax", alone=True) as saved:
            if saved.latest() is None:
                saved.save(plan.steps[-1], pretrained.reload(folder)[1])


def _slim_models(work: Path) -> list[Path]:
    """Their folders; hidden ones are what a killed run was writing."""
    folder = work / "slim"
    return [folder / name for name in files.listing(folder) if files.complete(folder / name, "model.json")]


def report(plan: Plan, variables: Variables, rows: list[dict[str, Any]], work: Path) -> None:
    """Tables and pictures: `results.csv`, `results.md`, `accuracy.png`, `cost.png`; slim models as Orbax states."""
    copy_slim(plan, work)
    records.write_csv(rows, work / "results.csv")
    if plan.tensorboard:
        event_files.write_rows(rows, work / "board" / "results", "steps")
    ours = "mvp" if "mvp" in plan.variants else next(iter(plan.variants))
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


def report_cost(plan: Plan, variables: Variables, work: Path) -> None:
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


def self_check(plan: Plan, variables: Variables) -> compact.Verification:
    """Masked against slim on random cuts of the pre-trained model, by tracing it: no list of groups is trusted."""
    model = plan.model
    x = batch_of(sources.take(plan.setting.pools.test, np.arange(4)))["x"]
    return compact.verify(
        lambda v, x: model.apply(v, x)[0], variables, plan.groups, x, key=jax.random.key(plan.seed + 3), cuts=3
    )
