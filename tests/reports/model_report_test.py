"""The report of a pruned model says all its numbers, in HTML that loads nothing and that no text can break out of."""

import html.parser
import io
import json
import math
import re

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from mvp_jax.reports import changed_examples, density_table, model_report_html, model_report_text, report_wording
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

HOSTILE = (
    "<script>alert(1)</script>",
    "]]> --> </style></title></svg><img src=x onerror=alert(1)>",
    "\" onmouseover='alert(1)' x=\"",
    "| a | b |\n|---|---|\n# heading [link](https://example.org) `code` **bold** &amp; &lt;",
    "left \u202e turned \u2066 אבג مرحبا \ud800 \x00 \x1b[31m \ufffe",
    "javascript:alert(1)",
    "x" * 10_000,
)


def png(size: int = 8, colour: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), colour, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def version(name, value, parameters, nonzero, latency=None, metric="accuracy", low=None, high=None):
    scores = (Score(metric, value, low, high, 872),)
    return ModelVersion(
        name=name,
        scores=scores,
        parameters=parameters,
        nonzero=nonzero,
        bytes=4 * parameters,
        flops=2.0 * nonzero,
        latency=latency,
    )


def example(text, label, dense, pruned, confidence=0.75, picture=b""):
    return ChangedExample(text, picture, label, dense, pruned, confidence)


@pytest.fixture(scope="module")
def full():
    """A report with everything in it, its foreign texts hostile."""
    kinds = ("attention/query", "attention/key", "fc1", "fc2")
    layers = tuple(
        LayerDensity(f"layers/{i}/{kind}/kernel", 1000, 100 * i + 10 * k + 7, "weights")
        for i in range(3)
        for k, kind in enumerate(kinds)
    )
    texts = [example(text, "good", "good", f"bad {k}", 0.51 + k / 1000) for k, text in enumerate(HOSTILE * 4)]
    return ModelReport(
        title="Reviews " + HOSTILE[0],
        facts=(("checkpoint", HOSTILE[1]), (HOSTILE[2], "value"), ("method", HOSTILE[3])),
        versions=(
            version("dense", 0.9031, 22_713_217, 22_713_216, Latency(32, 20.5, 19.25, 21.75), low=0.8815, high=0.9211),
            version("pruned", 0.8912, 22_713_217, 4_542_643, Latency(32, 20.0, 19.0, 22.0), low=0.8689, high=0.9101),
            version("slim", 0.8911, 11_811_111, 4_511_111, Latency(32, 12.5, 11.5, 13.5), low=0.8688, high=0.9102),
        ),
        layers=layers,
        curves=(
            TrainingCurve("dense", (10, 20, 30), (0.9, 0.61, 0.4321), (None, 0.7, 0.8543)),
            TrainingCurve(HOSTILE[2], (10, 20, 30), (1.1, math.nan, 0.5432), (0.6, math.inf, 0.8432)),
        ),
        examples=(*texts, example("", "cat", "dog", "cat", 0.987, png()), example("other", "a", "b", "c", None)),
        trials=(SearchTrial(0.5, 0.881, True), SearchTrial(0.75, 0.823, False), SearchTrial(0.625, 0.872, True)),
        files=(WrittenFile("model/", 'load it with f("model") ' + HOSTILE[1], 90_852_868),),
        notes=(HOSTILE[3], HOSTILE[4]),
        difference=ScoreDifference(-0.0119, -0.0251, 0.0014),
        target=0.8701,
    )


class Page(html.parser.HTMLParser):
    """The elements of a page, with what is wrong with it."""

    VOID = frozenset({"meta", "link", "img", "br", "wbr"})
    CLOSED = frozenset({"line", "circle", "rect", "path", "polyline"})
    OTHERS = (
        "html head title style body main header h1 h2 h3 p strong section table caption thead tbody tr th td span i "
        "b div figure figcaption svg text ul li bdi details summary code footer"
    )
    ALLOWED = VOID | CLOSED | set(OTHERS.split(" "))

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.elements: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        self.wrong += [f"never closed: {tag}" for tag in self.open]

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        if tag not in self.ALLOWED or len(set(names)) < len(names):
            self.wrong.append(f"{tag} {names}")
        for name, value in attributes:
            if name.startswith("on") or name in ("srcset", "action", "formaction", "background", "xlink:href", "ping"):
                self.wrong.append(f"{tag} {name}={value!r:.60}")
            if name in ("src", "href") and not (value or "").startswith("data:"):
                self.wrong.append(f"{tag} loads {value!r:.60}")
            if name == "style" and not re.fullmatch(r"(max-)?width:[\d.]+(%|px)", value or ""):
                self.wrong.append(f"{tag} style={value!r:.60}")
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        if tag not in self.CLOSED:
            self.wrong.append(f"{tag} closes itself")
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag):
        if not self.open or self.open[-1] != tag:
            self.wrong.append(f"</{tag}> inside {self.open[-2:]}")
        else:
            self.open.pop()

    def handle_comment(self, data):
        self.wrong.append(f"a comment {data!r:.40}")

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).replace("\u00a0", " ").split())


