"""What the job `sparsity` writes besides its rows: tables, pictures, and how like and how dense masks are."""

import itertools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mvp_jax import reports
from mvp_jax.core import masks
from mvp_jax.core.types import Masks
from mvp_jax.data import archives
from mvp_jax.experiments import rates
from mvp_jax.experiments.plans import SparsityPlan
from mvp_jax.experiments.sparsity_job import mask_file, row_file
from mvp_jax.methods import registry
from mvp_jax.storage import event_files, files, foreign_files, records


def _read_mask(path: Path) -> Masks:
    """Returns a flat mask for each path, filled with `False` up to a whole byte: the file does not hold the shapes."""
    with foreign_files.named(path), files.local(path) as here:
        packed = archives.read(here)
        return masks.unpack(packed, {name: jax.ShapeDtypeStruct((8 * len(b),), bool) for name, b in packed.items()})


def alike(a: Masks, b: Masks) -> list[dict[str, Any]]:
    """Returns the cosine and the intersection over union of two masks, for each leaf and for all together.

    Args:
        a: a flat boolean array for each path of a leaf; True = kept.
        b: the other mask, in the same form.

    Returns:
        Rows `{"leaf", "cosine", "iou"}`, with values in [0, 1]; the last, whose `leaf` is `total`, is of all leaves.

    >>> alike({"w": np.array([True, True])}, {"w": np.array([True, False])})[-1]["iou"]
    0.5
    """
    cosines, shared = masks.leaf_cosines(a, b), masks.iou(a, b)
    rows = [{"leaf": name, "cosine": float(cosines[name]), "iou": float(shared[name])} for name in a]
    return [*rows, {"leaf": "total", "cosine": float(masks.cosine(a, b)), "iou": float(masks.overlap(a, b))}]


def similarity(plan: SparsityPlan, work: Path) -> list[dict[str, Any]]:
    """Returns how like the reference method's masks those of every other method are, as means over targets and seeds.

    Args:
        plan: the job's plan; `plan.reference` is the reference method.
        work: the folder of the run, with the masks.

    Returns:
        A row for each method, sparsity and leaf, with `cosine` and `iou` in [0, 1], and the number `n` of
        masks compared; no rows if the reference was not run.
    """
    found: dict[tuple[str, float, str], list[tuple[float, float]]] = {}
    for target, seed, sparsity in itertools.product(plan.setting.targets, range(plan.seeds), plan.sparsities):
        reference = mask_file(work, (plan.reference, sparsity, target.name, seed))
        if plan.reference not in plan.methods or not reference.exists():
            continue
        theirs = _read_mask(reference)
        for method in plan.methods:
            if method in (plan.reference, "unpruned"):
                continue
            for entry in alike(_read_mask(mask_file(work, (method, sparsity, target.name, seed))), theirs):
                found.setdefault((method, sparsity, entry["leaf"]), []).append((entry["cosine"], entry["iou"]))
    return [
        {
            "method": method,
            "sparsity": sparsity,
            "leaf": leaf,
            "reference": plan.reference,
            "cosine": float(np.mean([c for c, _ in pairs])),
            "iou": float(np.mean([i for _, i in pairs])),
            "n": len(pairs),
        }
        for (method, sparsity, leaf), pairs in found.items()
    ]


def densities(plan: SparsityPlan, work: Path) -> list[dict[str, Any]]:
    """Returns the density of each kind of leaf: the fraction of its weights that are kept.

    Args:
        plan: the job's plan.
        work: the folder of the run, with the rows.

    Returns:
        A row for each method, sparsity and kind of leaf, with the mean (`kept`) and the lowest (`least`)
        density over targets, seeds and layers, in [0, 1].
    """
    found: dict[tuple[str, float, str], list[float]] = {}
    for target, seed, sparsity, method in itertools.product(
        plan.setting.targets, range(plan.seeds), plan.sparsities, plan.methods
    ):
        path = row_file(work, (method, sparsity, target.name, seed))
        if method == "unpruned" or not path.exists():
            continue
        for leaf, share in json.loads(path.read_text())["kept"].items():
            found.setdefault((method, sparsity, kind_of(leaf)), []).append(share)
    return [
        {"method": m, "sparsity": s, "kind": kind, "kept": float(np.mean(v)), "least": float(np.min(v))}
        for (m, s, kind), v in found.items()
    ]


