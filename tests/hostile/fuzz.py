"""Random damage of sound files, given to the readers: whatever is not read is refused by a ValueError in a line.

    python -m tests.hostile.fuzz --seconds 3600          from a seed of its own, which it tells
    python -m tests.hostile.fuzz --first 17 --count 1    one input again, by its seed

Every input follows from its seed alone. A finding is any other exception, an end of the process, more than two seconds
of the processor, half a gigabyte of memory, anything that the audit hook of `watch` sees, a file that is left or
changed, or a message of several lines; it is printed with its seed, and the program ends with status 1.
"""

import argparse
import collections
import pathlib
import random
import re
import shutil
import struct
import sys
import tempfile
import time

from tests.hostile import watch

SECONDS = 2.0
BYTES = 512 * 2**20
HANGS = 10  # seconds after which a process is ended
LONGEST = 3_000  # characters of a message
LEFT_OUT = {"program"}  # an exported program is a program: it is trusted (SECURITY.md)
SLOW = {"state": 20, "copied": 4}  # so many times less often than others

NUMBERS = (
    0,
    1,
    -1,
    2,
    127,
    128,
    255,
    256,
    32767,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63 - 1,
    2**63,
    2**64 - 1,
)
WORDS = (
    *(
        "null",
        "true",
        "[]",
        "{}",
        '""',
        "NaN",
        "Infinity",
        "-1",
        "0",
        "1e999",
        "9" * 30,
        "9" * 400,
        '"x"',
        "[[1]]",
        "0.5",
    ),
    *('"\\u0000"', '"../../x"', '"\\ud800"', "[" * 100, "-0", "1e-400", '{"a": 1}'),
)


def flipped(rng, content):
    for _ in range(rng.randint(1, 8)):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return content


def overwritten(rng, content):
    for _ in range(rng.randint(1, 4)):
        content[rng.randrange(len(content))] = rng.randrange(256)
    return content


def truncated(rng, content):
    return content[: rng.randrange(len(content))]


def extended(rng, content):
    return content + bytes(rng.randrange(256) for _ in range(rng.randint(1, 64)))


def part(rng, content, most=256):
    start = rng.randrange(len(content))
    return start, min(len(content), start + rng.randint(1, most))


def removed(rng, content):
    start, end = part(rng, content)
    return content[:start] + content[end:]


def repeated(rng, content):
    start, end = part(rng, content)
    return content[:end] + content[start:end] * rng.randint(1, 4) + content[end:]


def spliced(rng, content):
    start, end = part(rng, content)
    at = rng.randrange(len(content))
    return content[:at] + content[start:end] + content[at + end - start :]


def swapped(rng, content):
    (a, b), (c, d) = sorted((part(rng, content), part(rng, content)))
    return content if b > c else content[:a] + content[c:d] + content[b:c] + content[a:b] + content[d:]


def lengthened(rng, content):
    """Another number where a length may stand."""
    kind = rng.choice("BHIQ")
    order = rng.choice("<>")
    size = struct.calcsize(kind)
    at = rng.choice((0, rng.randrange(len(content)), rng.randrange(max(1, min(64, len(content))))))
    number = (rng.choice(NUMBERS) + rng.randint(-1, 1)) % 2 ** (8 * size)
    content[at : at + size] = struct.pack(order + kind, number)
    return content


