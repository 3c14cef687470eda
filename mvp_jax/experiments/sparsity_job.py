"""Methods × sparsities × targets × seeds: every line of `lineup` on every target, as rows with their cost.

Each (method, sparsity, target, seed) is written when it is done, with its mask, so that a killed job goes on where it
stopped. A mask is judged twice: end to end, and alone: put on the pre-trained weights, which are then fine-tuned as
long as every method's are.
"""

import dataclasses
import io
import itertools
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mvp_jax import reports
from mvp_jax.compact import cost
from mvp_jax.core import masks, trees
from mvp_jax.core.patterns import Pattern
from mvp_jax.core.types import Masks, Variables
from mvp_jax.data import sources, tasks
from mvp_jax.experiments.sparsity_variants import lineup
from mvp_jax.experiments.stages import Setting, Sizes, Start, batch_of
from mvp_jax.methods import TO_A_SPARSITY, sparse
from mvp_jax.methods.sparse import isp
from mvp_jax.models.api import Model, replace_head
from mvp_jax.models.functions import freeze
from mvp_jax.parallel import processes
from mvp_jax.reports import curves
from mvp_jax.storage import checkpoint, event_files, records
from mvp_jax.train import evaluation, metrics, probe


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan(Start):
    """A checked config of a comparison at given sparsities.

    Attributes:
        methods: names of `lineup.lineup`.
        sparsities: shares to remove.
        base: Instant Soup Pruning, from which all budgets follow.
        pattern: what is pruned together.
        seeds: of each target.
        sizes: of the targets.
        round_steps: see `lineup.lineup`.
        examples: see `lineup.lineup`.
        reference: the method whose masks all others are compared with.
        ours: the method that the table compares all others with.
        keep_rounds: whether the rounds of a method under way are kept too.
        masks_alone: whether masks are judged alone as well.
        zero_shot: a kernel `[F, all classes]` made of texts, whose columns are the heads, frozen. `None`: logistic
            heads, which go on learning.
        metrics: of classes, that are reported beside accuracy; see `metrics.score`.
    """

    methods: tuple[str, ...]
    sparsities: tuple[float, ...]
    base: isp.Settings
    pattern: Pattern
    seeds: int
    sizes: Sizes
    round_steps: int
    examples: int
    reference: str
    ours: str
    keep_rounds: bool
    masks_alone: bool
    zero_shot: np.ndarray | None = None
    metrics: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        metrics.check(self.metrics, max(2, self.sizes.classes_per_task))

    @property
    def task_model(self) -> Model:
        model = self.model.with_classes(self.sizes.classes_per_task)
        return model if self.zero_shot is None else freeze(model, model.head)


def names(plan: Plan) -> tuple[str, ...]:
    """Every line of the table."""
    return tuple(lineup(_sketch(plan), plan.base, round_steps=plan.round_steps))


def _sketch(plan: Plan) -> sparse.SparsityProblem:
    """A problem of the right kind, for names and budgets."""
    model = plan.task_model
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    y = jnp.arange(plan.sizes.shots * model.num_classes, dtype=jnp.int32) % model.num_classes
    return sparse.SparsityProblem(
        model=model, variables=shapes, train={"x": y, "y": y}, sparsity=plan.sparsities[0], pattern=plan.pattern
    )


def problems(plan: Plan, variables: Variables) -> dict[tuple[str, int], tuple[sparse.SparsityProblem, tasks.TaskData]]:
    """Each target and seed: its pre-trained model under a fitted head, and its data."""
    setting, sizes, model = plan.setting, plan.sizes, plan.task_model
    body = replace_head(variables, model)
    found = {}
    for target, seed in itertools.product(setting.targets, range(plan.seeds)):
        own = tasks.materialise(
            target, setting.pools.target, shots=sizes.shots, valid=sizes.valid, test=sizes.test,
            valid_from=setting.pools.valid, test_from=setting.pools.test, seed=plan.seed + seed,
        )  # fmt: skip
        data = batch_of(own.train)
        if plan.zero_shot is None:
            start = probe.fit_head(model, body, data)
        else:
            start = replace_head(body, model, kernel=jnp.asarray(plan.zero_shot[:, list(target.classes)]))
        found[target.name, seed] = (
            sparse.SparsityProblem(
                model=model, variables=start, train=data, valid=batch_of(own.valid), sparsity=plan.sparsities[0],
                pattern=plan.pattern,
            ),
            own,
        )  # fmt: skip
    return found


