"""The stages of the main job: pre-training, the bank, the overlap study, the comparison, the report.

Each takes the plan and what came before, shows its progress, writes what it made into the run's folder and finds it
there again.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mvp_jax import bank as banks
from mvp_jax import (
    checkpoint,
    compact,
    comparison,
    cost,
    pictures,
    population,
    pretrained,
    records,
    reports,
    similarity,
    train,
)
from mvp_jax.data import sources, tasks
from mvp_jax.methods import api, ifp, mvp
from mvp_jax.models.api import Model, replace_head
from mvp_jax.types import Array, Batch, Variables
from mvp_jax.units import Group

SIMILARITIES = ("leep", "prototype")


class Pools(NamedTuple):
    """Images by use; no picture is in two of them."""

    source: sources.Arrays
    target: sources.Arrays
    valid: sources.Arrays
    test: sources.Arrays


class Setting(NamedTuple):
    """What the data gives: the pools, who sees which classes, the tasks."""

    pools: Pools
    image_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    pretrain_classes: tuple[int, ...]
    bank_tasks: tuple[tasks.Task, ...]
    targets: tuple[tasks.Task, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretraining:
    """How the dense model is trained here, where no checkpoint is given."""

    steps: int
    learning_rate: float
    optimizer: str
    weight_decay: float
    batch: int
    augment: train.Augment | None
    save_every: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Images of each class: of a bank task, of a target's splits (`None`: all there are)."""

    classes_per_task: int
    source_images: int | None
    shots: int
    valid: int | None
    test: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A checked config: everything the stages need, as the library's own types."""

    setting: Setting
    model: Model
    groups: tuple[Group, ...]
    keep: tuple[tuple[str, int], ...]
    ratio: float
    steps: tuple[int, ...]
    variants: Mapping[str, comparison.Variant]
    tuning: api.Tuning
    search: ifp.Settings
    k: int
    seed: int
    seeds: int
    mapping: population.Mapping
    chunk: int
    checkpoint: str
    similarity: str
    pretraining: Pretraining
    sizes: Sizes

    @property
    def task_model(self) -> Model:
        return self.model.with_classes(self.sizes.classes_per_task)

    @property
    def slim(self) -> Model:
        return self.task_model.resize(dict(self.keep))

    def problem(self, variables: Variables, data: Batch) -> api.Problem:
        api.check_labels(data["y"], self.sizes.classes_per_task)
        # The pre-trained head knows other classes; every method fits its own.
        body = replace_head(variables, self.task_model)
        return api.Problem(variables=body, train=data, model=self.task_model, groups=self.groups, keep=self.keep)


class Stacked(NamedTuple):
    """The bank in memory: slim variables `[T, ...]`, and all entries in the dense model's shapes."""

    slim: Variables
    entries: list[banks.BankEntry]
    units: dict[str, Array]
    saliency: dict[str, Array]
    prototypes: Array | None
    images: tuple[tasks.TaskData, ...]


def batch_of(pair: sources.Arrays) -> Batch:
    """Arrays on the device."""
    return {"x": jnp.asarray(sources.to_float(pair.x)), "y": jnp.asarray(pair.y, jnp.int32)}


def pretrain(plan: Plan, work: Path) -> Variables:
    """The pre-trained model: read from the checkpoint, or trained here on the pre-training classes."""
    if plan.checkpoint:
        return pretrained.load(plan.checkpoint, plan.model)
    model, settings, setting = plan.model, plan.pretraining, plan.setting
    data = batch_of(tasks.subset(setting.pools.source, setting.pretrain_classes))
    held_out = batch_of(tasks.subset(setting.pools.valid, setting.pretrain_classes))
    tx = train.optimizer(settings.optimizer, weight_decay=settings.weight_decay)  # type: ignore[arg-type]
    key_init, key_fit = jax.random.split(jax.random.key(plan.seed))
    state = train.create(model.init(key_init), tx, key_fit)
    with checkpoint.Checkpoints(work / "pretrain") as saved:
        if saved.latest() is not None:
            state = saved.restore(state)
        done = int(state.step)
        with records.progress(settings.steps, "pre-training") as advance:
            advance(done)
            while done < settings.steps:
                count = min(settings.save_every, settings.steps - done)
                state, metrics = train.fit(
                    model,
                    state,
                    data,
                    count,
                    tx=tx,
                    learning_rate=settings.learning_rate,
                    batch=settings.batch,
                    augment=settings.augment,
                    decay="cosine",
                    total=settings.steps,
                )
                done += count
                saved.save(done, state)
                advance(count, f"loss {float(metrics['loss']):.3f}")
    variables = train.reestimate(model, state.variables, data["x"][:512])
    accuracy = float(train.evaluate(model, variables, held_out)["accuracy"])
    records.say(f"pre-trained on {len(setting.pretrain_classes)} classes: {accuracy:.1%} on held-out images")
    return variables