_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null|[^\s,;:{}\[\]"]+')


def worded(rng, content):
    """Another word where one stands, as in JSON or a table."""
    found = list(_TOKENS.finditer(bytes(content[:20_000])))
    if not found:
        return overwritten(rng, content)
    for one in sorted(rng.sample(found, min(len(found), rng.randint(1, 3))), key=lambda m: -m.start()):
        word = rng.choice(
            (rng.choice(WORDS), str(rng.choice(NUMBERS)), found[rng.randrange(len(found))][0].decode("latin-1"))
        )
        content[one.start() : one.end()] = word.encode("latin-1", "replace")
    return content


CHANGES = (flipped, overwritten, truncated, extended, removed, repeated, spliced, swapped, lengthened, worded, worded)


def mutated(rng, content):
    """The content of a file, damaged once to three times."""
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if content:
            content = bytearray(rng.choice(CHANGES)(rng, content))
    return bytes(content)


def fault(report, path):
    """What is wrong with how a file was read or refused; empty if nothing is."""
    found = []
    message = report["message"]
    if report["error"] not in ("", "ValueError"):
        return f"{report['error']}: {message[:300]}"
    if report["error"] and not message:
        found.append("an empty message")
    if path.name not in message and report["error"]:
        found.append(f"the file is not named in {message[:300]!r}")
    if not all(c.isprintable() or c == "\n" for c in message):
        found.append(f"a message that steers a terminal: {message[:300]!r}")
    if len(message) > LONGEST * (1 + message.count("\n")):
        found.append(f"a message of {len(message)} characters")
    if report["seconds"] > SECONDS:
        found.append(f"{report['seconds']:.1f} s")
    if report["bytes"] > BYTES:
        found.append(f"{report['bytes'] / 2**20:.0f} MiB")
    return "; ".join([*found, *report["events"], *(f"left {name}" for name in report["left"])])


class Fuzzer:
    """Sound files of every reader in a folder, and the process that reads what is made of them; a context manager.

    Args:
        room: an empty folder.
        process: a `watch.Watched`; `None`: one of its own.
    """

    def __init__(self, room, process=None):
        from tests.hostile import samples

        self._room, self._own = pathlib.Path(room), process is None
        self.sound = []
        for name, makers in sorted(samples.SOUND.items()):
            for number, make in enumerate(makers if name not in LEFT_OUT else ()):
                folder = self._room / "sound" / f"{name}-{number}"
                folder.mkdir(parents=True)
                path = make(folder / "it")
                self.sound.append((name, folder, path.relative_to(folder)))
        self._process = process or watch.Watched(self._room / "watched")

    def read(self, seed):
        """The reader, what was damaged and what is wrong, of the input of a seed."""
        rng = random.Random(f"hostile {seed}")
        name, folder, path = rng.choice(self.sound)
        while rng.randrange(SLOW.get(name, 1)):
            name, folder, path = rng.choice(self.sound)
        room = self._room / "input"
        shutil.rmtree(room, ignore_errors=True)
        shutil.copytree(folder, room, symlinks=True)
        held = sorted(p for p in (room / path).rglob("*") if p.is_file()) if (room / path).is_dir() else [room / path]
        file = rng.choice(held)
        file.write_bytes(mutated(rng, file.read_bytes()))
        report = self._process.read(name, room / path, room, HANGS)
        wrong = fault(report, room / path)
        if wrong and report.get("where"):
            wrong += "\n" + report["where"]
        return name, str(file.relative_to(room)), report["error"], wrong

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._own:
            self._process.__exit__()


def run(fuzzer, first, count=None, seconds=None):
    """Reads the inputs of seeds from `first` on; returns how many there were of each end, and the findings."""
    start, ends, findings = time.monotonic(), collections.Counter(), []
    seed = first
    while (count is None or seed < first + count) and (seconds is None or time.monotonic() - start < seconds):
        name, file, error, wrong = fuzzer.read(seed)
        ends["finding" if wrong else "refused" if error else "read"] += 1
        if wrong:
            findings.append((seed, name, file, wrong))
            print(f"seed {seed}: {name} of {file}: {wrong}", flush=True)
        seed += 1
    return ends, findings


def main(arguments=None):
    """Runs until the time or the inputs are used up, and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first", type=int, help="the seed of the first input; those after it count up")
    parser.add_argument("--count", type=int, help="how many inputs are read")
    parser.add_argument("--seconds", type=float, help="how long (default: 60, if no count is given)")
    given = parser.parse_args(arguments)
    first = random.SystemRandom().randrange(10**9) if given.first is None else given.first
    seconds = 60 if given.seconds is None and given.count is None else given.seconds
    print(f"from seed {first}", flush=True)
    with tempfile.TemporaryDirectory() as room, Fuzzer(room) as fuzzer:
        ends, findings = run(fuzzer, first, given.count, seconds)
    print(f"{sum(ends.values())} inputs: {dict(ends)}; one again: python -m tests.hostile.fuzz --first SEED --count 1")
    return int(bool(findings))


if __name__ == "__main__":
    sys.exit(main())
