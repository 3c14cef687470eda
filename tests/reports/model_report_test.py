"""The report of a pruned model says all its numbers, in HTML that loads nothing and that no text can break out of."""

import math
import re

import pytest

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
from tests import report_pages


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
    texts = [
        example(text, "good", "good", f"bad {k}", 0.51 + k / 1000) for k, text in enumerate(report_pages.HOSTILE * 4)
    ]
    return ModelReport(
        title="Reviews " + report_pages.HOSTILE[0],
        facts=(
            ("checkpoint", report_pages.HOSTILE[1]),
            (report_pages.HOSTILE[2], "value"),
            ("method", report_pages.HOSTILE[3]),
        ),
        versions=(
            version("dense", 0.9031, 22_713_217, 22_713_216, Latency(32, 20.5, 19.25, 21.75), low=0.8815, high=0.9211),
            version("pruned", 0.8912, 22_713_217, 4_542_643, Latency(32, 20.0, 19.0, 22.0), low=0.8689, high=0.9101),
            version("slim", 0.8911, 11_811_111, 4_511_111, Latency(32, 12.5, 11.5, 13.5), low=0.8688, high=0.9102),
        ),
        layers=layers,
        curves=(
            TrainingCurve("dense", (10, 20, 30), (0.9, 0.61, 0.4321), (None, 0.7, 0.8543)),
            TrainingCurve(report_pages.HOSTILE[2], (10, 20, 30), (1.1, math.nan, 0.5432), (0.6, math.inf, 0.8432)),
        ),
        examples=(
            *texts,
            example("", "cat", "dog", "cat", 0.987, report_pages.png()),
            example("other", "a", "b", "c", None),
        ),
        trials=(SearchTrial(0.5, 0.881, True), SearchTrial(0.75, 0.823, False), SearchTrial(0.625, 0.872, True)),
        files=(WrittenFile("model/", 'load it with f("model") ' + report_pages.HOSTILE[1], 90_852_868),),
        notes=(report_pages.HOSTILE[3], report_pages.HOSTILE[4]),
        difference=ScoreDifference(-0.0119, -0.0251, 0.0014),
        target=0.8701,
    )


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
        assert report_pages.Page(bad).wrong, bad
    assert report_pages.Page('<p class="a">x<wbr>y</p><img src="data:,">').wrong == []


def test_the_page_is_sound_loads_nothing_and_says_so(full):
    page = report_pages.checked(full)
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
    page = report_pages.checked(full)
    for text in report_pages.HOSTILE[:3]:
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
    page = report_pages.checked(full)
    squeezed = page.text.replace(" ", "")
    for numbers in NUMBERS:
        assert numbers.replace(" ", "") in squeezed, numbers
    for layer in full.layers:
        assert f"{layer.path}{layer.kept}1,000weights{layer.kept / 10:g}%" in squeezed.replace(".0%", "%")


def test_the_markdown_has_whole_tables_and_the_same_numbers(full):
    markdown = model_report_text.to_markdown(full)
    assert report_pages.assert_tables_are_whole(markdown) == 10, (
        "facts, versions, layers, trials, 2 curves, 3 kinds, files"
    )
    flat = re.sub(r"[|\\*()]|(?<=\d)\s(?=%)", "", markdown).replace(" ", "")
    for numbers in NUMBERS:
        if "[" not in numbers and "85.43" not in numbers:
            assert re.sub(r"[() ]", "", numbers) in flat, numbers
    assert "difference −1.2 points [−2.5, 0.1].**" in markdown
    assert "85.4 %" in markdown
    headings = [line for line in markdown.split("\n") if re.match("#+ ", line)]
    assert len([h for h in headings if h.startswith("# ")]) == 1
    assert len(headings) == 1 + 8 + 3 + 2
    assert "| layer 2, attention key | weights | 117 | 1,000 | 11.7 % | `layers/1/attention/key/kernel` |" in markdown


def test_a_report_of_little_is_short():
    little = ModelReport(
        title="t", facts=(), versions=(version("dense", 0.9, 100, 100), version("pruned", 0.8, 100, 20))
    )
    page = report_pages.checked(little)
    assert "80 % of all parameters removed; accuracy 80.0 %, the dense model's 90.0 %." in page.text
    assert [tag for tag, _ in page.elements if tag in ("svg", "h2", "details")] == ["h2"]
    markdown = model_report_text.to_markdown(little)
    assert report_pages.assert_tables_are_whole(markdown) == 1
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
    assert better.examples[0].picture == report_pages.png()

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
    page = report_pages.checked(regression)
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