def build_bank(plan: Plan, variables: Variables, work: Path) -> Stacked:
    """Prunes the pre-trained model for every source task, a chunk of tasks at a time; continues a bank that is there."""
    setting, sizes = plan.setting, plan.sizes
    settings = {
        "ratio": plan.ratio,
        "groups": [g.name for g in plan.groups],
        "rounds": plan.search.rounds,
        "steps_per_round": plan.search.steps_per_round,
        "schedule": plan.search.schedule,
        "score": plan.search.score,
        "final_steps": plan.search.tuning.steps,
        "learning_rate": plan.search.tuning.learning_rate,
        "optimizer": plan.search.tuning.optimizer,
        "batch": plan.search.tuning.batch,
        "images": sizes.source_images,
        "classes_per_task": sizes.classes_per_task,
        "seed": plan.seed,
    }
    mark = banks.fingerprint(variables)
    bank = banks.create(work / "bank", fingerprint=mark, settings=settings, exist_ok=True)
    data = {
        t.name: tasks.materialise(
            t, setting.pools.source, shots=sizes.source_images, valid_from=setting.pools.valid, seed=plan.seed
        )
        for t in setting.bank_tasks
    }
    missing = [(i, t) for i, t in enumerate(setting.bank_tasks) if not banks.has(bank, t.name)]
    template = plan.problem(variables, batch_of(data[setting.bank_tasks[0].name].train))
    slim = plan.slim
    steps = plan.search.total_steps
    with records.progress(len(setting.bank_tasks), "bank of pruned models") as advance:
        advance(len(setting.bank_tasks) - len(missing))
        size = plan.chunk if plan.mapping == "vmap" else 1
        for start in range(0, len(missing), size):
            part = missing[start : start + size]
            # A last, smaller chunk would compile everything anew; it is filled up and the surplus dropped.
            filled = part + part[:1] * (size - len(part)) if start else part
            stacked = tasks.stack([data[t.name] for _, t in filled])
            keys = jnp.stack([jax.random.fold_in(jax.random.key(plan.seed + 1), i) for i, _ in filled])

            def one(d: Batch, valid: Batch, key: Array) -> tuple[ifp.Found, Array]:
                found = ifp.search(dataclasses.replace(template, train=d), plan.search, key)
                return found, train.evaluate(slim, found.slim, valid)["accuracy"]

            found, accuracy = population.over(
                one, batch_of(stacked.train), batch_of(stacked.valid), keys, mapping=plan.mapping
            )
            found, accuracy = jax.tree.map(np.asarray, (found, accuracy))
            for j, (_, task) in enumerate(part):
                own = jax.tree.map(lambda leaf, j=j: leaf[j], found)
                banks.add(
                    bank,
                    banks.BankEntry(
                        task=task.name,
                        classes=task.classes,
                        fingerprint=mark,
                        ratio=plan.ratio,
                        accuracy=float(accuracy[j]),
                        cost={"steps": steps, "examples": ifp.examples_seen(plan.search, stacked.train.y.shape[1])},
                    ),
                    {"variables": own.slim, "units": own.units, "saliency": own.saliency},
                )
            advance(len(part), f"accuracy {float(np.mean(accuracy[: len(part)])):.1%}")
    entries = [e for e in banks.entries(bank) if e.task in data]
    if len(entries) < 2:
        raise ValueError(f"a bank of {len(entries)} tasks cannot vote; set bank.tasks to at least 2")
    return Stacked(
        slim=jax.tree.map(jnp.asarray, banks.weights(entries)),
        entries=entries,
        units=jax.tree.map(jnp.asarray, banks.ballots(entries)),
        saliency=jax.tree.map(jnp.asarray, banks.stacked(entries, "saliency")),
        prototypes=_prototypes(plan, variables, [data[e.task].train for e in entries])
        if plan.similarity == "prototype"
        else None,
        images=tuple(data[e.task] for e in entries),
    )


