"""The report of a pruned model as one page of HTML that needs nothing beside it: no network, no scripts, no fonts."""

import base64
import html
import re
from collections.abc import Callable, Sequence

from mvp_jax.reports import (
    changed_examples,
    density_table,
    report_numbers,
    report_style,
    report_wording,
    svg_charts,
)
from mvp_jax.reports.model_report import ChangedExample, LayerDensity, ModelReport, TrainingCurve

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLES = {"dense": 0, "pruned": 1, "slim": 2}
_PIXELATED = 128
"""Pictures of fewer pixels across are drawn as squares, which is what the model saw."""


def to_html(report: ModelReport) -> str:
    """Returns the report as a page of HTML.

    Every text of the report is escaped and shortened where it is long. The page loads nothing, which its own policy
    enforces, follows the reader's choice of light or dark, and the same report gives the same bytes.

    Args:
        report: what there is to say.

    >>> from mvp_jax.reports.model_report import ModelVersion, Score
    >>> versions = tuple(ModelVersion(name=name, scores=(Score("accuracy", 0.9, 0.88, 0.92, 872),), parameters=100,
    ...                               nonzero=n, bytes=400, flops=1e3) for name, n in (("dense", 100), ("pruned", 20)))
    >>> page = to_html(ModelReport(title="A <small> model", facts=(), versions=versions))
    >>> "A &lt;small&gt; model" in page, "://" in page, "<script" in page
    (True, False, False)
    """
    title = _escaped(report.title, 200)
    sections = [
        _section("What was done", _facts(report)),
        _section("Before and after", _versions(report)),
        _section("To keep in mind", _notes(report)),
        _section("What is kept in each layer", _layers(report)),
        _section("The search", _trials(report)),
        _section("Training", _curves(report)),
        _section("Test examples on which the answer changed", _examples(report)),
        _section("Files", _files(report)),
    ]
    first, *others = report_wording.headline(report)
    lead = f'<p class="lead"><strong>{_escaped(_glued(first), 600)}</strong></p>'
    lead += "".join(f"<p>{_escaped(_glued(s), 600)}</p>" for s in others)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{title}</title>\n<link rel="icon" href="data:,">\n<style>{report_style.STYLE}</style>\n</head>\n'
        f"<body>\n<main>\n<header><h1>{title}</h1>{lead}</header>\n{''.join(sections)}"
        f'<footer class="soft"><p>{report_wording.ABOUT_INTERVALS}</p></footer>\n'
        "</main>\n</body>\n</html>\n"
    )


def _escaped(text: str, limit: int) -> str:
    return html.escape(report_numbers.clean(text, limit))


def _glued(sentence: str) -> str:
    """A sentence whose numbers stay on one line with their units, and intervals in one piece."""
    whole = re.sub(r"\[[^\[\] ]+, [^\[\] ]+\]", lambda found: found[0].replace(" ", "\u00a0"), sentence)
    return re.sub(r"(?<=\d) (?=%|points|ms|[kMG]?B\b|[kMGT]\b)", "\u00a0", whole)


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>\n{body}</section>\n" if body else ""


def _facts(report: ModelReport) -> str:
    rows = "".join(
        f'<tr><th scope="row">{_escaped(name, 80)}</th><td>{_escaped(value, 600)}</td></tr>\n'
        for name, value in report.facts
    )
    return f'<table class="facts"><tbody>\n{rows}</tbody></table>\n' if rows else ""


def _bar(part: float, kind: str = "") -> str:
    width = f"{100 * min(max(part, 0.0), 1.0):.1f}".removesuffix(".0")
    return f'<span class="bar {kind}" aria-hidden="true"><i style="width:{width}%"></i></span>'.replace(' "', '"')


def _versions(report: ModelReport) -> str:
    names = [_escaped(v.name, 40) for v in report.versions]
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    rows = []
    for label, cells in report_wording.version_rows(report):
        shown = []
        for k, cell in enumerate(cells):
            bar = "" if cell.part is None else _bar(cell.part, "dense" if k == 0 else "")
            beside = f'<span class="beside">{_escaped(cell.beside, 80)}</span>' if cell.beside else ""
            value = _escaped(_glued(cell.value), 80).replace(",", ",<wbr>")
            shown.append(f'<td><span class="value">{value}</span>{bar}{beside}</td>')
        rows.append(f'<tr><th scope="row">{_escaped(_glued(label), 120)}</th>{"".join(shown)}</tr>\n')
    count = report.versions[1].scores[0].count
    caption = f"Scores are of {count:,} test examples. Shares are of the dense model."
    table = (
        f'<table class="versions"><caption>{caption}</caption><thead><tr><td></td>{head}</tr></thead>\n'
        f"<tbody>\n{''.join(rows)}</tbody></table>\n"
    )
    told = "".join(f'<p class="soft">{_escaped(s, 300)}</p>\n' for s in report_wording.speed_sentences(report))
    return table + told + _score_charts(report)


