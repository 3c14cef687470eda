"""Hostile files: each is refused in one line that names it, soon, in little memory, and without anything executed."""

import collections
import re

import pytest

from tests.hostile import corpus, watch

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