def kind_of(path: str) -> str:
    """Returns the path of a leaf without the numbers of layers, so that leaves of the same kind have the same name.

    >>> kind_of("layers/3/attention/query/kernel")
    'attention/query'
    """
    parts = [p for p in path.split("/") if not p.isdigit()]
    return "/".join(p for p in parts if p not in ("layers", "stages", "blocks", "kernel")) or path


def report(plan: SparsityPlan, rows: list[dict[str, Any]], work: Path) -> None:
    """Writes the tables and pictures of a finished job, and shows the table of accuracies.

    The files are `results.csv`, `results.md`, `similarity.json`, `density.json`, and the pictures of `draw`.

    Args:
        plan: the job's plan.
        rows: all rows of the results table.
        work: the folder of the run.
    """
    records.write_csv(rows, work / "results.csv")
    if plan.tensorboard:
        event_files.write_rows(rows, work / "board" / "results", "sparsity")
    whole = [r for r in rows if r["view"] == "whole"]
    alone = [r for r in rows if r["view"] == "mask"]
    names = registry.titles("sparse")
    table = reports.summary(whole, plan.ours)

    def section(heading: str, summary: list[dict[str, Any]], value: str = "accuracy %") -> str:
        return f"## {heading}\n\n{reports.to_markdown(summary, plan.ours, names, value=value, explained=False)}"

    text = [section("End to end", table)]
    for name in plan.metrics:
        if name != "accuracy":
            found = reports.summary([{**r, "accuracy": r[name]} for r in whole], plan.ours)
            text.append(section(f"End to end, {name}", found, f"100 × {name}"))
    if alone:
        text.append(section("The masks alone, on the pre-trained weights", reports.summary(alone, plan.ours)))
    chosen = rates.section(work, names, on_targets=plan.setting.tunes_on_targets).lstrip()
    text += [chosen] if chosen else []
    text.append(f"## What the columns mean\n\n{reports.explanation(table, plan.ours, names)}")
    records.write_text(work / "results.md", "\n".join(text))
    for name, likeness in (("similarity", similarity(plan, work)), ("density", densities(plan, work))):
        records.write_json(work / f"{name}.json", likeness)
    draw(whole, work, ours=plan.ours, chance=1 / plan.sizes.classes_per_task)
    title = f"{plan.base.training.steps} steps of fine-tuning"
    records.show(reports.to_terminal(table, plan.ours, names, title=title))


def draw(rows: list[dict[str, Any]], work: Path, *, ours: str, chance: float) -> None:
    """Draws test accuracy against sparsity and against what it cost; `..._all.png` with all names.

    `accuracy.png` is by sparsity, `cost.png` by the operations of training, and `serial.png` by the steps that follow
    one another if every member has a device of its own; both are drawn only if rows of pruned models have the cost.

    Args:
        rows: the rows of the results table whose models are judged whole, not by their masks alone.
        work: the folder that the pictures are written to.
        ours: the method that the pictures are about.
        chance: the accuracy of guessing, in [0, 1].
    """
    names, roles = registry.titles("sparse"), registry.roles("sparse")
    serial = {
        "cost": "cost_serial_steps",
        "label": "training steps one after the other",
        "title": "Accuracy against the steps one after the other, a device for each member",
    }
    # A run of the model that is not pruned alone has no cost to compare, and rows written by older versions of the
    # package have no serial steps.
    kinds: dict[str, dict[str, str]] = {"cost": {"cost": "cost_flops"}, "serial": serial}
    pruned = [r for r in rows if records.share(r) > 0]
    pictures = {name: how for name, how in kinds.items() if any(r.get(how["cost"]) for r in pruned)}
    for end, every in ((".png", False), ("_all.png", True)):
        reports.plot_accuracy_against_sparsity(
            rows, work / f"accuracy{end}", ours=ours, names=names, roles=roles, every=every, chance=chance
        )
        for name, how in pictures.items():
            reports.plot_accuracy_against_cost(
                rows, work / f"{name}{end}", ours=ours, names=names, roles=roles, every=every, **how
            )
