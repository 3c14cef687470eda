"""What is written of a pruned model: a folder that other tools load, a smaller one of this package, and a report."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mvp_jax import compact, pretrained
from mvp_jax.core import trees
from mvp_jax.core.types import Masks, Units, Variables
from mvp_jax.delivery import judging
from mvp_jax.delivery.inputs import TaskInputs
from mvp_jax.models import resnet
from mvp_jax.models.api import Model
from mvp_jax.pretrained import export
from mvp_jax.pretrained.source_files import Problem
from mvp_jax.reports import intervals, model_report_html, model_report_text
from mvp_jax.reports.model_report import ChangedCounts, ModelReport, SearchTrial, TrainingCurve, WrittenFile
from mvp_jax.storage import files, records
from mvp_jax.train import metrics

_COMPARED = 8
"""How many examples the outputs of what is written are compared on."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FinishedModel:
    """A pruned model of a task, ready to be written.

    Attributes:
        inputs: the task.
        dense: the fine-tuned dense variables, with which the pruned ones are compared.
        variables: the pruned variables in the dense shapes, zero where pruned.
        masks: booleans in the parameters' structure; True = kept.
        units: `{group: bool[C]}`, the units that are kept; empty if single weights were pruned.
        facts: what was done with what, for the report.
        title: the heading of the report.
        curves: of the trainings.
        trials: of a search.
        target: the validation score that a trial had to reach; `None`: there was no search.
        notes: sentences for the report.
    """

    inputs: TaskInputs
    dense: Variables
    variables: Variables
    masks: Masks
    units: Units
    facts: tuple[tuple[str, str], ...]
    title: str
    curves: tuple[TrainingCurve, ...] = ()
    trials: tuple[SearchTrial, ...] = ()
    target: float | None = None
    notes: tuple[str, ...] = ()


class WrittenModel(NamedTuple):
    """What was written of a pruned model.

    Attributes:
        report: what the report says.
        slim_model: the smaller model; the dense one if single weights were pruned.
        slim: its variables.
    """

    report: ModelReport
    slim_model: Model
    slim: Variables


def hand_over(
    directory: pathlib.Path, model: Model, variables: Variables, inputs: TaskInputs, **more: Any
) -> list[str]:
    """Writes a model in the dense shapes as `transformers` keeps it, or as this package does where that cannot be said.

    Args:
        directory: the folder.
        model: the dense model.
        variables: its variables, zero where pruned.
        inputs: the task: its checkpoint has the tokeniser or the processor.
        **more: what else `export.checkpoint` takes, such as `units`.

    Returns:
        Sentences that a reader should know.
    """
    x = inputs.valid["x"][:_COMPARED]
    problem: Problem = "single_label_classification" if inputs.class_names else "regression"
    source = inputs.source if inputs.source.is_dir() else None
    reason = export.why_not(model)
    if reason is not None:
        _save(directory, model, variables, inputs, "The model")
        first = reason.splitlines()[0]
        return [f"{directory.name}/ is a folder of this package, as transformers has no such model: {first}"]
    written = export.checkpoint(
        directory, model, variables, x=x, source=source, labels=inputs.class_names or None, problem=problem, **more
    )
    return [f"{directory.name}/: {note}" for note in written.notes]


def write(out: str | os.PathLike[str], finished: FinishedModel, *, programs: Sequence[str] = ()) -> WrittenModel:
    """Judges a finished model on the test examples, and writes it with a report.

    Written are `model/` (the dense shapes with zeros, as `transformers` loads it), `slim/` (smaller, as
    `pretrained.load` loads it), `report.html`, `report.md` and `report.json`.

    Args:
        out: the folder.
        finished: the model.
        programs: `stablehlo` and `onnx`: programs that are written besides, of the slim model.

    Returns:
        What was written.

    Raises:
        ValueError: if the folder cannot be written, or what is written does not compute what the model does.
    """
    root, inputs = files.path(out), finished.inputs
    notes = [*finished.notes, *_notes(finished), *inputs.notes, *inputs.data.notes]
    slim_model, slim = inputs.model, finished.variables
    if finished.units:
        slim_model, slim = compact.rebuild(inputs.model, finished.variables, finished.units)
        groups = [g for g in inputs.model.groups if g.name in finished.units]
        x = inputs.valid["x"][:_COMPARED]
        apart = compact.check(inputs.model, finished.variables, groups, finished.units, x)
        notes.append(f"the slim model's outputs differ from the masked dense model's by at most {apart:.1e}")
    notes += hand_over(
        root / "model",
        inputs.model,
        finished.variables,
        inputs,
        **({"units": finished.units} if finished.units else {}),
    )
    what = "heads, neurons or filters" if finished.units else "weights, whose zeros are left out of the file"
    about = f"{finished.title}: without the pruned {what}."
    _save(root / "slim", slim_model, slim, inputs, about, units=finished.units or None, sparse=not finished.units)
    has_dense = (root / "dense").is_dir()
    written = [
        ("model", "the pruned model, for transformers if it has such a model; what its config cannot say is zeros"),
        ("slim", "the smaller model, for mvp_jax.pretrained.load"),
        *([("dense", "the fine-tuned dense model; prune it again with another goal")] if has_dense else []),
        *_programs(root, slim_model, slim, inputs, programs),
    ]
    report = _report(root, finished, (slim_model, slim), notes, written)
    _write_report(root, report)
    return WrittenModel(report, slim_model, slim)


