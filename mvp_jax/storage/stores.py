"""States on disk of one process among several, which takes no part in what the others do.

Orbax's own store waits for all processes when it is opened. Its saving and loading of one state does not, if told so;
this is the store around them, which the other one can read, and the other way round.
"""

import contextlib
import pathlib
import tempfile
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mvp_jax.core.types import PyTree
from mvp_jax.storage import files


class Store:
    """What `checkpoint.Checkpoints` uses of an Orbax store; process 0 may save.

    Args:
        directory: there already.
        keep: how many states to keep, the newest.
    """

    def __init__(self, directory: pathlib.Path, keep: int) -> None:
        from orbax.checkpoint import v1 as ocp  # here, because it takes its time to import

        me = jax.process_index()
        self._directory, self._keep, self._ocp, self._context = directory, keep, ocp, ocp.Context()
        options = self._context.multiprocessing
        options.primary_host, options.active_processes, options.barrier_sync_key_prefix = me, {me}, f"alone-{me}"
        self._manager: Any = None

    @property
    def checkpoints(self) -> list[Any]:
        """Records with a `step`, ascending; what is being written has another name."""
        found = sorted(int(p.name) for p in self._directory.iterdir() if p.name.isdecimal())
        return [types.SimpleNamespace(step=step) for step in found]

    def save(self, step: int, state: PyTree, *, force: bool, custom_metadata: dict[str, Any]) -> None:
        """Saves a state, and clears away older ones and what a killed save left; in process 0 only."""
        if jax.process_index() != 0:
            raise ValueError(
                f"process {jax.process_index()} cannot save a state alone: Orbax writes such ones in process 0; "
                "save it there, or as arrays by checkpoint.save_arrays"
            )
        # The new interface's `save` compares directories with all processes, whatever the options say (Orbax 0.12.8).
        import orbax.checkpoint as before

        if self._manager is None:
            # Not when the store is opened: it clears away, and that may be to read beside a process that saves.
            options = before.CheckpointManagerOptions(
                create=False,
                max_to_keep=self._keep,
                cleanup_tmp_directories=True,
                enable_async_checkpointing=False,
                multiprocessing_options=self._context.multiprocessing.v0(),
            )
            self._manager = before.CheckpointManager(self._directory, options=options)
        args = before.args.Composite(state=before.args.PyTreeSave(plain(state)))
        self._manager.save(step, args=args, force=force, custom_metadata=custom_metadata | {"plain": True})
        self._manager.wait_until_finished()

    def load(self, step: int, like: PyTree) -> PyTree:
        """Reads a state as `like` has it."""
        with self._context:
            return self._ocp.load(self._directory / str(step), like)

    def metadata(self, step: int) -> Any:
        """A record with `custom_metadata`."""
        with self._context:
            return self._ocp.metadata(self._directory / str(step))

    def close(self) -> None:
        """Lets go of the directory."""
        if self._manager is not None:
            self._manager.close()


class Remote:
    """The same in a bucket: states are written on this machine, as Orbax writes them, and copied there, marker last.

    Orbax takes them for its own; but it reaches only some buckets by itself, and through clients of its own.

    Args:
        directory: an address.
        keep: how many states to keep, the newest.
        opened: `(folder of this machine, keep)` to a store.
    """

    def __init__(self, directory: pathlib.Path, keep: int, opened: Callable[[pathlib.Path, int], Any]) -> None:
        self._directory, self._keep, self._opened = directory, keep, opened
        self._copies = tempfile.TemporaryDirectory(prefix="mvp_jax-states-")

    @property
    def checkpoints(self) -> list[Any]:
        """Records with a `step`, ascending; a state whose copying was cut short is none."""
        names = [name for name in files.listing(self._directory) if name.isdecimal()]
        found = sorted(int(n) for n in names if files.exists(self._directory / n / _MARKER))
        return [types.SimpleNamespace(step=step) for step in found]

    def save(self, step: int, state: PyTree, *, force: bool, custom_metadata: dict[str, Any]) -> None:
        """Saves a state, and clears away older ones and what a killed save left."""
        done = {str(c.step) for c in self.checkpoints}
        for name in set(files.listing(self._directory)) - done:
            files.remove(self._directory / name)
        with tempfile.TemporaryDirectory() as folder:
            with contextlib.closing(self._opened(pathlib.Path(folder), 1)) as store:
                store.save(step, state, force=force, custom_metadata=custom_metadata)
            files.upload(pathlib.Path(folder) / str(step), self._directory / str(step), _MARKER)
        for old in self.checkpoints[: -self._keep]:
            files.remove(self._directory / str(old.step) / _MARKER)  # first: half a state is none
            files.remove(self._directory / str(old.step))

    def load(self, step: int, like: PyTree) -> PyTree:
        """Reads a state as `like` has it."""
        with self._copy(step) as store:
            return store.load(step, like)

    def metadata(self, step: int) -> Any:
        """A record with `custom_metadata`."""
        with self._copy(step) as store:
            return store.metadata(step)

    def close(self) -> None:
        """Lets go of the directory."""
        self._copies.cleanup()

    def _copy(self, step: int) -> contextlib.closing[Any]:
        folder = pathlib.Path(self._copies.name)
        if not (folder / str(step)).exists():
            files.download(self._directory / str(step), folder / "part")
            (folder / "part").rename(folder / str(step))
        return contextlib.closing(self._opened(folder, len(self.checkpoints) + 1))


_MARKER = "commit_success.txt"
"""What Orbax looks for in a bucket."""


def plain(state: PyTree) -> PyTree:
    """A state of NumPy arrays, keys by their data: among several processes Orbax takes no array of one alone."""

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array):
            return leaf
        return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)

    return jax.tree.map(one, state)


def plain_like(like: PyTree) -> PyTree:
    """What `plain` gives for such a state, values aside."""

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
            return leaf
        seen = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
        return np.zeros(seen.shape, seen.dtype)

    return jax.tree.map(one, like)


def dressed(found: PyTree, like: PyTree) -> PyTree:
    """A plain state as `like` has it: keys as keys, arrays on their devices."""

    def one(leaf: Any, like: Any) -> Any:
        if not isinstance(like, jax.Array | jax.ShapeDtypeStruct):
            return leaf
        if _is_key(like):
            leaf = jax.random.wrap_key_data(jnp.asarray(leaf), impl=jax.random.key_impl(jnp.empty((), like.dtype)))
        return jax.device_put(leaf, like.sharding or jax.local_devices()[0])

    return jax.tree.map(one, found, like)


def _is_key(leaf: Any) -> bool:
    return bool(jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key))
