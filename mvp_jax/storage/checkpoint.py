"""States of a run to continue from (Orbax), and plain arrays to keep (safetensors).

Both are written whole or not at all, at whatever moment the writer is killed, and neither is a pickle.
"""

import hashlib
import json
import os
import pathlib
import types
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from mvp_jax.core import trees
from mvp_jax.core.types import PyTree, Variables
from mvp_jax.parallel import processes
from mvp_jax.storage import disk_errors, dtypes, fault_points, files, foreign_files, stores


class Checkpoints:
    """The newest states of a run in a directory, to resume from; a context manager.

    A state is any pytree of arrays, random keys and Python numbers, saved under a step; steps must increase. A state
    whose saving was killed is never seen, and is removed when the directory is opened again. Only one run at a time may
    have the directory open.

    In a run of several processes all must make every call, each with its shards of the state's arrays, and all must see
    the directory. With `alone=True` the state lies in this process: no call waits for the others, and only one process
    at a time may save.

    Args:
        directory: a folder, made if absent; or an address in a bucket, for a state that lies in one process.
        keep: how many states to keep, the newest.
        alone: whether the state lies in this process alone. With one process it makes no difference.

    Raises:
        ValueError: if the directory cannot be written, `keep` is less than 1, or processes see different states.

    >>> import tempfile
    >>> state = {"step": jax.numpy.int32(7), "key": jax.random.key(0)}
    >>> with Checkpoints(tempfile.mkdtemp()) as saved:
    ...     saved.save(7, state)
    ...     saved.latest(), int(saved.restore(state)["step"])
    (7, 7)
    """

    def __init__(self, directory: str | os.PathLike[str], keep: int = 2, *, alone: bool = False) -> None:
        if keep < 1:
            raise ValueError(f"keep is {keep}; a run needs at least one state to continue from")
        self.directory = files.absolute(directory)
        self._store: Any
        self._alone = alone or jax.process_count() == 1
        if self._alone and files.is_remote(self.directory):
            files.writable(self.directory)
            self._store = stores.Remote(self.directory, keep, _open)
            return
        if alone and jax.process_count() > 1:
            files.writable(self.directory)
            self._store = stores.Store(self.directory, keep)
            return
        # Where one process cannot write, the others would wait for it in Orbax for minutes.
        processes.together("checkpoints", lambda: files.writable(self.directory))
        with foreign_files.named(self.directory):
            self._store = _orbax(self.directory, keep)
        processes.same("states", f"checkpoints of {self.steps()}", "use a folder that all processes see")

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the directory, so that another `Checkpoints` may open it."""
        self._store.close()

    def steps(self) -> list[int]:
        """The steps of the states that are there, ascending."""
        with foreign_files.named(self.directory):
            return sorted(int(c.step) for c in self._store.checkpoints)

    def latest(self) -> int | None:
        """The step of the newest state; `None` if there is none."""
        return max(self.steps(), default=None)

    def leading(self, step: int | None = None) -> int:
        """How many members a saved population has: the length of the first axis, which all leaves share.

        Args:
            step: which state; `None`: the newest.

        Raises:
            ValueError: if there is no such step, it is damaged, or it is not of stacked members.
        """
        saved = self._described(self._step(step))
        with foreign_files.named(self.directory):
            shapes = [json.loads(text[text.index("[") :]) for text in saved.values() if "[" in text]
            sizes = {int(shape[0]) if shape else 0 for shape in shapes}
        if len(sizes) != 1 or 0 in sizes:
            raise ValueError(
                f"the state in {self.directory} is not one of stacked members: its axes are {sorted(sizes)}"
            )
        return int(sizes.pop())

    def save(self, step: int, state: PyTree) -> None:
        """Saves a state and returns when it is on disk.

        Raises:
            ValueError: if `step` is not after the last one, or the directory cannot be written any more.
        """
        latest = self.latest()
        if latest is not None and step <= latest:
            raise ValueError(f"step {step} is not after the last one saved, {latest}; restore it first")
        if not self._alone:
            # Orbax starts with a device collective, in which nobody hears of a failure, and gloo waits 30 s at most.
            processes.barrier("saving")
        fault_points.reached("state next", self.directory)
        with files.writing(self.directory):
            self._store.save(step, state, force=True, custom_metadata={"leaves": _describe(state)})
        fault_points.reached("state saved", self.directory)

    def restore(self, like: PyTree, *, step: int | None = None) -> PyTree:
        """Reads a state back.

        Args:
            like: a state of the same structure, shapes and dtypes (arrays, or shapes from `jax.eval_shape`); the result
                has its containers and shardings.
            step: which state; `None`: the newest.

        Returns:
            The state.

        Raises:
            ValueError: if there is no such step, it does not fit `like` (with what differs), or it is damaged.
        """
        step = self._step(step)
        saved = self._described(step)
        asked = _describe(like)
        wrong = [
            f"{path} is {saved.get(path, 'missing')}, {asked.get(path, 'not')} wanted"
            for path in sorted({*saved, *asked})
            if saved.get(path) != asked.get(path)
        ]
        if wrong:
            raise ValueError(
                f"the checkpoint of step {step} in {self.directory} is of another state: {'; '.join(wrong[:8])}"
                f"{'; ...' if len(wrong) > 8 else ''}; use the settings it was made with, or a new directory"
            )
        try:
            if self._metadata(step).get("plain"):
                return stores.dressed(self._store.load(step, stores.plain_like(like)), like)
            return self._store.load(step, jax.tree.map(_abstract, like))
        except Exception as error:
            raise self._damaged(step, error) from error

    def _step(self, step: int | None) -> int:
        steps = self.steps()
        step = max(steps, default=None) if step is None else step
        if step is None or step not in steps:
            raise ValueError(f"{self.directory} has no checkpoint of step {step}; there are {steps}")
        return step

    def _described(self, step: int) -> dict[str, str]:
        saved = self._metadata(step).get("leaves")
        if not isinstance(saved, dict) or not saved or not all(isinstance(text, str) for text in saved.values()):
            raise self._damaged(step, ValueError("its metadata is missing or of another form"))
        return saved

    def _metadata(self, step: int) -> dict[str, Any]:
        try:
            return dict(self._store.metadata(step).custom_metadata or {})
        except Exception as error:  # whatever Orbax meets in a damaged directory
            raise self._damaged(step, error) from error

    def _damaged(self, step: int, error: BaseException) -> ValueError:
        while error.__cause__ or error.__context__:  # Orbax says what was wrong only at the bottom
            error = error.__cause__ or error.__context__ or error
        if disk_errors.passing(error):
            return ValueError(
                f"cannot read the checkpoint of step {step} in {self.directory}: {error}; {disk_errors.advice(error)}"
            )
        others = [s for s in self.steps() if s != step]
        return ValueError(
            f"cannot read the checkpoint of step {step} in {self.directory} (damaged?): "
            f"{foreign_files.told(error, 300)}; delete its folder and restore another, there are {others}"
        )


def _open(directory: pathlib.Path, keep: int) -> Any:
    """A store on this machine, of this process alone."""
    return stores.Store(directory, keep) if jax.process_count() > 1 else _orbax(directory, keep)


def _orbax(directory: pathlib.Path, keep: int) -> Any:
    from orbax.checkpoint import v1 as ocp  # here, because it takes its time to import

    policy = ocp.training.preservation_policies.LatestN(keep)
    return ocp.training.Checkpointer(directory, preservation_policy=policy, cleanup_tmp_directories=True)


def _abstract(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        return leaf
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _describe(state: PyTree) -> dict[str, str]:
    def one(leaf: Any) -> str:
        return f"{leaf.dtype}{list(leaf.shape)}" if hasattr(leaf, "dtype") else type(leaf).__name__

    return {path: one(leaf) for path, leaf in trees.flatten(state).items()}


def save_arrays(path: str | os.PathLike[str], arrays: Mapping[str, PyTree]) -> str:
    """Writes nested dicts of arrays as one safetensors file, whole or not at all.

    Args:
        path: the file; its folder is made if it is not there.
        arrays: nested dicts with string keys, `Variables` too; leaves are arrays or numbers. In the file an array is
            named by its keys joined by `/` (a `/` within a key becomes `%2F`).

    Returns:
        The sha256 of the file.

    Raises:
        ValueError: for what is not nested dicts of arrays, or a file that cannot be written.

    >>> import tempfile
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "model.safetensors"
    >>> _ = save_arrays(file, {"variables": Variables({"fc": {"kernel": np.ones((2, 3))}}, {}), "units": {"a/b": True}})
    >>> load_arrays(file)["variables"].params["fc"]["kernel"].shape, load_arrays(file, only=["units"])
    ((2, 3), {'units': {'a/b': array(True)}})
    """
    flat: dict[str, np.ndarray] = {}
    layout: dict[str, Any] = {"names": sorted(arrays), "variables": [], "empty": [], "dtypes": {}}
    for name, tree in arrays.items():
        _pack(tree, _quote(name), flat, layout)
    path = files.path(path)
    content = safetensors.numpy.save(flat, metadata={"layout": json.dumps(layout)})
    with files.writing(path.parent):
        files.write_bytes(path, content)
    return hashlib.sha256(content).hexdigest()


def load_arrays(path: str | os.PathLike[str], *, only: Sequence[str] | None = None) -> dict[str, Any]:
    """Reads what `save_arrays` wrote.

    Args:
        path: the file.
        only: the top names to read; `None`: all.

    Returns:
        `{name: tree}` of NumPy arrays in plain dicts and `Variables`.

    Raises:
        ValueError: if the file is missing, damaged, or has no such name.
    """
    try:
        file = foreign_files.plain_file(path)
        with files.local(file) as here, safetensors.safe_open(here, framework="numpy") as content:
            layout = _layout(path, content)
            wanted = layout["names"] if only is None else list(only)
            unknown = sorted(set(wanted) - set(layout["names"]))
            if unknown:
                raise ValueError(f"{path} has nothing named {unknown}; it has {layout['names']}")
            flat = {k: content.get_tensor(k) for k in content.keys() if _parts(k)[0] in wanted}  # noqa: SIM118
    except KeyError as error:
        raise ValueError(f"{path} was not written by `save_arrays`: its metadata lacks {error}") from error
    except (OSError, TypeError, safetensors.SafetensorError) as error:
        raise ValueError(f"cannot read {path} (missing, or cut short?): {foreign_files.told(error)}") from error
    out: dict[str, Any] = {}
    with foreign_files.named(path):
        for key in (k for k in layout["empty"] if _parts(k)[0] in wanted):
            _place(out, key, {})
        for key, leaf in flat.items():
            _place(out, key, dtypes.from_bits(leaf, layout["dtypes"].get(key, "")))
        for key in (k for k in reversed(layout["variables"]) if _parts(k)[0] in wanted):  # the inner before the outer
            node: Any = out
            for part in _parts(key):
                node = node[part]
            _place(out, key, Variables(**node))
        return {name: out[name] for name in wanted}


def _layout(path: str | os.PathLike[str], content: Any) -> dict[str, Any]:
    """What the metadata of a file says of its arrays, checked."""
    found = foreign_files.parsed((content.metadata() or {})["layout"], f"the layout in {path}")
    lists = ("names", "variables", "empty")
    sound = isinstance(found, dict) and all(isinstance(found[name], list) for name in lists)
    texts = [key for name in lists for key in found[name]] if sound else []
    if not sound or not isinstance(found["dtypes"], dict) or not all(isinstance(key, str) for key in texts):
        raise ValueError(f"{path} was not written by `save_arrays`: its layout is of another form")
    if not all(isinstance(name, str) for name in found["dtypes"].values()):
        raise ValueError(f"{path} was not written by `save_arrays`: a dtype in its layout is no text")
    return found


def _pack(tree: Any, path: str, flat: dict[str, np.ndarray], layout: dict[str, Any]) -> None:
    if isinstance(tree, Variables):
        layout["variables"].append(path)
        tree = tree._asdict()
    if isinstance(tree, Mapping):
        if not tree:
            layout["empty"].append(path)
        for key, value in tree.items():
            if not isinstance(key, str):
                raise ValueError(f"{path!r} has the key {key!r}; only nested dicts with string keys can be written")
            _pack(value, f"{path}/{_quote(key)}", flat, layout)
        return
    if isinstance(tree, jax.Array) and jax.dtypes.issubdtype(tree.dtype, jax.dtypes.prng_key):
        raise ValueError(f"{path!r} is a random key; write `jax.random.key_data` of it")
    if not isinstance(tree, jax.Array | np.ndarray | np.generic | bool | int | float):
        raise ValueError(f"{path!r} is a {type(tree).__name__}; only nested dicts of arrays can be written")
    try:
        flat[path], dtype = dtypes.by_bits(np.array(tree, order="C"))
    except ValueError as error:
        raise ValueError(f"{path!r} holds {error}") from error
    if dtype:
        layout["dtypes"][path] = dtype


def _place(out: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = _parts(path)
    for key in parents:
        out = out.setdefault(key, {})
    if not isinstance(out, dict):
        raise ValueError(f"{foreign_files.told(path, 80)!r} lies inside an array")
    out[last] = value


def _quote(key: str) -> str:
    return key.replace("%", "%25").replace("/", "%2F")


def _parts(path: str) -> list[str]:
    return [urllib.parse.unquote(part) for part in path.split("/")]