def _save(
    folder: pathlib.Path,
    model: Model,
    variables: Variables,
    inputs: TaskInputs,
    about: str,
    *,
    units: Units | None = None,
    sparse: bool = False,
) -> None:
    """Writes a folder of this package, with what lies beside the weights in the checkpoint."""
    pretrained.save(
        folder,
        model,
        variables,
        units=units,
        extra={"problem": "single_label_classification" if inputs.class_names else "regression"},
        source=inputs.source if inputs.source.is_dir() else None,
        labels=inputs.class_names or None,
        about=about,
        sparse=sparse,
    )


def _programs(
    root: pathlib.Path, model: Model, variables: Variables, inputs: TaskInputs, wanted: Sequence[str]
) -> list[tuple[str, str]]:
    x, found = inputs.valid["x"][:_COMPARED], []
    if "stablehlo" in wanted:
        export.program(root / "program", model, variables, x=x)
        found.append(("program", "the slim model as StableHLO, for mvp_jax.export.load_program"))
    if "onnx" in wanted:
        export.onnx(root / "model.onnx", model, variables, x=x)
        found.append(("model.onnx", "the slim model for ONNX Runtime"))
    return found


def _report(
    root: pathlib.Path,
    finished: FinishedModel,
    slim: tuple[Model, Variables],
    notes: Sequence[str],
    written: Sequence[tuple[str, str]],
) -> ModelReport:
    inputs, of_units = finished.inputs, bool(finished.units)
    sizes = {name: size_of(root / name) for name, _ in written}
    dense_bytes = _weights(root / "dense") or 4 * sum(int(np.size(leaf)) for leaf in jax.tree.leaves(finished.dense))
    written_model, written_variables = pretrained.load(root / "model")  # MLPs are narrower there, where units went
    if isinstance(written_model.config, resnet.ResNetConfig):
        written_model = inputs.model
    versions, given = judging.versions(
        inputs,
        [
            ("dense", inputs.model, finished.dense, dense_bytes, of_units),
            ("pruned", written_model, written_variables, _weights(root / "model"), of_units),
            ("slim", *slim, _weights(root / "slim"), of_units),
        ],
    )
    dense, pruned, _ = given
    if inputs.class_names and float(dense.correct.mean()) <= (common := _commonest(dense.labels)):
        notes = [
            f"The dense model is no better than always giving the commonest class ({common:.1%} of the test examples): "
            "it has learned too little to say what pruning costs. Train longer (epochs or steps).",
            *notes,
        ]
    difference, counts = _compared(inputs, dense, pruned)
    flags = trees.select(finished.dense.params, inputs.model.prunable)
    return ModelReport(
        title=finished.title,
        facts=(*finished.facts, *_data_facts(inputs)),
        versions=versions,
        layers=judging.densities(finished.dense.params, flags, finished.masks, finished.units, inputs.model.groups),
        curves=tuple(curve for curve in finished.curves if curve.steps),
        examples=judging.changed(inputs, dense, pruned),
        trials=finished.trials,
        files=tuple(WrittenFile(name + "/" * (root / name).is_dir(), what, sizes[name]) for name, what in written),
        notes=tuple(dict.fromkeys(notes)),
        difference=difference,
        changed=counts,
        target=finished.target,
    )


def _commonest(labels: np.ndarray) -> float:
    """Returns the share of the commonest class."""
    return float(np.bincount(labels).max() / len(labels))


