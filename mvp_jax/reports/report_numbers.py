"""How a model's report writes numbers and foreign texts, the same in HTML and in Markdown."""

import math
import unicodedata

from mvp_jax.reports.model_report import Latency, ScoreDifference

_METRICS = {
    "accuracy": "accuracy",
    "f1": "F1",
    "matthews": "Matthews' correlation",
    "pearson": "Pearson's correlation",
    "spearman": "Spearman's correlation",
}
_OVERRIDES = {chr(c) for c in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def clean(text: str, limit: int) -> str:
    r"""Returns a text that is safe to show: shortened, and without characters that break or reorder a page.

    Control characters and lone surrogates become U+FFFD. Characters that turn the direction of what follows are named,
    so that one sees them.

    Args:
        text: any text.
        limit: the number of characters that are kept; how many there were is said behind.

    >>> clean("a" * 3000, 5)
    'aaaaa… (3,000 characters)'
    >>> clean("x\x00y\u202ez", 99)
    'x�y[U+202E]z'
    """
    shown = text[:limit].rstrip() if len(text) > limit else text
    out = []
    for c in shown.replace("\r\n", "\n").replace("\r", "\n"):
        if c in _OVERRIDES:
            out.append(f"[U+{ord(c):04X}]")
        elif c in "\n\t":
            out.append(c)
        else:
            broken = unicodedata.category(c) in ("Cc", "Cs") or ord(c) & 0xFFFE == 0xFFFE or 0xFDD0 <= ord(c) <= 0xFDEF
            out.append("\ufffd" if broken else c)
    return "".join(out) + (f"… ({len(text):,} characters)" if len(text) > limit else "")


def metric(name: str) -> str:
    """Returns a metric's name in words."""
    return _METRICS.get(name, clean(name, 40).replace("_", " "))


def number(value: float, digits: int) -> str:
    """Returns a number with a fixed number of decimals and a true minus sign; "no value" if it is not finite.

    >>> number(-1.25, 1), number(-0.001, 2), number(float("nan"), 2)
    ('−1.2', '0.00', 'no value')
    """
    if not math.isfinite(value):
        return "no value"
    shown = f"{value:.{digits}f}" if abs(value) < 1e9 else f"{value:.3g}"
    if not float(shown):
        shown = shown.lstrip("-")
    return shown.replace("-", "−")


def score(name: str, value: float) -> str:
    """Returns a score as it is read: an accuracy in per cent, others with three decimals.

    >>> score("accuracy", 0.8912), score("pearson", 0.8912)
    ('89.1 %', '0.891')
    """
    if name != "accuracy" or not math.isfinite(value):
        return number(value, 3)
    return number(100 * value, 1) + " %"


def interval(name: str, low: float | None, high: float | None) -> str:
    """Returns the 95 % interval of a score, in the unit in which `score` shows it; empty if it is not known.

    >>> interval("accuracy", 0.8689, 0.91), interval("f1", 0.8, None)
    ('[86.9, 91.0]', '')
    """
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return ""
    factor, digits = (100, 1) if name == "accuracy" else (1, 3)
    return f"[{number(factor * low, digits)}, {number(factor * high, digits)}]"


def difference(name: str, found: ScoreDifference) -> str:
    """Returns a difference of scores with its interval, an accuracy's in points.

    >>> difference("accuracy", ScoreDifference(-0.012, -0.025, 0.001))
    '−1.2 points [−2.5, 0.1]'
    """
    accuracy = name == "accuracy" and math.isfinite(found.value)
    value = number(100 * found.value, 1) + " points" if accuracy else number(found.value, 3)
    plus = "+" if found.value > 0 and value[0] in "0123456789" and any(c in "123456789" for c in value) else ""
    return f"{plus}{value} {interval(name, found.low, found.high)}".strip()


def share(part: float, whole: float) -> str:
    """Returns a share in per cent; what is not quite all or not quite nothing is not rounded to that.

    >>> share(1, 2), share(1, 3), share(99999, 100000), share(1, 100000), share(0, 5), share(3, 0)
    ('50 %', '33.3 %', 'over 99.9 %', 'under 0.1 %', '0 %', 'no share')
    """
    if not whole or not math.isfinite(part / whole):
        return "no share"
    shown = f"{100 * part / whole:.1f}"
    if shown == "100.0" and part < whole:
        return "over 99.9 %"
    if shown == "0.0" and part > 0:
        return "under 0.1 %"
    return shown.removesuffix(".0") + " %"


def size(count: float) -> str:
    """Returns a number of bytes in units of 1000.

    >>> size(90_912_000), size(812), size(999_990)
    ('90.9 MB', '812 bytes', '1.0 MB')
    """
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= 0.99995 * unit:  # less would be rounded to 1000.0 of the smaller unit
            return f"{count / unit:.1f} {name}"
    return f"{count:,.0f} bytes"


def operations(count: float) -> str:
    """Returns a large number to three digits.

    >>> operations(1.2345e9), operations(500), operations(999_900)
    ('1.23 G', '500', '1 M')
    """
    if not math.isfinite(count):
        return "no value"
    for unit, name in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= 0.9995 * unit:
            return f"{count / unit:.3g}{name}"
    return f"{count:.3g}"


def times(ratio: float) -> str:
    """Returns a ratio to two digits, or three where two would say 1.

    >>> times(1.68), times(1.04), times(12.3)
    ('1.7', '1.04', '12')
    """
    return f"{ratio:.3g}" if ratio < 1.1 or ratio >= 100 else f"{ratio:.2g}"


def milliseconds(value: float) -> str:
    """Returns a time in milliseconds to three digits.

    >>> milliseconds(12.345), milliseconds(1234.5)
    ('12.3', '1,234')
    """
    if not math.isfinite(value):
        return "no value"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def speed(dense: Latency | None, other: Latency | None) -> str:
    """Says in words how fast a version is beside the dense one; empty if it was not measured.

    The quartiles of both must lie apart for either to be called faster.

    >>> speed(Latency(32, 20, 19, 21), Latency(32, 12, 11, 13))
    '1.7 times as fast here'
    >>> speed(Latency(32, 20, 15, 25), Latency(32, 18, 17, 19))
    'not measurably faster or slower here: the spreads of the two timings overlap'
    """
    if dense is None or other is None:
        return ""
    if dense.batch != other.batch:
        return f"not compared in speed: batches of {dense.batch} and of {other.batch} examples were timed"
    if other.high < dense.low and other.median > 0:
        return f"{times(dense.median / other.median)} times as fast here"
    if dense.high < other.low and dense.median > 0:
        return f"slower here: a pass takes {times(other.median / dense.median)} times as long"
    return "not measurably faster or slower here: the spreads of the two timings overlap"


__all__ = [
    "clean",
    "difference",
    "interval",
    "metric",
    "milliseconds",
    "number",
    "operations",
    "score",
    "share",
    "size",
    "speed",
    "times",
]
