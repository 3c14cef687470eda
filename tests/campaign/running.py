"""Runs of a job in forked processes, which are killed at a moment or at a change of the disk."""

import dataclasses
import mmap
import os
import random
import signal
import struct
import sys
import time
import traceback

from mvp_jax.storage import files
from tests.campaign import jobs, watching

_PLACE = 400  # bytes of the shared memory for the place where a process is


@dataclasses.dataclass
class Ended:
    """How one process ended: `killed`, `done` or `failed`, after how many changes, seconds, and at which place."""

    how: str
    changes: int
    seconds: float
    place: str


class Board:
    """Memory that a process shares with the one that forked it: how many changes it has made, and the last of them."""

    def __init__(self):
        self._memory = mmap.mmap(-1, 8 + _PLACE)

    def write(self, count, place):
        self._memory[8:] = place.encode()[:_PLACE].ljust(_PLACE, b"\0")
        self._memory[:8] = struct.pack("q", count)

    def read(self):
        return struct.unpack("q", self._memory[:8])[0], self._memory[8:].rstrip(b"\0").decode(errors="replace")


def start(name, work, log, board, *, at=None, prepare=None):
    """Forks a process that runs a job; it kills itself before change number `at`.

    Args:
        name: the job.
        work: the folder, or an address in a bucket.
        log: the file for what the job says.
        board: where the process tells what it does.
        at: the number of the change; `None`: it does not.
        prepare: `(config, board) -> config`, called in the process before the job; `None`: nothing is prepared.

    Returns:
        The process's id.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        os.setpgid(0, 0)
        count = 0
        below = os.fspath(work)

        def told(point, path):
            nonlocal count
            count += 1
            board.write(count, f"{point}: {path.removeprefix(below).strip('/')}")
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)

        config = jobs.JOBS[name]()
        config = config if prepare is None else prepare(config)
        watching.install(work if not files.is_remote(work) else "/nowhere", told)
        from mvp_jax.experiments import run

        run.run(config, work)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def waited(pid, board, begun, *, after=None, limit=1800.0):
    """Waits for a process; kills it `after` so many seconds from its first change, if it has not ended by then."""
    first = None
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        now = time.monotonic()
        if done:
            break
        first = now if first is None and board.read()[0] else first
        late = now - begun > limit
        if late or (after is not None and first is not None and now - first >= after):
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            if late:
                raise TimeoutError(f"a run did not end within {limit} seconds")
            break
        time.sleep(0.003)
    count, place = board.read()
    code = os.waitstatus_to_exitcode(status)
    how = {0: "done", -signal.SIGKILL: "killed"}.get(code, "failed")
    return Ended(how, count, time.monotonic() - (first or begun), place)


def run_once(name, work, log, *, at=None, after=None, prepare=None):
    """Runs a job in one process, which is killed at a change, after some seconds, or not at all."""
    board, begun = Board(), time.monotonic()
    return waited(start(name, work, log, board, at=at, prepare=prepare), board, begun, after=after)


def import_all():
    """Imports once what each forked process needs, without touching a device: such a process cannot be forked."""
    import orbax.checkpoint
    import sklearn.datasets
    from orbax.checkpoint import v1

    from mvp_jax.experiments import run

    return orbax.checkpoint, sklearn.datasets, v1, run


def draw(generator: random.Random, whole: Ended, seconds) -> dict:
    """When the next run is killed: at a change, of which early ones are likelier, or after a uniform time.

    Args:
        generator: what draws.
        whole: how the job ended that was left alone.
        seconds: `(shortest, longest)` time from the first change to the kill; `None`: up to the time of `whole`.
    """
    if generator.random() < 0.5 and whole.changes:
        return {"at": int(whole.changes ** generator.random())}
    low, high = seconds or (0.0, whole.seconds)
    return {"after": generator.uniform(low, high)}


__all__ = ["Board", "Ended", "draw", "import_all", "run_once", "start", "waited"]