def run(plan: Plan, variables: Variables, work: Path) -> list[dict[str, Any]]:
    """All rows; those that are there are read back."""
    cases = [
        (method, sparsity, target.name, seed)
        for target in plan.setting.targets
        for seed in range(plan.seeds)
        for sparsity in plan.sparsities
        for method in plan.methods
        if method != "unpruned" or sparsity == plan.sparsities[0]
    ]
    made = problems(plan, variables)
    flops = cost.of(plan.task_model, next(iter(made.values()))[0].variables)
    own = processes.share(cases)
    with records.progress(len(own), "pruning the targets by every method") as advance:
        for case in own:
            if not _row_file(work, case).exists():
                _one(plan, made, case, flops, work)
            advance(1, f"{case[0]} {case[1]:.0%}")
    processes.barrier("tried")
    return [row for case in cases for row in json.loads(_row_file(work, case).read_text())["rows"]]


Case = tuple[str, float, str, int]


def _row_file(work: Path, case: Case) -> Path:
    method, sparsity, target, seed = case
    return work / "rows" / f"{method}-{sparsity:g}-{target}-{seed}.json"


def _one(
    plan: Plan,
    made: dict[tuple[str, int], tuple[sparse.SparsityProblem, tasks.TaskData]],
    case: Case,
    flops: cost.Cost,
    work: Path,
) -> None:
    """Runs one method once, and writes its rows and mask."""
    method, sparsity, target, seed = case
    template, data = made[target, seed]
    problem = dataclasses.replace(template, sparsity=sparsity)
    entry = lineup(problem, plan.base, round_steps=plan.round_steps, examples=plan.examples)[method]
    # Streams depend on target and seed alone: methods see the same batches where they train alike.
    key = jax.random.fold_in(jax.random.key(plan.seed + 2), 1000 * _index(plan.setting, target) + seed)
    prune, start = TO_A_SPARSITY[entry.method], time.perf_counter()
    if plan.keep_rounds:
        folder = work / "running" / _row_file(work, case).stem
        with checkpoint.Checkpoints(folder, keep=1, alone=True) as saved:
            got = prune(problem, entry.settings, key, saved=saved)
    else:
        got = prune(problem, entry.settings, key)
    jax.block_until_ready(got.variables)
    seconds = time.perf_counter() - start
    spent = got.spent
    assert spent is not None
    assert got.alive is not None
    shared = {
        "target": target, "seed": seed, "method": method, "ratio": sparsity if method != "unpruned" else 0.0,
        "steps": plan.base.training.steps, "params": int(masks.count(got.masks, got.variables.params)),
        "flops": flops.flops, "cost_steps": spent.steps, "cost_examples": spent.examples,
        "cost_flops": 3 * flops.flops * spent.examples, "seconds": round(seconds, 3),
    }  # fmt: skip
    if not bool(got.alive):
        records.say(f"{method} diverged on {target}, seed {seed}; its row is of the last finite weights")
    rows = [shared | {"view": "whole"} | judged for judged in _judged(plan, got.variables, data)]
    if plan.masks_alone and method not in ("unpruned", "magnitude"):
        alone = _alone(problem, plan.base.training, got.masks, key)
        rows += [shared | {"view": "mask"} | judged for judged in _judged(plan, alone, data)]
    _write_mask(_mask_file(work, case), problem, got.masks)
    records.write_json(_row_file(work, case), {"rows": rows, "kept": _density(problem, got.masks)})


