"""The report of a pruned model as Markdown to read and as JSON to compute with."""

import base64
import dataclasses
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from mvp_jax.reports import changed_examples, layer_names, report_numbers, report_wording
from mvp_jax.reports.model_report import ChangedExample, ModelReport, TrainingCurve

FORMAT = "mvp_jax model report, version 1"
"""What `format` says in the JSON."""

_INTERVAL = re.compile(r"(\[−?[\d.,]+, −?[\d.,]+\](?![(\[:]))")
"""An interval between brackets that cannot be read as a link."""

_LOOKS = 12
"""How many points of a curve the Markdown shows at most."""


def to_markdown(report: ModelReport) -> str:
    """Returns the report as Markdown: the same sentences and tables as the page of HTML, without its pictures.

    Every text of the report is escaped, so that it is shown as it is and cannot become a heading, a link or HTML.

    Args:
        report: what there is to say.

    >>> from mvp_jax.reports.model_report import ModelVersion, Score
    >>> versions = tuple(ModelVersion(name=name, scores=(Score("accuracy", 0.9, 0.88, 0.92, 872),), parameters=100,
    ...                               nonzero=n, bytes=400, flops=1e3) for name, n in (("dense", 100), ("pruned", 20)))
    >>> print(to_markdown(ModelReport(title="Reviews", facts=(), versions=versions)).splitlines()[2])
    **80 % of all parameters removed; accuracy 90.0 % [88.0, 92.0], the dense model's 90.0 % [88.0, 92.0].**
    """
    first, *others = report_wording.headline(report)
    parts = [
        f"# {_cell(report.title, 200)}",
        f"**{_cell(first, 600)}**",
        *(_cell(s, 600) for s in others),
        _section("What was done", _table(("", ""), [[_cell(a, 80), _cell(b, 600)] for a, b in report.facts])),
        _section("Before and after", _versions(report)),
        _section("To keep in mind", "\n".join(f"- {_cell(note, 2000)}" for note in report.notes)),
        _section("What is kept in each layer", _layers(report)),
        _section("The search", _trials(report)),
        _section("Training", "\n\n".join(_curve(report, curve) for curve in report.curves if curve.steps)),
        _section("Test examples on which the answer changed", _examples(report)),
        _section("Files", _files(report)),
        f"---\n\n{report_wording.ABOUT_INTERVALS}",
    ]
    return "\n\n".join(p for p in parts if p) + "\n"


def to_json(report: ModelReport) -> dict[str, Any]:
    """Returns the report in JSON's own types, with the sentences of its head; `from_json` reverses it.

    Bytes become base64, and numbers that are not finite, which JSON lacks, the texts `nan`, `inf` and `-inf`. So
    `json.dumps` never writes what other programs refuse.

    Args:
        report: what there is to say.
    """
    plain = _plain(report)
    return {"format": FORMAT, "headline": list(report_wording.headline(report)), **plain}


def from_json(data: Mapping[str, Any]) -> ModelReport:
    """Returns the report that `to_json` wrote.

    Args:
        data: what `to_json` returned, after any way through JSON.

    Raises:
        ValueError: if it is of another format, or something is missing, unknown or of another type.
    """
    if not isinstance(data, Mapping) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, Mapping) else type(data).__name__
        raise ValueError(f"not a model's report: format {found!r}; it must be {FORMAT!r}, as to_json writes it")
    fields = {name: value for name, value in data.items() if name not in ("format", "headline")}
    report = _typed(ModelReport, fields, "report")
    assert isinstance(report, ModelReport)
    return report


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {name: _plain(v) for name, v in zip(value._fields, value, strict=True)}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    number = float(value)  # NumPy's numbers too
    return number if math.isfinite(number) else str(number)