def checked(report) -> Page:
    text = model_report_html.to_html(report)
    text.encode("utf-8")
    assert text.startswith("<!DOCTYPE html>\n<html lang=")
    page = Page(text)
    assert page.wrong == []
    assert "url(" not in text.split("</style>")[0]
    assert "@import" not in text
    return page


def test_the_checker_sees_what_is_wrong():
    for bad in (
        "<p><b>x</p></b>",
        "<script>x</script>",
        '<img src="https://example.org/a.png">',
        "<p onclick=x>x</p>",
        "<p>x",
        '<p style="background:url(x)">x</p>',
        "<!-- x -->",
        "<div/>",
    ):
        assert Page(bad).wrong, bad
    assert Page('<p class="a">x<wbr>y</p><img src="data:,">').wrong == []


def test_the_page_is_sound_loads_nothing_and_says_so(full):
    page = checked(full)
    policy = [a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert [a["name"] for tag, a in page.elements if tag == "meta" and "name" in a] == ["viewport"]
    images = [a for tag, a in page.elements if tag == "img"]
    assert [a["alt"] for a in images] == ["true: cat; dense says dog; pruned says cat"]
    charts = [a for tag, a in page.elements if tag == "svg"]
    assert len(charts) == 5, "two of scores, one of trials, two of training"
    assert all(a["role"] == "img" and len(a["aria-label"]) > 20 for a in charts)
    assert model_report_html.to_html(full) == model_report_html.to_html(full)


def test_hostile_texts_are_shown_as_they_are(full):
    page = checked(full)
    for text in HOSTILE[:3]:
        assert text in page.text
    assert "x" * 10_000 not in page.text
    assert "… (10,000 characters)" in page.text
    assert "left [U+202E] turned [U+2066] אבג مرحبا \ufffd \ufffd \ufffd[31m \ufffd" in page.text
    markdown = model_report_text.to_markdown(full)
    assert "<script" not in markdown
    assert not re.search(r"(?<!\\)\]\(", markdown), "no link"
    assert "https://" not in markdown
    assert "x" * 1000 not in markdown
    markdown.encode("utf-8")


NUMBERS = [
    "22,713,217 22,713,217 100 % 11,811,111 52 %",
    "22,713,216 4,542,643 20 % 4,511,111 19.9 %",
    "90.9 MB 90.9 MB 100 % 47.2 MB 52 %",
    "45.4 M 9.09 M 20 % 9.02 M 19.9 %",
    "20.5 ms 19.2 to 21.8 20 ms 19 to 22 12.5 ms 11.5 to 13.5",
    "90.3 % [88.1, 92.1] 89.1 % [86.9, 91.0] 89.1 % [86.9, 91.0]",
    "The slim model is 1.6 times as fast here.",
    "The pruned model is not measurably faster or slower here",
    "872 test examples",
    "−1.2 points [−2.5, 0.1]",
    "0.4321",
    "85.43",
    "0.5432",
    "87.0 % was needed. The most that was removed and still good enough is 62.5 %.",
    "82.3 %",
    "98.7 %",
    "30 of 872 test examples",
    "(28, 20 of them shown)",
]


def test_every_number_appears(full):
    page = checked(full)
    squeezed = page.text.replace(" ", "")
    for numbers in NUMBERS:
        assert numbers.replace(" ", "") in squeezed, numbers
    for layer in full.layers:
        assert f"{layer.path}{layer.kept}1,000weights{layer.kept / 10:g}%" in squeezed.replace(".0%", "%")


def tables(markdown: str) -> list[list[list[str]]]:
    """The tables of a Markdown text, split at bars that are neither escaped nor in code."""
    found: list[list[list[str]]] = [[]]
    for line in markdown.split("\n"):
        if line.startswith("| "):
            bare = re.sub(r"(`+) ?.*? ?\1(?!`)", "code", line)
            found[-1].append([cell.strip() for cell in re.split(r"(?<!\\)\|", bare)[1:-1]])
        elif found[-1]:
            found.append([])
    return [t for t in found if t]


def assert_tables_are_whole(markdown: str) -> int:
    found = tables(markdown)
    for rows in found:
        assert len({len(row) for row in rows}) == 1, rows
        assert all(set(cell) <= set("-:") and "---" in cell for cell in rows[1])
        assert len(rows) > 2
    return len(found)


def test_the_markdown_has_whole_tables_and_the_same_numbers(full):
    markdown = model_report_text.to_markdown(full)
    assert assert_tables_are_whole(markdown) == 10, "facts, versions, layers, trials, 2 curves, 3 kinds, files"
    flat = re.sub(r"[|\\*()]|(?<=\d)\s(?=%)", "", markdown).replace(" ", "")
    for numbers in NUMBERS:
        if "[" not in numbers and "85.43" not in numbers:
            assert re.sub(r"[() ]", "", numbers) in flat, numbers
    assert "difference −1.2 points [−2.5, 0.1].**" in markdown
    assert "85.4 %" in markdown
    headings = [line for line in markdown.split("\n") if re.match("#+ ", line)]
    assert len([h for h in headings if h.startswith("# ")]) == 1
    assert len(headings) == 1 + 8 + 3 - (0 if full.notes else 1)
    assert "| layer 2, attention key | weights | 117 | 1,000 | 11.7 % | `layers/1/attention/key/kernel` |" in markdown


def test_a_report_of_little_is_short():
    little = ModelReport(
        title="t", facts=(), versions=(version("dense", 0.9, 100, 100), version("pruned", 0.8, 100, 20))
    )
    page = checked(little)
    assert "80 % of all parameters removed; accuracy 80.0 %, the dense model's 90.0 %." in page.text
    assert [tag for tag, _ in page.elements if tag in ("svg", "h2", "details")] == ["h2"]
    markdown = model_report_text.to_markdown(little)
    assert assert_tables_are_whole(markdown) == 1
    assert "None" not in page.text + markdown
    assert "nan" not in page.text + markdown


def test_the_headline_is_worked_out_by_hand():
    layers = (
        LayerDensity("layers/0/attention", 12, 6, "heads"),
        LayerDensity("layers/0/fc1", 1000, 400, "neurons"),
        LayerDensity("layers/1/attention", 12, 3, "heads"),
    )
    report = ModelReport(
        title="t",
        facts=(),
        versions=(
            version("dense", 0.9, 1000, 1000, Latency(8, 10, 9, 11), low=0.8815, high=0.9185),
            version("pruned", 0.92, 1000, 590, None, low=0.9, high=0.935),
            version("slim", 0.92, 600, 590, Latency(8, 20, 19, 21)),
        ),
        layers=layers,
        difference=ScoreDifference(0.02, 0.005, 0.03),
    )
    assert report_wording.headline(report) == (
        "62.5 % of the heads and 60 % of the neurons removed (41 % of all parameters); accuracy 92.0 % [90.0, 93.5], "
        "the dense model's 90.0 % [88.1, 91.8]; difference +2.0 points [0.5, 3.0].",
        "The interval of the difference lies above 0: the pruned model is better on such examples.",
        "The slim model: 60 % of the parameters, 60 % of the size on disk, slower here: a pass takes 2 times as long.",
    )
    assert "holds 0" in report_wording.verdict(ScoreDifference(-0.01, -0.02, 0.0), 10)
    assert "worse" in report_wording.verdict(ScoreDifference(-0.01, -0.02, -0.001), 10)
    assert report_wording.verdict(ScoreDifference(-0.01, None, None), 10) == ""


def test_examples_are_sorted_by_what_became_of_them(full):
    worse, better, other = changed_examples.grouped(full)
    assert (worse.total, better.total, other.total) == (28, 1, 1)
    assert len(worse.examples) == 20
    sure = [e.confidence for e in worse.examples]
    assert sure == sorted(sure, reverse=True)
    assert sure[0] == max(e.confidence for e in full.examples if e.pruned.startswith("bad"))
    assert better.examples[0].picture == png()

    numbers = [("1.0", "1.1", "3.0"), ("1.0", "0.5", "0.9"), ("2.0", "1.5", "2.5"), ("1.0", "1.0", "9.0")]
    regression = ModelReport(
        title="t",
        facts=(),
        versions=full.versions[:2],
        examples=tuple(example("x", *row, None) for row in numbers),
        changed=ChangedCounts(12, 1, 1),
    )
    groups = changed_examples.grouped(regression)
    assert [(g.title.split()[0], g.total, len(g.examples)) for g in groups] == [
        ("Further", 12, 2),
        ("Nearer", 1, 1),
        ("As", 1, 1),
    ]
    assert [e.pruned for e in groups[0].examples] == ["9.0", "3.0"]
    page = checked(regression)
    assert "(12, 2 of them shown)" in page.text
    assert "✓" not in page.text, "a number is not right or wrong"


def test_densities_make_a_table_where_names_do(full):
    table = density_table.arranged(full.layers)
    assert table.columns == ("attention query", "attention key", "MLP in", "MLP out")
    assert [row.name for row in table.rows] == ["layer 1", "layer 2", "layer 3"]
    assert table.rows[2].cells[1].kept == 217
    filters = [LayerDensity(f"stages/{s}/blocks/0/conv{j}", 8, 4, "filters") for s in (0, 1) for j in (1, 2)]
    table = density_table.arranged([LayerDensity("stem/conv", 8, 8, "filters"), *filters])
    assert [(row.name, row.whole) for row in table.rows] == [
        ("stem, convolution", True),
        ("stage 1, block 1", False),
        ("stage 2, block 1", False),
    ]
    assert table.counted == "filters"


def test_wrong_reports_are_refused():
    dense, pruned = version("dense", 0.9, 100, 100), version("pruned", 0.8, 100, 20)
    for versions in ((), (dense,), (pruned, dense), (dense, pruned, dense)):
        with pytest.raises(ValueError, match="give dense, pruned and, if there is one, slim"):
            ModelReport(title="t", facts=(), versions=versions)
    with pytest.raises(ValueError, match="keeps 9 of 8"):
        ModelReport(title="t", facts=(), versions=(dense, pruned), layers=(LayerDensity("a", 8, 9, "weights"),))
    with pytest.raises(ValueError, match="2 steps, 1 losses and 0 validation"):
        ModelReport(title="t", facts=(), versions=(dense, pruned), curves=(TrainingCurve("x", (1, 2), (1.0,), ()),))


def test_json_that_is_no_report_is_refused(full):
    data = model_report_text.to_json(full)
    assert data["headline"] == list(report_wording.headline(full))
    for change, message in (
        ({"format": "other"}, "format 'other'"),
        ({"title": 3}, "report.title is 3; it must be of type str"),
        ({"strange": 1}, "unknown entries \\['strange'\\]"),
        (
            {"layers": [{"path": "a"}]},
            r"report.layers\[0\] has unknown entries \[\] and lacks \['kept', 'size', 'what'\]",
        ),
        ({"layers": "abc"}, "it must be a list"),
        ({"facts": [["one"]]}, r"report.facts\[0\] has 1 entries; it must have 2"),
        ({"versions": []}, "give dense, pruned"),
        ({"examples": [{**data["examples"][0], "picture": "?"}]}, "is not base64"),
        ({"target": True}, "report.target is True"),
    ):
        with pytest.raises(ValueError, match=message):
            model_report_text.from_json({**data, **change})
    with pytest.raises(ValueError, match="format 'list'"):
        model_report_text.from_json([])


words = st.text(st.characters(), max_size=12) | st.sampled_from(HOSTILE[:6])
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
            ChangedExample, words, st.binary(max_size=9) | st.just(png()), words, words, words, st.none() | numbers
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


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(reports)
def test_any_report_is_sound_and_survives_json(report):
    checked(report)
    markdown = model_report_text.to_markdown(report)
    markdown.encode("utf-8")
    assert_tables_are_whole(markdown)
    written = json.dumps(model_report_text.to_json(report), allow_nan=False)
    # Equal but for `nan`, which equals nothing.
    assert repr(model_report_text.from_json(json.loads(written))) == repr(report)
