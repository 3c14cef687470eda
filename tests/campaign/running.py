"""Runs of a job in forked processes, which are killed at a moment or at a change of the disk."""

import contextlib
import dataclasses
import functools
import gc
import mmap
import os
import random
import signal
import socket
import struct
import sys
import time
import traceback

import jax

from tests.campaign import flaky, jobs, watching

_REFUSED = 3
_PLACE = 400  # bytes of the shared memory for the place where a process is


@dataclasses.dataclass
class Ended:
    """How a process ended, after how many changes and seconds, and at which place.

    `how` is `killed`, `done`, `refused` (by a `ValueError`, which `main` shows in one line) or `failed`.
    """

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


def start(name, work, log, board, *, at=None, prepare=None, root=None):
    """Forks a process that runs a job; it kills itself before change number `at`.

    Args:
        name: the job.
        work: the folder, or an address in a bucket.
        log: the file for what the job says.
        board: where the process tells what it does.
        at: the number of the change; `None`: it does not.
        prepare: changes the config, or the process, before the job; `None`: nothing is prepared.
        root: the folder whose changes count; `None`: `work`.

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
        root = work if root is None else root

        def told(point, path):
            nonlocal count
            count += 1
            board.write(count, f"{point}: {path.removeprefix(os.fspath(root)).strip('/')}")
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)

        config = jobs.JOBS[name]()
        if prepare is not None:
            prepare(config)
        watching.install(root, told)
        from mvp_jax.experiments import run

        run.run(config, work)
        if jax.distributed.is_initialized():
            jax.distributed.shutdown()
        code = 0
    except BaseException as error:
        code = _REFUSED if isinstance(error, ValueError) else 1  # in one line, as `main` shows it
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
    how = {0: "done", -signal.SIGKILL: "killed", _REFUSED: "refused"}.get(code, "failed")
    return Ended(how, count, time.monotonic() - (first or begun), place)


def run_once(name, work, log, *, at=None, after=None, prepare=None):
    """Runs a job in one process, which is killed at a change, after some seconds, or not at all."""
    board, begun = Board(), time.monotonic()
    return waited(start(name, work, log, board, at=at, prepare=prepare), board, begun, after=after)


def run_in_bucket(name, work, log, *, at=None, after=None):
    """As `run_once`, in a bucket that fails now and then, whose objects lie in the folder `work`."""
    work.mkdir(exist_ok=True)

    def prepare(config):
        os.environ["BUCKET_ROOT"] = os.fspath(work)
        os.environ["EPATH_USE_TF"] = "false"
        flaky.register(time.time_ns())

    board, begun = Board(), time.monotonic()
    pid = start(name, "gs://bucket/run", log, board, at=at, prepare=prepare, root=work)
    return waited(pid, board, begun, after=after)


def run_pair(name, work, log, *, at=None, after=None):
    """As `run_once`, by two processes, of which a random one is killed; the other one dies within two seconds."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def prepare(config, index):
        config.multihost = True
        config.distributed.coordinator = f"127.0.0.1:{port}"
        config.distributed.processes, config.distributed.process = 2, index

    victim, boards, begun = random.randrange(2), [Board(), Board()], time.monotonic()
    pids = [
        start(name, work, log, boards[i], at=at if i == victim else None, prepare=functools.partial(prepare, index=i))
        for i in range(2)
    ]
    ended = waited(pids[victim], boards[victim], begun, after=after)
    patience = {"after": 2 * random.random()} if ended.how == "killed" else {}
    other = waited(pids[1 - victim], boards[1 - victim], time.monotonic(), **patience)
    return ended if ended.how != "done" else other


class Stopped(BaseException):
    """Stands for a kill in a process that lives on."""


class Inside:
    """Runs of jobs in this process, in which a kill is an exception after which the run can change nothing any more.

    Python runs `finally` on its way out, which a kill does not; so every change of the disk that comes after the moment
    is refused too, and the disk stays as it was then. What was compiled stays in memory, so that a run takes as long as
    its work: hundreds of kills in minutes. Times are not drawn, as nothing but the number of changes says what is on
    the disk.
    """

    def __init__(self, folder):
        self._root, self._count, self._at, self._place = os.fspath(folder), 0, None, ""
        watching.install(folder, self._told)

    def _told(self, point, path):
        if self._at is None:
            self._count += 1
            return
        if self._count >= self._at:  # it is dead
            raise Stopped
        self._count += 1
        self._place = f"{point}: {'/'.join(path.removeprefix(self._root).strip('/').split('/')[1:])}"
        if self._count >= self._at:
            raise Stopped

    def run(self, name, work, log, *, at=None, **_):
        """Runs a job, which is stopped at a change, or not at all."""
        from mvp_jax.experiments import run

        how, begun = "done", time.monotonic()
        with log.open("a") as stream, contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
            self._count, self._at = 0, at
            try:
                run.run(jobs.JOBS[name](), work)
            except BaseException:
                how = "killed" if at is not None and self._count >= at else "failed"
                if how == "failed":
                    traceback.print_exc()
            finally:
                gc.collect()  # what closes files
                self._at = None
        return Ended(how, self._count, time.monotonic() - begun, self._place)


def import_all():
    """Imports once what each forked process needs, without touching a device: such a process cannot be forked."""
    import orbax.checkpoint
    import sklearn.datasets
    from orbax.checkpoint import v1

    from mvp_jax.experiments import run

    return orbax.checkpoint, sklearn.datasets, v1, run


def draw(generator: random.Random, whole: Ended, seconds, *, inside=False) -> dict:
    """When the next run is killed: at a change, of which early ones are likelier, or after a uniform time.

    Args:
        generator: what draws.
        whole: how the job ended that was left alone.
        seconds: `(shortest, longest)` time from the first change to the kill; `None`: up to the time of `whole`.
        inside: whether moments are changes alone.
    """
    if generator.random() < (1.0 if inside else 0.5) and whole.changes:
        return {"at": int(whole.changes ** generator.random())}
    low, high = seconds or (0.0, whole.seconds)
    return {"after": generator.uniform(low, high)}


__all__ = ["Board", "Ended", "Inside", "draw", "import_all", "run_in_bucket", "run_once", "run_pair", "start", "waited"]
