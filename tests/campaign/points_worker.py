"""Kills every kind of write at every moment: `python -m tests.campaign.points_worker FOLDER [SCENARIO...]`.

For each scenario an uninterrupted write is watched first. Then, for each of its changes and fault points, a forked
process makes the write and dies there, without tidying up. What a reader then finds must be the old content or the new;
and after the same write is made again nothing else may be in the folder than after the uninterrupted one. The last line
of the output is JSON: what was reached, and what went wrong.
"""

import json
import os
import pathlib
import shutil
import sys
import traceback

os.environ["EPATH_USE_TF"] = "false"

import numpy as np
import orbax.checkpoint  # noqa: F401 (once, and not in each fork)
from etils import epath  # noqa: F401
from orbax.checkpoint import v1  # noqa: F401

from mvp_jax import bank
from mvp_jax.storage import checkpoint, exchange, files, leftovers, locks
from tests import bucket
from tests.campaign import watching

OLD, NEW = b"old " * 40, b"newer " * 40
MARKER = "model.json"


def content(value):
    return {"part/weights": value, MARKER: value[:9]}


def written(folder, value):
    files.write_bytes(folder / "a.txt", value)


def replaced(folder, value):
    with files.replacing(folder / "a.txt") as temporary:
        temporary.write_bytes(value[:50])
        with temporary.open("ab") as file:
            file.write(value[50:])


def replaced_folder(folder, value):
    with files.replacing_folder(folder / "model", MARKER) as temporary:
        for name, part in content(value).items():
            (temporary / name).parent.mkdir(exist_ok=True)
            (temporary / name).write_bytes(part)


def written_folder(folder, value):
    files.write_folder(folder / "model", content(value), MARKER)


def saved(folder, value):
    """The state of step 1 is old, those of later steps are new; saving removes what came before."""
    with checkpoint.Checkpoints(folder / "states", keep=1) as states:
        states.save((states.latest() or 0) + 1, {"a": np.frombuffer(value, np.uint8)})


def added(folder, value):
    """The old bank is empty, the new one has an entry."""
    store = bank.create(folder / "bank", fingerprint="f" * 64, settings={}, exist_ok=True)
    if value == NEW and not bank.has(store, "cats"):
        entry = bank.BankEntry(task="cats", classes=(3, 5), fingerprint="f" * 64, ratio=0.5, accuracy=0.9)
        bank.add(store, entry, {"units": {"fc": np.frombuffer(value, np.uint8)}})


def text(folder):
    found = files.path(folder) / "a.txt"
    return found.read_bytes() if files.exists(found) else None


def model(folder):
    where = files.path(folder) / "model"
    if not files.complete(where, MARKER):
        return None
    parts = {name: (where / name).read_bytes() for name in content(OLD)}
    return next((value for value in (OLD, NEW) if parts == content(value)), b"mixed")


def state(folder):
    with checkpoint.Checkpoints(folder / "states", keep=1) as states:
        if states.latest() is None:
            return None
        like = {"a": np.frombuffer(OLD if states.latest() == 1 else NEW, np.uint8)}
        return states.restore(like)["a"].tobytes()


def entry(folder):
    store = bank.open(folder / "bank")
    found = bank.entries(store)
    bank.verify(store)
    return bank.load(found[0])["units"]["fc"].tobytes() if found else OLD


def plainly(*_):
    return False


SCENARIOS = {
    "write_bytes": (written, text, {}),
    "replacing": (replaced, text, {}),
    "replacing_folder": (replaced_folder, model, {}),
    "write_folder": (written_folder, model, {}),
    "replacing_folder without exchange": (replaced_folder, model, {"plain": True}),
    "write_folder without exchange": (written_folder, model, {"plain": True}),
    "checkpoint": (saved, state, {}),
    "bank.add": (added, entry, {}),
    "write_bytes in a bucket": (written, text, {"remote": True}),
    "replacing in a bucket": (replaced, text, {"remote": True}),
    "replacing_folder in a bucket": (replaced_folder, model, {"remote": True}),
    "write_folder in a bucket": (written_folder, model, {"remote": True}),
}
"""`{name: (write, read, how)}`; `plain`: the system cannot exchange folders; `remote`: in the strict bucket."""