def _score_charts(report: ModelReport) -> str:
    """The first score of every version with its interval, and the difference with its own."""
    name = report.versions[0].scores[0].metric
    factor, digits = (100, 1) if name == "accuracy" else (1, 3)

    def scaled(value: float | None) -> float | None:
        return None if value is None else factor * value

    rows = []
    for version in report.versions:
        for s in version.scores[:1]:
            if s.metric == name and svg_charts.drawable(s.value):
                text = f"{report_numbers.score(name, s.value)} {report_numbers.interval(name, s.low, s.high)}"
                style = _STYLES.get(version.name, 3)
                ends = (scaled(s.low), scaled(s.high))
                rows.append(svg_charts.ChartInterval(version.name, style, factor * s.value, *ends, text.strip()))
    figures = []
    word = report_numbers.metric(name)
    if rows and any(r.low is not None for r in rows):
        alt = f"{word} with 95 % intervals: " + "; ".join(f"{r.name} {r.text}" for r in rows)
        chart = svg_charts.interval_chart(rows, zero=False, digits=digits, alt=alt)
        unit = ", %" if name == "accuracy" else ""
        figures.append(f"<figure><figcaption>{_escaped(word, 80)}{unit}</figcaption>{chart}</figure>\n")
    d = report.difference
    if d is not None and d.low is not None and d.high is not None and svg_charts.drawable(d.value):
        text = report_numbers.difference(name, d).replace(" points", "")
        row = svg_charts.ChartInterval("difference", 1, factor * d.value, scaled(d.low), scaled(d.high), text)
        chart = svg_charts.interval_chart([row], zero=True, digits=digits, alt=f"pruned less dense: {text}")
        unit = ", points" if name == "accuracy" else ""
        figures.append(f"<figure><figcaption>pruned less dense{unit}</figcaption>{chart}</figure>\n")
    return f'<div class="charts">\n{"".join(figures)}</div>\n' if figures else ""


def _notes(report: ModelReport) -> str:
    items = "".join(f"<li>{_escaped(note, 2000)}</li>\n" for note in report.notes)
    return f'<ul class="notes">\n{items}</ul>\n' if items else ""


def _density_cell(layer: LayerDensity, span: int = 1) -> str:
    across = f' colspan="{span}"' if span > 1 else ""
    part = layer.kept / layer.size if layer.size else 0.0
    return f"<td{across}>{_glued(report_numbers.share(layer.kept, layer.size))}{_bar(part)}</td>"


def _layers(report: ModelReport) -> str:
    if not report.layers:
        return ""
    table = density_table.arranged(report.layers)
    head = "".join(f'<th scope="col">{_escaped(c, 60)}</th>' for c in table.columns)
    head = f"<thead><tr><td></td>{head}</tr></thead>\n" if head else ""
    rows = []
    for row in table.rows:
        if row.whole:
            cells = "".join(_density_cell(c, len(table.columns)) for c in row.cells if c is not None)
        else:
            cells = "".join("<td></td>" if c is None else _density_cell(c) for c in row.cells)
        rows.append(f'<tr><th scope="row">{_escaped(row.name, 120)}</th>{cells}</tr>\n')
    what = _escaped(table.counted, 40) or "units"
    caption = f"The share of the {what} that is kept; the fuller a bar, the more is left."
    few = " few" if len(table.columns) < 4 else ""
    picture = (
        f'<p class="soft">{caption}</p>\n<div class="scroll"><table class="density{few}">{head}<tbody>\n'
        f"{''.join(rows)}</tbody></table></div>\n"
    )
    exact = "".join(
        f'<tr><th scope="row"><code>{_escaped(x.path, 200)}</code></th><td>{x.kept:,}</td><td>{x.size:,}</td>'
        f"<td>{_escaped(x.what, 40)}</td><td>{report_numbers.share(x.kept, x.size)}</td></tr>\n"
        for x in report.layers
    )
    columns = "".join(f'<th scope="col">{c}</th>' for c in ("array", "kept", "of", "what", "share"))
    return (
        f"{picture}<details><summary>Numbers of all {len(report.layers):,} arrays</summary>"
        f'<div class="scroll"><table><thead><tr>{columns}</tr></thead><tbody>\n{exact}</tbody></table></div>'
        "</details>\n"
    )


def _score_factor(report: ModelReport) -> tuple[str, float, str]:
    """The metric of validation scores, by how much they are multiplied to be shown, and the words on an axis."""
    name = report.valid_metric or report.versions[0].scores[0].metric
    word = report_numbers.metric(name)
    return name, 100.0 if name == "accuracy" else 1.0, f"{word}, %" if name == "accuracy" else word


def _trials(report: ModelReport) -> str:
    if not report.trials:
        return ""
    name, factor, axis = _score_factor(report)
    words = report_wording.search_sentence(report)
    chart = svg_charts.trial_chart(
        [(100 * t.amount, factor * t.score, t.enough) for t in report.trials],
        None if report.target is None else factor * report.target,
        x_label="removed, %",
        y_label=f"validation {axis}",
        alt=words,
    )
    rows = "".join(
        f"<tr><td>{k}</td><td>{report_numbers.share(t.amount, 1.0)}</td><td>{report_numbers.score(name, t.score)}</td>"
        f"<td>{'yes' if t.enough else 'no'}</td></tr>\n"
        for k, t in enumerate(report.trials, 1)
    )
    columns = "".join(f'<th scope="col">{c}</th>' for c in ("trial", "removed", "validation score", "good enough"))
    return (
        f'<p>{_escaped(_glued(words), 600)}</p>\n<div class="charts"><figure>{chart}<figcaption>Dots are good enough, '
        f"crosses are not.</figcaption></figure>\n<figure><table><thead><tr>{columns}</tr></thead><tbody>\n{rows}"
        "</tbody></table></figure></div>\n"
    )