def _typed(kind: Any, value: Any, place: str) -> Any:
    """The value of a type, from JSON's own types; `place` is where it stands, for messages."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        inner = next(a for a in arguments if a is not type(None))
        return None if value is None else _typed(inner, value, place)
    if origin is tuple:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise ValueError(f"{place} is {value!r:.80}; it must be a list")
        kinds = [arguments[0]] * len(value) if arguments[1:] == (...,) else list(arguments)
        if len(kinds) != len(value):
            raise ValueError(f"{place} has {len(value)} entries; it must have {len(kinds)}")
        return tuple(_typed(k, v, f"{place}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    if dataclasses.is_dataclass(kind) or hasattr(kind, "_fields"):
        return _record(kind, value, place)
    if kind is bytes and isinstance(value, str):
        try:
            return base64.b64decode(value, validate=True)
        except ValueError as error:
            raise ValueError(f"{place} is not base64: {error}") from error
    if kind is float and (value in ("nan", "inf", "-inf") or (isinstance(value, int) and not isinstance(value, bool))):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{place} is {value!r:.80}; it must be of type {kind.__name__}")
    return value


def _record(kind: Any, value: Any, place: str) -> Any:
    if not isinstance(value, Mapping):
        raise ValueError(f"{place} is {value!r:.80}; it must be an object")
    types_ = typing.get_type_hints(kind)
    if dataclasses.is_dataclass(kind):
        given = {f.name for f in dataclasses.fields(kind) if f.default is not dataclasses.MISSING}
    else:
        given = set(kind._field_defaults)
    unknown, missing = sorted(set(value) - set(types_)), sorted(set(types_) - set(value) - given)
    if unknown or missing:
        raise ValueError(f"{place} has unknown entries {unknown} and lacks {missing}; there are {sorted(types_)}")
    return kind(**{name: _typed(types_[name], v, f"{place}.{name}") for name, v in value.items()})


def _cell(text: str, limit: int) -> str:
    """A text in one line in which nothing is Markdown or HTML."""
    flat = " ".join(report_numbers.clean(text, limit).split())
    flat = flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    pieces = _INTERVAL.split(flat)  # intervals, which stay as they are, are every second piece
    pieces[::2] = [re.sub(r"([\\`*_{}\[\]|~$])", r"\\\1", piece) for piece in pieces[::2]]
    flat = "".join(pieces)
    # At the start of a line these would make a list, a heading or a rule; and a link needs no brackets.
    flat = re.sub(r"^(\d{1,9})([.)])(?!\S)", r"\1\\\2", flat)
    flat = re.sub(r"^([-+#=])", r"\\\1", flat)
    return re.sub(r"(?i)\b(https?|ftp|www|mailto)([:.])", r"\1&#8203;\2", flat)


def _code(text: str, limit: int) -> str:
    """A path or name as code, whatever is in it."""
    flat = " ".join(report_numbers.clean(text, limit).split()).replace("|", "¦")
    longest = max((len(run) for run in re.findall("`+", flat)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {flat} {fence}" if longest else f"`{flat}`" if flat else ""


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> str:
    if not rows:
        return ""
    rule = ["---:" if k in right else "---" for k in range(len(columns))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (columns, rule, *rows))


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}" if body else ""


def _versions(report: ModelReport) -> str:
    names = [_cell(v.name, 40) for v in report.versions]
    rows = []
    for label, cells in report_wording.version_rows(report):
        shown = [
            f"{c.value} ({c.beside})" if c.beside and c.beside[0] != "[" else f"{c.value} {c.beside}" for c in cells
        ]
        rows.append([_cell(label, 120), *(_cell(s.strip(), 160) for s in shown)])
    table = _table(("", *names), rows, right=range(1, 1 + len(names)))
    count = report.versions[1].scores[0].count
    told = f"Scores are of {count:,} test examples. Shares are of the dense model."
    return "\n\n".join([table, " ".join([told, *(_cell(s, 300) for s in report_wording.speed_sentences(report))])])


def _layers(report: ModelReport) -> str:
    rows = [
        [
            _cell(layer_names.readable(x.path), 120),
            _cell(x.what, 40),
            f"{x.kept:,}",
            f"{x.size:,}",
            report_numbers.share(x.kept, x.size),
            _code(x.path, 200),
        ]
        for x in report.layers
    ]
    return _table(("layer", "what", "kept", "of", "share", "array"), rows, right=(2, 3, 4))


def _valid_metric(report: ModelReport) -> str:
    return report.valid_metric or report.versions[0].scores[0].metric


def _trials(report: ModelReport) -> str:
    if not report.trials:
        return ""
    name = _valid_metric(report)
    rows = [
        [str(k), report_numbers.share(t.amount, 1.0), report_numbers.score(name, t.score), "yes" if t.enough else "no"]
        for k, t in enumerate(report.trials, 1)
    ]
    table = _table(("trial", "removed", "validation score", "good enough"), rows, right=(0, 1, 2))
    return f"{_cell(report_wording.search_sentence(report), 600)}\n\n{table}"


def _curve(report: ModelReport, curve: TrainingCurve) -> str:
    last = len(curve.steps) - 1
    chosen = (
        sorted({round(k * last / max(_LOOKS - 1, 1)) for k in range(_LOOKS)}) if last >= _LOOKS else range(last + 1)
    )
    name = _valid_metric(report)
    rows = []
    for k in chosen:
        valid = curve.valid[k]
        told = "" if valid is None else report_numbers.score(name, valid)
        rows.append([f"{curve.steps[k]:,}", f"{curve.loss[k]:.4g}", told])
    some = f" ({len(rows)} of {len(curve.steps):,} points; all are in the JSON)" if len(rows) < len(curve.steps) else ""
    table = _table(
        ("steps", "training loss", f"validation {_cell(report_numbers.metric(name), 60)}"), rows, right=(0, 1, 2)
    )
    return f"### {_cell(curve.name, 60) or '(no name)'}{some}\n\n{table}"


def _examples(report: ModelReport) -> str:
    groups = changed_examples.grouped(report)
    if not groups:
        return ""
    total, count = sum(g.total for g in groups), report.versions[1].scores[0].count
    parts = [f"{total:,} of {count:,} test examples."]
    for group in groups:
        shown = f", {len(group.examples):,} of them shown" if len(group.examples) < group.total else ""
        parts.append(f"### {group.title} ({group.total:,}{shown})")
        rows = [_example(e) for e in group.examples]
        parts.append(_table(("example", "true", "dense", "pruned", "its probability"), rows))
    return "\n\n".join(p for p in parts if p)


def _example(example: ChangedExample) -> list[str]:
    text = _cell(example.text, 400) or ("(a picture, see the HTML)" if example.picture else "(no text)")
    sure = "" if example.confidence is None else report_numbers.share(example.confidence, 1.0)
    return [text, *(_cell(s, 80) for s in (example.label, example.dense, example.pruned)), sure]


def _files(report: ModelReport) -> str:
    rows = [[_code(f.path, 200), _cell(f.what, 600), report_numbers.size(f.bytes)] for f in report.files]
    return _table(("beside this file", "what it is", "size"), rows, right=(2,))


__all__ = ["FORMAT", "from_json", "to_json", "to_markdown"]