def _index(setting: Setting, name: str) -> int:
    return [t.name for t in setting.targets].index(name)


def _judged(plan: Plan, variables: Variables, data: tasks.TaskData) -> list[dict[str, Any]]:
    model = plan.task_model

    def one(part: sources.Arrays) -> dict[str, float]:
        batch = batch_of(part)
        if not plan.metrics:
            return {"accuracy": float(evaluation.evaluate(model, variables, batch)["accuracy"])}
        logits, _ = evaluation.infer(model, variables, batch["x"])
        return metrics.score(tuple(dict.fromkeys(("accuracy", *plan.metrics))), logits, part.y)

    return [{"split": split} | one(part) for split, part in (("valid", data.valid), ("test", data.test))]


def _alone(problem: sparse.SparsityProblem, training: sparse.SparsityTraining, mask: Masks, key: Any) -> Variables:
    """The pre-trained weights under a mask, fine-tuned as every method's are."""
    fresh = sparse.begin(problem, training, key)
    fresh = sparse.with_masks(fresh, fresh.kept, _as_large(fresh.state.masks, mask))
    return sparse.end(problem, training, sparse.finish(problem, training, fresh, key)).variables


def _as_large(like: Masks, mask: Masks) -> Masks:
    """Masks in the shapes that a run has, so that nothing compiles anew."""
    return jax.tree.map(lambda m, x: jnp.broadcast_to(x, jnp.shape(m)), like, mask)


# -- masks: on disk, how dense, how alike


def _mask_file(work: Path, case: Case) -> Path:
    return work / "masks" / f"{_row_file(work, case).stem}.npz"


def _prunable(problem: sparse.SparsityProblem, mask: Masks) -> dict[str, np.ndarray]:
    """Masks of the prunable leaves in the parameters' shapes, by path."""
    params, flags = trees.flatten(problem.variables.params), trees.flatten(problem.prunable)
    return {
        path: np.broadcast_to(np.asarray(m), params[path].shape)
        for path, m in trees.flatten(mask).items()
        if flags[path] or np.ndim(m)
    }


def _write_mask(path: Path, problem: sparse.SparsityProblem, mask: Masks) -> None:
    with records.replacing(path) as temporary:
        bits = {p: np.packbits(m) for p, m in _prunable(problem, mask).items()}
        np.savez(temporary, **bits)  # type: ignore[arg-type]


def _density(problem: sparse.SparsityProblem, mask: Masks) -> dict[str, float]:
    return {path: float(m.mean()) for path, m in _prunable(problem, mask).items()}


def _read_bits(path: Path) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(path.read_bytes())) as file:
        return {name: np.unpackbits(file[name]).astype(bool) for name in file.files}


