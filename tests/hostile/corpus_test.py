"""Hostile files: each is refused in one line that names it, soon, in little memory, and without anything executed."""

import collections
import pathlib
import random
import re

import pytest

from tests.hostile import corpus, fuzz, watch

SECONDS = 1.0  # of the processor; a reader does no work before it refuses
BYTES = 100 * 2**20
LENGTH = 2_000  # characters; a message is read by a person

# Two readers tell of all that does not fit, a line each, under a first line that names the file.
_LISTS = re.compile(r"\d+ problems:$|\d+ of \d+ entries are not sound:$")


def faults(case, path, report):
    """What is wrong with how a file was refused."""
    found = []
    if report["error"] != "ValueError":
        return [f"was not refused by a ValueError but: {report['error'] or 'nothing'}: {report['message'][:300]}"]
    lines = report["message"].splitlines()
    first = lines[0] if lines else ""
    if str(path) not in report["message"] or case.named not in report["message"]:
        found.append("does not name the file")
    if len(lines) != 1 and not (lines and _LISTS.search(first)) and case.reader != "verified_bank":
        found.append(f"{len(lines)} lines")
    if not all(c.isprintable() or c == "\n" for c in report["message"]):
        found.append("characters that steer a terminal")
    if len(report["message"]) > LENGTH:
        found.append(f"{len(report['message'])} characters")
    if report["seconds"] > SECONDS:
        found.append(f"{report['seconds']:.1f} s")
    if report["bytes"] > BYTES:
        found.append(f"{report['bytes'] / 2**20:.0f} MiB")
    found += report["events"]
    found += [f"changed {name}" for name in report["changed"] if case.reader not in _CONTINUED]
    found += [f"left {name}" for name in report["left"]]
    return found


_CONTINUED = ("continued_bank", "continued_metrics", "state")
"""The readers that open a folder of one's own to go on writing there."""


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    with watch.Watched(tmp_path_factory.mktemp("watched")) as process:
        yield process


def test_sound_files_are_read_and_nothing_is_executed(watched):
    """Else a reader that refuses everything, or a hook that sees nothing wrong anywhere, would pass."""
    assert watched.sound == {}


@pytest.mark.parametrize("name", corpus.CASES)
def test_it_is_refused(name, watched, tmp_path):
    case = corpus.CASES[name]
    path = case.make(tmp_path / "it")
    assert faults(case, path, watched.read(case.reader, path, tmp_path)) == []


def test_the_corpus_holds_every_kind():
    kinds = collections.Counter(case.kind for case in corpus.CASES.values())
    assert min(kinds.values()) >= 1
    assert len(corpus.CASES) >= 60


def test_random_damage_is_refused_or_harmless(watched, tmp_path):
    """The first inputs of `tests.hostile.fuzz`, of which `.ci/extra fuzz` reads as many as an hour has."""
    with fuzz.Fuzzer(tmp_path, watched) as fuzzer:
        ends, findings = fuzz.run(fuzzer, 0, count=150)
    assert findings == []
    assert ends["refused"] > 50


def test_an_input_follows_from_its_seed():
    one, other = (fuzz.mutated(random.Random(5), bytes(range(100))) for _ in range(2))
    assert one == other != bytes(range(100))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"error": "KeyError"}, "KeyError"),
        ({"message": "no file"}, "not named"),
        ({"message": "a.csv \x1b[2J"}, "steers a terminal"),
        ({"seconds": 3.0}, "3.0 s"),
        ({"events": ["os.system"]}, "os.system"),
        ({"left": ["half"]}, "left half"),
    ],
)
def test_a_finding_is_told(change, told):
    sound = {"error": "ValueError", "message": "a.csv is empty", "seconds": 0.0, "bytes": 0, "events": [], "left": []}
    assert fuzz.fault(sound, pathlib.Path("a.csv")) == ""
    assert told in fuzz.fault(sound | change, pathlib.Path("a.csv"))