def _prototypes(plan: Plan, variables: Variables, data: list[sources.Arrays]) -> Array:
    """Class means of the pre-trained model's features for each task: `[T, Y, F]`."""

    def one(pair: sources.Arrays) -> Array:
        batch = batch_of(pair)
        body = replace_head(variables, plan.task_model)
        _, features = train.infer(plan.task_model, body, batch["x"])
        return similarity.prototypes(features, batch["y"], plan.sizes.classes_per_task)

    return jnp.stack([one(pair) for pair in data])


def similarities(plan: Plan, variables: Variables, bank: Stacked, data: Batch) -> Array:
    """How near each bank task is to one target, from the target's training images: `[T]`, higher = nearer."""
    if plan.similarity == "leep":
        return mvp.leep_to_all(plan.slim, bank.slim, data, num_classes=plan.sizes.classes_per_task)
    body = replace_head(variables, plan.task_model)
    _, features = train.infer(plan.task_model, body, data["x"])
    own = similarity.prototypes(features, data["y"], plan.sizes.classes_per_task)
    return jax.vmap(lambda source: similarity.prototype_cosine(own, source))(bank.prototypes)


def study_overlap(plan: Plan, variables: Variables, bank: Stacked, work: Path) -> None:
    """Do similar tasks keep the same units? Overlap by depth, pairs binned by similarity and by shared classes."""
    done = work / "overlap.json"
    if done.exists():
        return
    near = jnp.stack([similarities(plan, variables, bank, batch_of(d.train)) for d in bank.images])
    near = np.asarray(near)
    chosen = [tasks.Task(name=e.task, classes=e.classes) for e in bank.entries]
    shared = np.array([[tasks.shared_classes(a, b) for b in chosen] for a in chosen])
    order = [g.name for g in plan.groups]
    kept = {name: np.asarray(u) for name, u in bank.units.items()}
    pairs = np.triu_indices(len(chosen), 1)
    tables = {
        "similarity": reports.overlap_table(kept, near, 3, order=order),
        "shared_classes": reports.overlap_table(
            kept, shared, sorted(set(shared[pairs].tolist()))[1:] or 1, order=order
        ),
    }
    for name, table in tables.items():
        pictures.plot_overlap_against_depth(
            table,
            work / f"overlap_by_{name}.png",
            title=f"Overlap of the units two tasks keep, by {name.replace('_', ' ')}",
        )
    both = (near + near.T)[pairs] / 2
    correlation = float(np.corrcoef(both, shared[pairs])[0, 1]) if np.ptp(shared[pairs]) > 0 else None
    records.write_json(done, {"similarity_with_shared_classes": correlation, **tables})


def members_of(plan: Plan, variables: Variables, bank: Stacked) -> tuple[list[tuple[str, int]], comparison.Members]:
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
    return names, comparison.Members(
        train=batch_of(stacked.train),
        valid=batch_of(stacked.valid),
        test=batch_of(stacked.test),
        similarity=jnp.stack(near),
        key=keys,
    )


def in_dense_shapes(plan: Plan, variables: Variables, bank: Stacked) -> api.Neighbours:
    """The bank as voters: every entry's arrays in the dense model's shapes."""
    like = replace_head(variables, plan.task_model)
    dense = jax.vmap(lambda slim, kept: compact.embed(slim, plan.groups, kept, like))(bank.slim, bank.units)
    return api.Neighbours(bank.units, dense, bank.saliency, jnp.zeros(len(bank.entries)))


