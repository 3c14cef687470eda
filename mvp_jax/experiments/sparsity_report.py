"""What a comparison at given sparsities writes besides its rows: likeness and density of masks, tables, pictures."""

import io
import itertools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mvp_jax import reports
from mvp_jax.core import masks
from mvp_jax.core.types import Masks
from mvp_jax.experiments.plans import SparsityPlan
from mvp_jax.experiments.sparsity_job import mask_file, row_file
from mvp_jax.reports import curves
from mvp_jax.storage import event_files, records


def _read_mask(path: Path) -> Masks:
    """A flat mask for each path, with `False` up to a whole byte: what is on file does not know the shapes."""
    with np.load(io.BytesIO(path.read_bytes())) as file:
        packed = {name: file[name] for name in file.files}
    return masks.unpack(packed, {name: jax.ShapeDtypeStruct((8 * len(b),), bool) for name, b in packed.items()})


def alike(a: Masks, b: Masks) -> list[dict[str, Any]]:
    """Returns cosine and intersection over union of two flat masks, leaf by leaf and in total (`leaf` is `total`).

    >>> alike({"w": np.array([True, True])}, {"w": np.array([True, False])})[-1]["iou"]
    0.5
    """
    cosines, shared = masks.leaf_cosines(a, b), masks.iou(a, b)
    rows = [{"leaf": name, "cosine": float(cosines[name]), "iou": float(shared[name])} for name in a]
    return [*rows, {"leaf": "total", "cosine": float(masks.cosine(a, b)), "iou": float(masks.overlap(a, b))}]


def similarity(plan: SparsityPlan, work: Path) -> list[dict[str, Any]]:
    """How like the reference's masks those of each method are: means over targets and seeds."""
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
            "ratio": sparsity,
            "leaf": leaf,
            "reference": plan.reference,
            "cosine": float(np.mean([c for c, _ in pairs])),
            "iou": float(np.mean([i for _, i in pairs])),
            "n": len(pairs),
        }
        for (method, sparsity, leaf), pairs in found.items()
    ]


def densities(plan: SparsityPlan, work: Path) -> list[dict[str, Any]]:
    """The share that each kind of leaf keeps: means over targets, seeds and layers."""
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


def report(plan: SparsityPlan, rows: list[dict[str, Any]], work: Path) -> None:
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
        text += [
            "\n## The masks alone, on the pre-trained weights\n",
            reports.to_markdown(reports.summary(alone, plan.ours), plan.ours),
        ]
    records.write_text(work / "results.md", "\n".join(text))
    for name, likeness in (("similarity", similarity(plan, work)), ("density", densities(plan, work))):
        records.write_json(work / f"{name}.json", likeness)
    curves.plot_accuracy_against_sparsity(
        whole, work / "accuracy.png", ours=plan.ours, chance=1 / plan.sizes.classes_per_task
    )
    curves.plot_accuracy_against_cost(whole, work / "cost.png", ours=plan.ours)
    records.show(reports.to_terminal(table, plan.ours, title=f"{plan.base.training.steps} steps of fine-tuning"))
