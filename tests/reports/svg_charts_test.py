"""Charts put points where the numbers are: places along an axis are a straight line of the values."""

import math
import re

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from mvp_jax.reports import svg_charts


def places(svg: str) -> list[np.ndarray]:
    """The points of every line of a chart, `[N, 2]`."""
    lines = re.findall(r'<polyline class="line s\d" points="([^"]*)"', svg)
    return [np.array([list(map(float, pair.split(","))) for pair in line.split()]) for line in lines]


def straight(drawn, values):
    """The slope of places against values, which must lie on a line to the rounding of a tenth."""
    slope, start = np.polyfit(values, drawn, 1)
    np.testing.assert_allclose(drawn, slope * np.asarray(values) + start, atol=0.11)
    return slope


def test_lines_are_drawn_where_their_numbers_are():
    first = tuple((float(x), 0.3 + 0.1 * math.sin(x)) for x in range(0, 50, 5))
    second = ((0.0, 0.9), (10.0, math.nan), (20.0, 0.5), (45.0, math.inf), (40.0, 0.6))
    lines = (svg_charts.ChartLine("one", 0, first), svg_charts.ChartLine("two", 1, second))
    svg = svg_charts.line_chart(lines, x_label="steps", y_label="loss", alt="what it shows")
    one, two = places(svg)
    assert len(one) == 10
    assert len(two) == 3, "numbers that are not finite are left out"
    x = straight(np.concatenate([one[:, 0], two[:, 0]]), [*(p[0] for p in first), 0, 20, 40])
    y = straight(np.concatenate([one[:, 1], two[:, 1]]), [*(p[1] for p in first), 0.9, 0.5, 0.6])
    assert x > 0 > y, "upwards is towards 0"
    ticks = re.findall(r'<text class="tick" x="([\d.]+)" y="[\d.]+" text-anchor="middle">([\d,]+)<', svg)
    assert straight([float(place) for place, _ in ticks], [float(word) for _, word in ticks]) == pytest.approx(x, 1e-3)
    assert svg.count("<circle") == 10
    assert svg.count("<rect") == 3


def test_long_lines_are_thinned_but_keep_their_ends():
    points = tuple((float(x), float(x % 7)) for x in range(5000))
    (drawn,) = places(
        svg_charts.line_chart(
            [svg_charts.ChartLine("long", 1, points)], x_label="steps", y_label="loss", alt="what it shows"
        )
    )
    assert 100 < len(drawn) <= 200
    assert drawn[-1, 0] == pytest.approx(380 - 66, abs=0.1)
    assert np.diff(drawn[:, 0]).min() > 0


def test_trials_are_dots_and_crosses_beside_the_target():
    trials = [(50.0, 90.0, True), (75.0, 80.0, False), (60.0, 89.0, True), (math.nan, 1.0, False)]
    svg = svg_charts.trial_chart(trials, 88.0, x_label="removed, %", y_label="score", alt="what it shows")
    dots = [(float(x), float(y)) for x, y in re.findall(r'<circle class="dot s1" cx="([\d.]+)" cy="([\d.]+)"', svg)]
    crosses = re.findall(r'<path class="cross s2" d="M([\d.]+) ([\d.]+)l8 8', svg)
    assert (len(dots), len(crosses)) == (2, 1)
    cross = float(crosses[0][0]) + 4, float(crosses[0][1]) + 4
    target = float(re.search(r'class="target"[^>]* y1="([\d.]+)"', svg)[1])
    straight([dots[0][0], dots[1][0], cross[0]], [50, 60, 75])
    straight([dots[0][1], dots[1][1], cross[1], target], [90, 89, 80, 88])


def test_intervals_are_drawn_from_low_to_high():
    rows = [
        svg_charts.ChartInterval("dense", 0, 90.0, 88.0, 92.0, "90 %"),
        svg_charts.ChartInterval("pruned", 1, 85.0, 82.0, 87.0, "85 %"),
        svg_charts.ChartInterval("slim", 2, 84.0, None, None, "84 %"),
    ]
    svg = svg_charts.interval_chart(rows, zero=False, digits=1, alt="what it shows")
    ends = [
        (float(a), float(b)) for a, b in re.findall(r'<path class="interval s\d" d="M([\d.]+) [\d.]+H([\d.]+)', svg)
    ]
    straight([*ends[0], *ends[1]], [88, 92, 82, 87])
    assert [word in svg for word in ("dense", "pruned", "slim", "84 %")] == [True] * 4
    assert 'class="target"' not in svg
    assert 'class="target"' in svg_charts.interval_chart(rows[:1], zero=True, digits=1, alt="x")


@hypothesis.given(
    st.floats(-1e9, 1e9), st.floats(1e-6, 1e9), st.integers(2, 8), st.booleans(), st.sampled_from([1, 1e-6, 1e6])
)
def test_ticks_are_few_round_and_inside(low, room, most, whole, unit):
    low, high = low * unit, (low + room) * unit
    hypothesis.assume(high - low > 1e-9 * max(abs(low), abs(high)))
    hypothesis.assume(not whole or high - low > 2)
    found = svg_charts.ticks(low, high, most, whole=whole)
    assert 1 <= len(found) <= most or not found
    slack = 1e-6 * (high - low) + 1e-11
    assert all(low - slack <= tick <= high + slack for tick in found)
    if whole:
        assert all(tick % 1 == 0 for tick in found)
    if len(found) > 2:
        np.testing.assert_allclose(np.diff(found), found[1] - found[0], rtol=1e-5, atol=1e-11)