def _curves(report: ModelReport) -> str:
    _, factor, axis = _score_factor(report)

    def lines(values: Callable[[TrainingCurve], Sequence[float | None]], scale: float) -> list[svg_charts.ChartLine]:
        found = []
        for k, curve in enumerate(report.curves):
            pairs = zip(curve.steps, values(curve), strict=True)
            points = tuple((float(x), scale * y) for x, y in pairs if y is not None and svg_charts.drawable(y))
            if points:
                style = _STYLES.get(curve.name, 3 + k % 3)
                found.append(svg_charts.ChartLine(curve.name, style, points))
        return found

    figures = []
    for word, label, drawn in (
        ("Training loss", "loss", lines(lambda c: c.loss, 1.0)),
        ("Validation score", f"validation {axis}", lines(lambda c: c.valid, factor)),
    ):
        if drawn:
            ends = "; ".join(f"{line.name} ends at {line.points[-1][1]:.4g}" for line in drawn)
            chart = svg_charts.line_chart(drawn, x_label="training steps", y_label=label, alt=f"{word}: {ends}")
            figures.append(f"<figure>{chart}<figcaption>{word}: {_escaped(ends, 300)}.</figcaption></figure>\n")
    return f'<div class="charts">\n{"".join(figures)}</div>\n' if figures else ""


def _examples(report: ModelReport) -> str:
    groups = changed_examples.grouped(report)
    total, count = sum(g.total for g in groups), report.versions[1].scores[0].count
    if not groups:
        return ""
    parts = [f"<p>{total:,} of {count:,} test examples.</p>\n"]
    for group in groups:
        shown = f", {len(group.examples):,} of them shown" if len(group.examples) < group.total else ""
        parts.append(f'<h3>{group.title} <span class="soft">({group.total:,}{shown})</span></h3>\n')
        pictures = [e for e in group.examples if _is_picture(e)]
        texts = [e for e in group.examples if not _is_picture(e)]
        if pictures:
            parts.append(f'<ul class="pictures">\n{"".join(map(_picture, pictures))}</ul>\n')
        if texts:
            parts.append(f'<ul class="examples">\n{"".join(map(_text, texts))}</ul>\n')
    return "".join(parts)


def _is_picture(example: ChangedExample) -> bool:
    return example.picture.startswith(b"\x89PNG\r\n\x1a\n")


def _answers(example: ChangedExample) -> str:
    def said(name: str, answer: str, sure: str) -> str:
        if changed_examples.is_regression(example):
            return f"<span>{name}: <b>{_escaped(answer, 80)}</b>{sure}</span>"
        kind, mark = ("right", "✓") if answer == example.label else ("wrong", "✗")
        return f'<span>{name}: <b class="{kind}">{mark} {_escaped(answer, 80)}</b>{sure}</span>'

    sure = "" if example.confidence is None else f" ({report_numbers.share(example.confidence, 1.0)} probable)"
    label = f"<span>true: <b>{_escaped(example.label, 80)}</b></span>"
    return f'<p class="answers">{label} {said("dense", example.dense, "")} {said("pruned", example.pruned, sure)}</p>'


def _text(example: ChangedExample) -> str:
    text = _escaped(example.text, 600) or '<span class="soft">(no text)</span>'
    return f'<li><bdi class="text" dir="auto">{text}</bdi>{_answers(example)}</li>\n'


def _picture(example: ChangedExample) -> str:
    data = base64.b64encode(example.picture).decode("ascii")
    width = int.from_bytes(example.picture[16:20], "big")
    kind = ' class="pixels"' if 0 < width < _PIXELATED else ""
    alt = f"true: {example.label}; dense says {example.dense}; pruned says {example.pruned}"
    text = f'<bdi class="text" dir="auto">{_escaped(example.text, 200)}</bdi>' if example.text else ""
    return (
        f'<li><img src="data:image/png;base64,{data}" alt="{_escaped(alt, 300)}"{kind}>{text}{_answers(example)}</li>\n'
    )


def _files(report: ModelReport) -> str:
    rows = "".join(
        f'<tr><th scope="row"><code>{_escaped(f.path, 200)}</code></th><td>{_escaped(f.what, 600)}</td>'
        f'<td class="nowrap">{report_numbers.size(f.bytes)}</td></tr>\n'
        for f in report.files
    )
    columns = "".join(f'<th scope="col">{c}</th>' for c in ("beside this page", "what it is", "size"))
    return f"<table><thead><tr>{columns}</tr></thead><tbody>\n{rows}</tbody></table>\n" if rows else ""


__all__ = ["to_html"]
