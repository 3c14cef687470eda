"""The sentences and the table of a model's report, the same in HTML and in Markdown."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from mvp_jax.reports import report_numbers
from mvp_jax.reports.model_report import Latency, ModelReport, ModelVersion, Score, ScoreDifference

ABOUT_INTERVALS = (
    "Intervals are of 95 %: they say how far a score may move with other test examples of the same kind. They do not "
    "say how far it would move with other random numbers in training."
)
"""What stands below every report."""


def removed(report: ModelReport) -> str:
    """Says in words how much was removed."""
    dense, pruned = report.versions[:2]
    everywhere = f"{report_numbers.share(dense.parameters - pruned.nonzero, dense.parameters)} of all parameters"
    parts = []
    for what in dict.fromkeys(layer.what for layer in report.layers):
        these = [layer for layer in report.layers if layer.what == what]
        whole, kept = sum(layer.size for layer in these), sum(layer.kept for layer in these)
        word = f"prunable {what}" if what == "weights" else report_numbers.clean(what, 40)
        parts.append(f"{report_numbers.share(whole - kept, whole)} of the {word}")
    if not parts:
        return f"{everywhere} removed"
    joined = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return f"{joined} removed ({everywhere})"


def headline(report: ModelReport) -> tuple[str, ...]:
    """Returns what a reader should know first, in one to three sentences."""
    dense, pruned = report.versions[:2]
    ours, theirs = pruned.scores[0], dense.scores[0]

    def told(s: Score) -> str:
        known = report_numbers.interval(s.metric, s.low, s.high)
        return f"{report_numbers.score(s.metric, s.value)} {known}".strip()

    name = report_numbers.metric(ours.metric)
    first = f"{removed(report)}; {name} {told(ours)}, the dense model's {told(theirs)}"
    if report.difference is not None:
        first += f"; difference {report_numbers.difference(ours.metric, report.difference)}"
    sentences = [first + "."]
    if report.difference is not None:
        sentences.append(verdict(report.difference, ours.count))
    if len(report.versions) > 2:
        sentences.append(_slim_sentence(dense, report.versions[2]))
    return tuple(s for s in sentences if s)


def verdict(found: ScoreDifference, count: int) -> str:
    """Says in words what the interval of a difference allows to say; empty if there is no interval."""
    if found.low is None or found.high is None:
        return ""
    if found.low <= 0 <= found.high:
        return (
            f"The interval of the difference holds 0: {count:,} test examples do not show that the pruned model is "
            "better or worse."
        )
    side, word = ("above", "better") if found.low > 0 else ("below", "worse")
    return f"The interval of the difference lies {side} 0: the pruned model is {word} on such examples."


def _slim_sentence(dense: ModelVersion, slim: ModelVersion) -> str:
    parts = [f"{report_numbers.share(slim.parameters, dense.parameters)} of the parameters"]
    parts.append(f"{report_numbers.share(slim.bytes, dense.bytes)} of the size on disk")
    told = report_numbers.speed(dense.latency, slim.latency)
    return "The slim model: " + ", ".join([*parts, *([told] if told else [])]) + "."


class VersionCell(NamedTuple):
    """A quantity of one version of the model, in words.

    Attributes:
        value: the quantity.
        beside: its interval, spread, or share of the dense model's; may be empty.
        part: the share of the dense model's, for a bar; `None`: no bar.
    """

    value: str
    beside: str
    part: float | None = None


def version_rows(report: ModelReport) -> list[tuple[str, list[VersionCell]]]:
    """Returns the table of versions: for each quantity its name, and a cell for each version."""
    versions = report.versions
    rows = [_score_row(name, versions) for name in dict.fromkeys(s.metric for v in versions for s in v.scores)]
    whole, fewer = [v.parameters for v in versions], [v.nonzero for v in versions]
    rows.append(_cost_row("parameters", whole, "{:,}".format))
    rows.append(_cost_row("parameters that are not 0", fewer, "{:,}".format))
    rows.append(_cost_row("size on disk", [v.bytes for v in versions], report_numbers.size))
    rows.append(_cost_row("FLOPs for an example", [v.flops for v in versions], report_numbers.operations))
    if any(v.latency for v in versions):
        rows.append(_latency_row([v.latency for v in versions]))
    return rows


def _score_row(name: str, versions: Sequence[ModelVersion]) -> tuple[str, list[VersionCell]]:
    cells = []
    for version in versions:
        found = next((s for s in version.scores if s.metric == name), None)
        cells.append(
            VersionCell("not measured", "")
            if found is None
            else VersionCell(
                report_numbers.score(name, found.value), report_numbers.interval(name, found.low, found.high)
            )
        )
    interval = ", with 95 % interval" if any(c.beside for c in cells) else ""
    return report_numbers.metric(name) + interval, cells


def _cost_row(label: str, values: Sequence[float], words: Callable[[Any], str]) -> tuple[str, list[VersionCell]]:
    cells = []
    for k, value in enumerate(values):
        part = value / values[0] if values[0] and math.isfinite(value / values[0]) else None
        share = report_numbers.share(value, values[0]) if k and part is not None else ""
        cells.append(VersionCell(words(value), share, part))
    return label, cells


def _latency_row(timed: Sequence[Latency | None]) -> tuple[str, list[VersionCell]]:
    batches = sorted({t.batch for t in timed if t is not None})
    same = len(batches) == 1
    base = timed[0].median if timed[0] is not None and same else 0.0
    cells = []
    for t in timed:
        if t is None:
            cells.append(VersionCell("not measured", ""))
            continue
        quartiles = f"{report_numbers.milliseconds(t.low)} to {report_numbers.milliseconds(t.high)}"
        beside = quartiles + ("" if same else f", batch of {t.batch:,}")
        value = f"{report_numbers.milliseconds(t.median)} ms"
        cells.append(VersionCell(value, beside, t.median / base if base else None))
    return f"latency here{f', batch of {batches[0]:,}' if same else ''} (median, quartiles)", cells


def search_sentence(report: ModelReport) -> str:
    """Says in words what a search found."""
    name = report.valid_metric or report.versions[0].scores[0].metric
    needed = "" if report.target is None else f"{report_numbers.score(name, report.target)} was needed. "
    best = max((t.amount for t in report.trials if t.enough), default=None)
    found = (
        "No trial was good enough."
        if best is None
        else f"The most that was removed and still good enough is {report_numbers.share(best, 1.0)}."
    )
    trials = "1 trial" if len(report.trials) == 1 else f"{len(report.trials):,} trials"
    return f"{trials}, judged by {report_numbers.metric(name)} on the validation examples. {needed}{found}"


def speed_sentences(report: ModelReport) -> list[str]:
    """Says of each version but the dense one how fast it is, where it was measured."""
    dense = report.versions[0]
    told = [(v.name, report_numbers.speed(dense.latency, v.latency)) for v in report.versions[1:]]
    return [f"The {name} model is {words}." for name, words in told if words]


__all__ = [
    "ABOUT_INTERVALS",
    "VersionCell",
    "headline",
    "removed",
    "search_sentence",
    "speed_sentences",
    "verdict",
    "version_rows",
]
