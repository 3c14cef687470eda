"""One process that reads files for the tests, and tells what reading did besides: time, memory, code, files.

Started by `Watched`, which sends a reader's name and a path in a line of JSON and gets a report in one. What Python
does on behalf of a file is seen by an audit hook, which cannot be taken out again: processes and sockets, what a
pickle looks up, code that is no part of an installed file, and every file that is opened to be written.
"""

import contextlib
import json
import os
import pathlib
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
import traceback

ROOT = pathlib.Path(__file__).resolve().parents[2]

_PROCESS = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.forkpty",
    "subprocess.Popen",
    "pty.spawn",
)
_NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.bind", "socket.sendto", "urllib.Request")
_CODE = ("pickle.find_class", "ctypes.dlopen", "webbrowser.open")
_CHANGES = {"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree"}
_ADDRESS_SPACE = 3 * 2**30  # bytes beyond what the process has when it is ready; threads of XLA reserve some

seen: list[str] | None = None
allowed: tuple[str, ...] = ()
secret = ""


def hook(event, args):
    """Notes what a sound reader never does."""
    if seen is None:
        return
    if event in (*_PROCESS, *_NETWORK, *_CODE):
        seen.append(f"{event} {args!r:.200}")
    elif event == "exec":
        name = str(getattr(args[0], "co_filename", "?"))
        if not name.startswith((sys.prefix, sys.base_prefix, str(ROOT), "<frozen")) and name != "<string>":
            seen.append(f"exec of code from {name!r:.200}")
    elif event == "open" and isinstance(args[0], str | bytes):
        path = os.path.realpath(os.fsdecode(args[0]))
        if secret and path.startswith(secret):
            seen.append(f"read {path}, which lies outside")
        if args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and not path.startswith(allowed):
            seen.append(f"opened {path} for writing")
    elif event in _CHANGES:
        path = os.fsdecode(args[1] if event == "os.symlink" else args[0])
        if isinstance(args[-1], int) and args[-1] >= 0:  # relative to an open folder
            path = os.path.join(os.readlink(f"/proc/self/fd/{args[-1]}"), path)
        if not os.path.realpath(path).startswith(allowed):
            seen.append(f"{event} {path}")


def _memory(name):
    """A value of `/proc/self/status` in bytes."""
    text = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(text.split(f"{name}:")[1].split()[0])


def tree(folder):
    """The names in a folder with their sizes and kinds; links are not followed."""
    found = {}
    for where, below, files in os.walk(folder):
        for name in (*below, *files):
            path = os.path.join(where, name)
            about = os.lstat(path)
            found[os.path.relpath(path, folder)] = (about.st_mode, about.st_size if name in files else 0)
    return found


def watched(read, path, room):
    """Reads a file and returns the report on it."""
    global seen, allowed, secret
    temporary, home = os.environ["TMPDIR"], str(pathlib.Path(room).resolve())
    before = tree(room)
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the highest mark of memory begins anew
    held = _memory("VmRSS")
    allowed = (os.path.realpath(temporary), "/dev/null", os.environ.get("JAX_COMPILATION_CACHE_DIR", temporary))
    if getattr(read, "__name__", "") in ("continued_bank", "continued_metrics", "state"):
        allowed = (*allowed, home)  # whose folder is opened to be continued
    secret, seen, start, wall = f"{home}/outside", [], time.process_time(), time.monotonic()
    kind = message = where = ""
    try:
        read(pathlib.Path(path))
    except BaseException as error:  # panics of compiled packages are no Exceptions
        kind, message = type(error).__name__, str(error)
        where = "".join(traceback.format_tb(error.__traceback__)[-3:])
        if isinstance(error, ValueError) and not isinstance(error, UnicodeError):
            kind = "ValueError"
    done, seen = seen, None
    report = {
        "error": kind,
        "message": message,
        "where": where,
        "seconds": time.process_time() - start,
        "wall": time.monotonic() - wall,
        "bytes": max(_memory("VmHWM") - held, 0),
        "events": done,
    }
    after = tree(room)
    report["changed"] = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    report["left"] = sorted(os.listdir(temporary))
    for name in report["left"]:
        _remove(os.path.join(temporary, name))
    return report


def _remove(path):
    shutil.rmtree(path, ignore_errors=True) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)


def warm():
    """Reads sound files by every reader, so that imports and compilation belong to no file; returns what went wrong."""
    from tests.hostile import readers, samples

    wrong = {}
    for name, makers in samples.SOUND.items():
        for number, make in enumerate(makers):
            room = pathlib.Path(tempfile.mkdtemp(dir=os.environ["WATCHED_ROOM"]))
            start = time.monotonic()
            try:
                path = make(room / "it")
                for _ in range(2):  # the second time nothing is imported any more
                    report = watched(readers.READERS[name], path, room)
                if report["error"] or report["events"]:
                    wrong[f"{name} {number}"] = report
            except Exception:
                wrong[f"{name} {number}"] = traceback.format_exc()
            shutil.rmtree(room)
            if os.environ.get("WATCHED_VERBOSE"):
                print(name, number, time.monotonic() - start, file=sys.stderr, flush=True)
    return wrong


def main():
    """Answers lines of standard input until it ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.addaudithook(hook)
    from tests.hostile import readers

    wrong = warm()
    most = _memory("VmSize") + _ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    answers.write(json.dumps({"sound": wrong}) + "\n")
    answers.flush()
    for line in sys.stdin:
        asked = json.loads(line)
        with contextlib.redirect_stdout(sys.stderr):
            report = watched(readers.READERS[asked["reader"]], asked["path"], asked["room"])
        answers.write(json.dumps(report) + "\n")
        answers.flush()


class Watched:
    """A process that reads files; a context manager.

    Args:
        room: an empty folder for its temporary files.
    """

    def __init__(self, room):
        temporary = pathlib.Path(room) / "temporary"
        temporary.mkdir(parents=True, exist_ok=True)
        self._environment = os.environ | {
            "TMPDIR": str(temporary),
            "WATCHED_ROOM": str(room),
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
            "MALLOC_ARENA_MAX": "2",
        }
        self.log = pathlib.Path(room) / "watched.log"
        self.sound = None
        self._start()

    def _start(self):
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.hostile.watch"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=ROOT,
                env=self._environment,
            )
        self.sound = self._answer(600)["sound"]

    def _answer(self, seconds):
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        line = self._process.stdout.readline() if ready else b""
        if line:
            return json.loads(line)
        what = "died" if ready else f"did not answer in {seconds} s"
        self._process.kill()
        self._process.wait()
        return {"error": what, "message": self.log.read_text(errors="replace")[-2000:], "sound": {}}

    def read(self, reader, path, room, seconds=60):
        """Has a reader read a file; a process that died or hangs is replaced."""
        asked = {"reader": reader, "path": str(path), "room": str(room)}
        self._process.stdin.write(json.dumps(asked).encode() + b"\n")
        self._process.stdin.flush()
        report = self._answer(seconds)
        if "seconds" not in report:
            self._start()
        return report

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


if __name__ == "__main__":
    main()