def alike(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Cosine and intersection over union of two masks, leaf by leaf and in total (`leaf` is then `total`).

    >>> alike({"w": np.array([True, True])}, {"w": np.array([True, False])})[-1]["iou"]
    0.5
    """

    def one(name: str, pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
        both, left, right = (
            float(sum(np.sum(f(x, y)) for x, y in pairs)) for f in (np.logical_and, lambda x, _: x, lambda _, y: y)
        )
        either = left + right - both
        return {
            "leaf": name,
            "cosine": both / np.sqrt(left * right) if left and right else float(left == right),
            "iou": both / either if either else 1.0,
        }

    return [*(one(n, [(a[n], b[n])]) for n in a), one("total", [(a[n], b[n]) for n in a])]


def similarity(plan: Plan, work: Path) -> list[dict[str, Any]]:
    """How like the reference's masks those of each method are: means over targets and seeds."""
    found: dict[tuple[str, float, str], list[tuple[float, float]]] = {}
    for target, seed, sparsity in itertools.product(plan.setting.targets, range(plan.seeds), plan.sparsities):
        reference = _mask_file(work, (plan.reference, sparsity, target.name, seed))
        if plan.reference not in plan.methods or not reference.exists():
            continue
        theirs = _read_bits(reference)
        for method in plan.methods:
            if method in (plan.reference, "unpruned"):
                continue
            for entry in alike(_read_bits(_mask_file(work, (method, sparsity, target.name, seed))), theirs):
                found.setdefault((method, sparsity, entry["leaf"]), []).append((entry["cosine"], entry["iou"]))
    return [
        {
            "method": method, "ratio": sparsity, "leaf": leaf, "reference": plan.reference,
            "cosine": float(np.mean([c for c, _ in pairs])), "iou": float(np.mean([i for _, i in pairs])),
            "n": len(pairs),
        }
        for (method, sparsity, leaf), pairs in found.items()
    ]  # fmt: skip


def densities(plan: Plan, work: Path) -> list[dict[str, Any]]:
    """The share that each kind of leaf keeps: means over targets, seeds and layers."""
    found: dict[tuple[str, float, str], list[float]] = {}
    for target, seed, sparsity, method in itertools.product(
        plan.setting.targets, range(plan.seeds), plan.sparsities, plan.methods
    ):
        path = _row_file(work, (method, sparsity, target.name, seed))
        if method == "unpruned" or not path.exists():
            continue
        for leaf, share in json.loads(path.read_text())["kept"].items():
            found.setdefault((method, sparsity, kind_of(leaf)), []).append(share)
    return [
        {"method": m, "ratio": s, "kind": kind, "kept": float(np.mean(v)), "least": float(np.min(v))}
        for (m, s, kind), v in found.items()
    ]


def kind_of(path: str) -> str:
    """A leaf's path without the numbers of layers.

    >>> kind_of("layers/3/attention/query/kernel")
    'attention/query'
    """
    parts = [p for p in path.split("/") if not p.isdigit()]
    return "/".join(p for p in parts if p not in ("layers", "stages", "blocks", "kernel")) or path


def report(plan: Plan, rows: list[dict[str, Any]], work: Path) -> None:
    """`results.csv`, `results.md`, `similarity.csv`, `density.csv`, `accuracy.png`, `cost.png`."""
    records.write_csv(rows, work / "results.csv")
    if plan.tensorboard:
        event_files.write_rows(rows, work / "board" / "results", "ratio")
    whole = [r for r in rows if r["view"] == "whole"]
    alone = [r for r in rows if r["view"] == "mask"]
    table = reports.summary(whole, plan.ours)
    text = ["## End to end\n", reports.to_markdown(table, plan.ours)]
    for name in plan.metrics:
        if name != "accuracy":
            found = reports.summary([{**r, "accuracy": r[name]} for r in whole], plan.ours)
            of_metric = reports.to_markdown(found, plan.ours).replace("accuracy %", f"100 × {name}")
            text += [f"\n## End to end, {name}\n", of_metric]
    if alone:
        text += ["\n## The masks alone, on the pre-trained weights\n",
                 reports.to_markdown(reports.summary(alone, plan.ours), plan.ours)]  # fmt: skip
    records.write_text(work / "results.md", "\n".join(text))
    for name, likeness in (("similarity", similarity(plan, work)), ("density", densities(plan, work))):
        records.write_json(work / f"{name}.json", likeness)
    curves.plot_accuracy_against_sparsity(
        whole, work / "accuracy.png", ours=plan.ours, chance=1 / plan.sizes.classes_per_task
    )
    curves.plot_accuracy_against_cost(whole, work / "cost.png", ours=plan.ours)
    records.show(reports.to_terminal(table, plan.ours, title=f"{plan.base.training.steps} steps of fine-tuning"))


__all__ = ["Plan", "alike", "densities", "kind_of", "names", "problems", "report", "run", "similarity"]
