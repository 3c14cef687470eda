"""The `config.json` of a model that is written: what its format says, names of classes, and fields of its source."""

from collections.abc import Sequence
from typing import Any, get_args

from mvp_jax.pretrained import key_table, source_files
from mvp_jax.pretrained.key_table import Format
from mvp_jax.pretrained.source_files import Problem, SourceFiles


def described(
    form: Format,
    config: Any,
    source: SourceFiles | None,
    labels: Sequence[str] | None,
    problem: Problem | None,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The content of a `config.json`, and notes on what it or its folder lacks.

    Args:
        form: the format of the checkpoint that is written.
        config: our configuration of the model.
        source: what is taken over of the checkpoint that the model came from.
        labels: the names of the classes; `None`: those of the source, if they are as many.
        problem: what the logits are trained for; `None`: as the source says it, if it has as many classes.

    Returns:
        The content, empty if the format has no such file; and the notes, a sentence each.

    Raises:
        ValueError: if the problem is unknown or contradicts the number of classes, or the source's `config.json` is of
            another model.
    """
    made = form.describe(config)
    if problem is not None:
        _check_problem(problem, made)
    notes = list(source.notes if source is not None else ())
    if source is None and not made.get("architecture"):
        kind = "tokeniser" if hasattr(config, "vocab") else "image processor"
        notes.append(f"no source was given, so no {kind} was copied; give the checkpoint's folder as `source`")
    if getattr(config, "task", None) == "embed" and made.get("model_type") != "distilbert":
        notes.append(
            "the model has no pooler, so `transformers.AutoModel` makes a random one and says so; embeddings do not "
            "depend on it (add_pooling_layer=False leaves it out)"
        )
    if "head_dim" in made:
        notes.append("there are fewer heads than hidden_size / head_dim, which transformers reads from version 5 on")
    n = len(made.get("id2label", ())) or made.get("num_classes", 0)
    theirs = None if source is None else source.class_names
    same = theirs is not None and len(theirs) == n
    names = labels if labels is not None else theirs if same else None
    if source is not None:
        merged = source_files.merged(made, source)
        if merged != made and form.config(merged) != form.config(made):
            raise ValueError(
                f"config.json of the source {source.name} describes another model than the one that is written; give "
                "the folder that the model was loaded from"
            )
        if problem is None and names == theirs and "id2label" in made:
            problem = source.described.get("problem_type")
        made = merged
    if names is not None and "id2label" in made:
        made |= key_table.labels(n, names)
    elif names is not None and "num_classes" in made:
        made["label_names"] = list(names)
    elif labels is not None:
        notes.append(f"{form.name} has no place for the names of classes, so they were not written")
    if problem is not None:
        made["problem_type"] = problem
    return made, tuple(notes)


def _check_problem(problem: Problem, made: dict[str, Any]) -> None:
    if problem not in get_args(Problem):
        raise ValueError(f"problem={problem!r:.60}; allowed are {list(get_args(Problem))}")
    n = len(made.get("id2label", ()))
    if not n:
        raise ValueError(f"problem={problem!r}, but this format has no classes in a config.json; leave problem out")
    if problem == "single_label_classification" and n == 1:
        raise ValueError(f"problem={problem!r} needs at least 2 classes, this model has 1; give 'regression'")