def _notes(finished: FinishedModel) -> list[str]:
    """Returns what a reader may take for something else."""
    inputs, notes = finished.inputs, []
    if not finished.units:
        notes.append(
            "Single weights were pruned: the files can be smaller, but once it is loaded the model takes as much "
            "memory and time as before. Prune units (a ratio) for a model that is smaller and faster."
        )
    if any(curve.name == "pruned" and curve.steps for curve in finished.curves):
        notes.append(
            "The pruned model was trained on from the dense one, so that it has had more steps; a dense model that was "
            "trained briefly can fall behind it for that reason."
        )
    if "f1" in inputs.metrics:
        notes.append(f"F1 is of the class {inputs.class_names[1]!r}.")
    if finished.trials and inputs.metrics[0] == "accuracy":
        count = len(inputs.valid["y"])
        low, high = intervals.accuracy_interval(round(finished.trials[-1].score * count), count)
        notes.append(
            f"The attempts were judged on {count} validation examples, which tell an accuracy to about "
            f"{50 * (high - low):.1f} points: attempts that are as near to the target may be enough or not by chance."
        )
    return notes


def _compared(inputs: TaskInputs, dense: judging.Answers, pruned: judging.Answers) -> tuple[Any, ChangedCounts]:
    """Returns the difference of the first score with its interval, and on how many examples answers differ."""
    first = inputs.metrics[0]
    if inputs.class_names:
        worse, better = dense.correct & ~pruned.correct, pruned.correct & ~dense.correct
        other = (dense.outputs.argmax(-1) != pruned.outputs.argmax(-1)) & ~worse & ~better
        counts = ChangedCounts(*(int(a.sum()) for a in (worse, better, other)))
        if first == "accuracy":
            return intervals.paired_difference(dense.correct, pruned.correct), counts
        before, after = dense.outputs.argmax(-1), pruned.outputs.argmax(-1)
    else:
        before, after = (np.abs(a.outputs[:, 0] - a.labels) for a in (dense, pruned))
        grown = np.abs(after - before) > judging.NOTICEABLE * float(np.std(dense.labels))
        counts = ChangedCounts(int((grown & (after > before)).sum()), int((grown & (after < before)).sum()), 0)
        before, after = dense.outputs[:, 0], pruned.outputs[:, 0]
    difference = intervals.bootstrap_difference(
        lambda p, y: metrics.score((first,), p, y)[first], before, after, dense.labels, seed=0
    )
    return difference, counts


def _data_facts(inputs: TaskInputs) -> tuple[tuple[str, str], ...]:
    data = inputs.data
    flags = trees.select(inputs.variables.params, inputs.model.prunable)
    sizes = jax.tree.map(lambda leaf, yes: int(np.size(leaf)) * yes, inputs.variables.params, flags)
    prunable, every = sum(jax.tree.leaves(sizes)), sum(map(np.size, jax.tree.leaves(inputs.variables.params)))
    counts = ", ".join(
        f"{len(part.y):,} {name}"
        for name, part in zip(("to train", "to validate", "to test"), (data.train, data.valid, data.test), strict=True)
    )
    columns = ", ".join(f"{what}: {column}" for what, column in data.columns.items())
    found = [("data", f"{data.name}: {counts}")]
    if inputs.class_names:
        shown = ", ".join(inputs.class_names[:12]) + (
            f" and {len(inputs.class_names) - 12} more" if len(inputs.class_names) > 12 else ""
        )
        found.append(("classes", f"{len(inputs.class_names)}: {shown}"))
    if columns:
        found.append(("columns", columns))
    found.append(
        (
            "prunable weights",
            f"{prunable:,} of {every:,} parameters: kernels of the layers; embeddings, biases, norms and the head stay",
        )
    )
    return tuple(found)


def _weights(folder: pathlib.Path) -> int:
    """Returns the size of the files of weights in a folder."""
    return sum(p.stat().st_size for p in folder.glob("*.safetensors"))


def size_of(path: pathlib.Path) -> int:
    """Returns the number of bytes of a file, or of all files below a folder."""
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def _write_report(root: pathlib.Path, report: ModelReport) -> None:
    records.write_json(root / "report.json", model_report_text.to_json(report))
    records.write_text(root / "report.md", model_report_text.to_markdown(report))
    records.write_text(root / "report.html", model_report_html.to_html(report))