def apart(work):
    """Runs `work` in a forked process, and returns whether it ended well; 9 is a kill on purpose."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def tree(folder):
    """The names below a folder; of Orbax's states, whose files have random names, only how many there are.

    An upload that was cut off is the bucket's to clear away, and no reader sees it.
    """
    found = [p.relative_to(folder).as_posix() for p in folder.rglob("*")]
    states = {name.split("/")[1] for name in found if name.startswith("states/")}
    shown = sorted(f"states/{number}" for number, _ in enumerate(states, 1))
    return sorted(n for n in found if not n.startswith(("states/", ".publishing"))) + shown


class Scenario:
    """One kind of write in a room of its own."""

    def __init__(self, name, room):
        self.write, self.read, self.how = SCENARIOS[name]
        self.name, self.room = name, room
        self.start, self.now = room / "start", room / "now"

    def place(self):
        if not self.how.get("remote"):
            return self.now
        os.environ["BUCKET_ROOT"] = str(self.now)
        bucket.register()
        return files.path("gs://bucket/run")

    def fresh(self):
        """As before the write, with the old content."""
        shutil.rmtree(self.now, ignore_errors=True)
        shutil.copytree(self.start, self.now)

    def make(self, value):
        if self.how.get("plain"):
            exchange.exchange = plainly
        place = self.place()
        if self.how.get("remote"):
            self.write(place, value)
            return
        with locks.held(place):  # as a run has it
            leftovers.sweep_all(place)
            self.write(place, value)

    def prepare(self):
        self.now.mkdir(parents=True)
        assert apart(lambda: self.make(OLD)) == 0, self.name
        shutil.copytree(self.now, self.start)

    def watched(self, at=None):
        """Makes the new write in a process that dies at change number `at`; the changes go to a file."""

        def work():
            reached, log = 0, (self.room / "log").open("w")

            def told(point, path):
                nonlocal reached
                reached += 1
                log.write(f"{point}\n")
                log.flush()
                if reached == at:
                    if point == "open anew" and os.path.isfile(path):
                        os.truncate(path, 0)  # right after the opening, which is worse than before it
                    os._exit(9)

            self.make_watched(told)

        return apart(work), (self.room / "log").read_text().splitlines()

    def make_watched(self, told):
        watching.install(self.now, told)
        self.make(NEW)

    def seen(self):
        """What a reader finds, in a process of its own: old, new, none, mixed or error."""

        def work():
            found = self.read(self.place())
            names = {OLD: "old", NEW: "new", None: "none"}
            (self.room / "seen").write_text(names.get(found, "mixed"))

        (self.room / "seen").write_text("error")
        apart(work)
        return (self.room / "seen").read_text()

    def run(self):
        """Returns the points, and a line for everything that is wrong."""
        self.prepare()
        self.fresh()
        code, points = self.watched()
        wrong = [] if code == 0 and self.seen() == "new" else [f"{self.name}: it does not work at all"]
        whole = tree(self.now)
        wrong += [f"{self.name}: {name} stays" for name in whole if name.split("/")[-1].startswith(".")]
        # A folder that stepped aside has its name back after the next writer's sweep; in a bucket it is made anew.
        absent = {"none"} if self.how.get("plain") or (self.how.get("remote") and self.read is model) else set()
        for at, point in enumerate(points, 1):
            where = f"{self.name}, killed at {at} ({point})"
            self.fresh()
            code, _ = self.watched(at)
            if code != 9:
                wrong.append(f"{where}: the process ended with {code}")
            if (found := self.seen()) not in {"old", "new"} | absent:
                wrong.append(f"{where}: a reader finds {found}")
            if not self.how.get("remote"):
                apart(lambda: leftovers.sweep(self.now))
                if (found := self.seen()) not in ("old", "new"):
                    wrong.append(f"{where}: after a sweep a reader finds {found}")
            if apart(lambda: self.make(NEW)) != 0 or self.seen() != "new":
                wrong.append(f"{where}: the next write fails")
            if tree(self.now) != whole:
                wrong.append(f"{where}: left behind {sorted(set(tree(self.now)) ^ set(whole))}")
        return points, wrong


def main(folder, *chosen):
    reached, wrong = {}, []
    for number, name in enumerate(chosen or SCENARIOS):
        points, found = Scenario(name, pathlib.Path(folder) / str(number)).run()
        reached[name] = points
        wrong += found
    print(json.dumps({"reached": reached, "wrong": wrong}))


if __name__ == "__main__":
    main(*sys.argv[1:])