def compare(plan: Plan, variables: Variables, bank: Stacked, work: Path) -> list[dict[str, Any]]:
    """Runs every variant for every target and seed; finished (variant, chunk)s are read back, not run again."""
    names, members = members_of(plan, variables, bank)
    near = np.asarray(members.similarity)
    _write_neighbours(plan, bank, names, near, work)
    voters = in_dense_shapes(plan, variables, bank)
    rng = np.random.default_rng(plan.seed)
    index = {w: comparison.voters(w, near, plan.k, rng) for w in ("nearest", "farthest", "random", "all")}
    problem = plan.problem(variables, jax.tree.map(lambda leaf: leaf[0], members.train))
    costs = {
        False: cost.of(problem.slim, jax.tree.map(lambda leaf: leaf[0], bank.slim)),
        True: cost.of(plan.task_model, replace_head(variables, plan.task_model)),
    }
    size = min(plan.chunk, len(names)) if plan.mapping == "vmap" else 1
    folder = work / "rows"
    folder.mkdir(exist_ok=True)
    rows: list[dict[str, Any]] = []
    starts = range(0, len(names), size)
    with records.progress(len(plan.variants) * len(starts), "pruning the targets by every method") as advance:
        for start in starts:
            part = jax.tree.map(lambda leaf, a=start: leaf[a : a + size], members)
            here = names[start : start + size]
            for method, variant in plan.variants.items():
                path = folder / f"{method}-{start:04d}.json"
                if path.exists():
                    rows += json.loads(path.read_text())
                    advance(1, method)
                    continue
                voting = variant.voters != "none"
                outcome = comparison.run_variant(
                    variant,
                    problem,
                    part,
                    steps=plan.steps,
                    bank=voters if voting else None,
                    index=index[variant.voters][start : start + size] if voting else None,
                    mapping=plan.mapping,
                )
                if method == "mvp":
                    deliver(plan, problem, outcome, here, part, work)
                examples = part.train["y"].shape[1]
                new = [
                    {
                        "target": target,
                        "seed": seed,
                        "method": method,
                        "ratio": plan.ratio,
                        "steps": at,
                        "split": split,
                        "accuracy": float(accuracy[i]),
                        "cost_examples": comparison.examples_used(variant, at, examples, plan.tuning.batch)
                        + (len(bank.entries) * examples // 3 if voting else 0),
                        "params": costs[variant.dense].params,
                        "flops": costs[variant.dense].flops,
                    }
                    for (at, split), accuracy in outcome.accuracy.items()
                    for i, (target, seed) in enumerate(here)
                ]
                records.write_json(path, new)
                rows += new
                advance(1, method)
    return rows


def _write_neighbours(
    plan: Plan, bank: Stacked, names: list[tuple[str, int]], near: np.ndarray, work: Path
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


def deliver(
    plan: Plan,
    problem: api.Problem,
    outcome: comparison.Outcome,
    names: list[tuple[str, int]],
    part: comparison.Members,
    work: Path,
) -> None:
    """Writes the slim model of each target's first seed, checked against the masked dense model."""
    for i, (target, seed) in enumerate(names):
        if seed != 0:
            continue
        slim, kept, data = jax.tree.map(lambda leaf, i=i: leaf[i], (outcome.variables, outcome.units, part.train))
        dense = api.grow(problem, slim, kept)
        difference = compact.check(problem.model, dense.variables, problem.groups, kept, data["x"])
        folder = work / "slim" / target
        pretrained.save(
            folder,
            problem.slim,
            slim,
            units=kept,
            extra={"task": target, "masked_minus_slim": difference, "ratio": plan.ratio},
        )
        with checkpoint.Checkpoints(folder / "orbax") as saved:
            saved.save(plan.steps[-1], slim)


def report(plan: Plan, variables: Variables, rows: list[dict[str, Any]], work: Path) -> None:
    """Tables and pictures: `results.csv`, `results.md`, `accuracy.png`, `cost.png`."""
    records.write_csv(rows, work / "results.csv")
    table = reports.summary(rows, "mvp") if any(r["method"] == "mvp" for r in rows) else []
    records.write_text(work / "results.md", reports.to_markdown(table))
    pictures.plot_accuracy_against_steps(
        rows,
        work / "accuracy.png",
        split="valid",
        chance=1 / plan.sizes.classes_per_task,
        title="Validation accuracy of the pruned model against fine-tuning steps",
    )
    last = [r for r in table if r["steps"] == plan.steps[-1]]
    records.show(reports.to_terminal(last, title=f"{plan.ratio:.0%} of the units pruned, {plan.steps[-1]} steps"))
    report_cost(plan, variables, work)


def report_cost(plan: Plan, variables: Variables, work: Path) -> None:
    """Parameters, FLOPs, bytes on disk and compiled latency, dense against the slim models on disk."""
    folders = sorted(p for p in (work / "slim").glob("*") if p.is_dir())
    if not folders:
        return
    slim, slim_variables = pretrained.reload(folders[0])
    x = jnp.zeros((64, *slim.input_shape))
    dense = replace_head(variables, plan.task_model)
    found = []
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
    records.write_json(work / "cost.json", {"batch": 64, "models": found, "masked_minus_slim": differences})
    pictures.plot_cost(found, work / "cost.png")
    worst = max(differences.values())
    ratio = found[0]["latency_ms"] / found[1]["latency_ms"]
    records.say(
        f"slim models in {work / 'slim'}: {found[1]['params'] / found[0]['params']:.1%} of the parameters, "
        f"{found[1]['flops'] / found[0]['flops']:.1%} of the FLOPs, {ratio:.2f} times as fast at batch 64; "
        f"largest difference to the masked model {worst:.1e}"
    )
