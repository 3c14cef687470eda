"""Any report, of any numbers and texts, is sound HTML and Markdown and survives JSON."""

import json
import re

import hypothesis
from hypothesis import strategies as st

from mvp_jax.reports import model_report_text, report_numbers
from mvp_jax.reports.model_report import (
    ChangedCounts,
    ChangedExample,
    Latency,
    LayerDensity,
    ModelReport,
    ModelVersion,
    Score,
    ScoreDifference,
    SearchTrial,
    TrainingCurve,
    WrittenFile,
)
from tests import report_pages

words = st.text(st.characters(), max_size=12) | st.sampled_from(report_pages.HOSTILE[:6])
numbers = st.floats(width=64)
known = st.none() | st.floats(-2, 2)
counts = st.integers(0, 10**12)


def versions(name):
    return st.builds(
        ModelVersion,
        name=st.just(name),
        scores=st.lists(
            st.builds(Score, st.sampled_from(["accuracy", "pearson", "mine"]) | words, numbers, known, known, counts),
            min_size=1,
            max_size=2,
        ).map(tuple),
        parameters=counts,
        nonzero=counts,
        bytes=counts,
        flops=st.floats(0, allow_infinity=True),
        latency=st.none() | st.builds(Latency, st.integers(1, 64), *[st.floats(0, 1e6)] * 3),
    )


def many(element, most=3):
    return st.lists(element, max_size=most).map(tuple)


@st.composite
def curves(draw):
    n = draw(st.integers(0, 4))
    exactly = {"min_size": n, "max_size": n}
    steps, loss, valid = st.integers(0, 10**6), numbers, st.none() | numbers
    return TrainingCurve(draw(words), *(tuple(draw(st.lists(x, **exactly))) for x in (steps, loss, valid)))


@st.composite
def layers(draw):
    size = draw(st.integers(0, 10**9))
    path = draw(words | st.sampled_from(["layers/0/fc1/kernel", "layers/1/fc1/kernel", "stages/0/blocks/1/conv2"]))
    return LayerDensity(path, size, draw(st.integers(0, size)), draw(st.sampled_from(["weights", "heads"]) | words))


reports = st.builds(
    ModelReport,
    title=words,
    facts=many(st.tuples(words, words)),
    versions=st.tuples(versions("dense"), versions("pruned"))
    | st.tuples(versions("dense"), versions("pruned"), versions("slim")),
    layers=many(layers(), 6),
    curves=many(curves()),
    examples=many(
        st.builds(
            ChangedExample,
            words,
            st.binary(max_size=9) | st.just(report_pages.png()),
            words,
            words,
            words,
            st.none() | numbers,
        )
        | st.builds(ChangedExample, words, st.just(b""), *[st.floats(-9, 9).map(str)] * 3, st.none())
    ),
    trials=many(st.builds(SearchTrial, numbers, numbers, st.booleans())),
    files=many(st.builds(WrittenFile, words, words, counts)),
    notes=many(words),
    difference=st.none() | st.builds(ScoreDifference, numbers, known, known),
    changed=st.none() | st.builds(ChangedCounts, *[st.integers(0, 99)] * 3),
    target=st.none() | numbers,
    valid_metric=words,
)


def assert_texts_are_shown(report, markdown):
    """The title, the notes and the facts are read as they were given, and none of them is more than text."""
    pieces = report_pages.rendered(markdown)

    def shown(text):
        cleaned = report_numbers.clean(text, 2000)
        return " ".join(re.sub(r"(?i)\b(https?|ftp|www|mailto)([:.])", "\\1\u200b\\2", cleaned).split())

    assert (pieces[0] == shown(report.title)) or not shown(report.title)
    for text in (*report.notes, *(part for fact in report.facts for part in fact)):
        assert shown(text[:80]) in pieces or not shown(text) or len(text) > 80, text


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(reports)
def test_any_report_is_sound_and_survives_json(report):
    report_pages.checked(report)
    markdown = model_report_text.to_markdown(report)
    markdown.encode("utf-8")
    report_pages.assert_tables_are_whole(markdown)
    assert_texts_are_shown(report, markdown)
    written = json.dumps(model_report_text.to_json(report), allow_nan=False)
    # Equal but for `nan`, which equals nothing.
    assert repr(model_report_text.from_json(json.loads(written))) == repr(report)
