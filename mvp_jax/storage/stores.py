"""Stores of states for `checkpoint.Checkpoints`: on disk for one process among several, and in a bucket.

Orbax's own store waits for all processes when it is opened. Its functions that save and load one state do not, if told
so; `Store` is a store around those functions. It writes the format of Orbax's own store: each can read the other's.
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
    """States of this process in a directory; no call waits for other processes. Only process 0 may save.

    Args:
        directory: an existing directory of this machine.
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
        """The complete states, as records with a `step`, ascending; a state that is being written is not among them."""
        found = sorted(int(p.name) for p in self._directory.iterdir() if p.name.isdecimal())
        return [types.SimpleNamespace(step=step) for step in found]

    def save(self, step: int, state: PyTree, *, force: bool, custom_metadata: dict[str, Any]) -> None:
        """Saves a state, and removes all but the newest `keep` states and what a killed save left.

        Args:
            step: the number under which it is saved.
            state: any pytree of arrays, random keys and Python numbers.
            force: whether Orbax must save it whatever its policy.
            custom_metadata: JSON values that `metadata` gives back.

        Raises:
            ValueError: in another process than process 0.
        """
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
        """The state of a step, in the structure, shapes and dtypes of `like`."""
        with self._context:
            return self._ocp.load(self._directory / str(step), like)

    def metadata(self, step: int) -> Any:
        """Orbax's record of the state of a step, whose `custom_metadata` is what `save` was given."""
        with self._context:
            return self._ocp.metadata(self._directory / str(step))

    def close(self) -> None:
        """Closes the store; its directory may be opened again."""
        if self._manager is not None:
            self._manager.close()


class Remote:
    """States in a bucket: each is written on this machine by Orbax and copied to the bucket, its marker file last.

    They are in Orbax's format. Orbax itself is not used in the bucket, as it reaches only some kinds and needs other
    clients than the rest of a run.

    Args:
        directory: the address of a folder in the bucket.
        keep: how many states to keep, the newest.
        opened: opens a store on this machine, `(folder, keep) -> store`.
    """

    def __init__(self, directory: pathlib.Path, keep: int, opened: Callable[[pathlib.Path, int], Any]) -> None:
        self._directory, self._keep, self._opened = directory, keep, opened
        self._copies = tempfile.TemporaryDirectory(prefix="mvp_jax-states-")

    @property
    def checkpoints(self) -> list[Any]:
        """The complete states, as records with a `step`, ascending; one without its marker is not among them."""
        names = [name for name in files.listing(self._directory) if name.isdecimal()]
        found = sorted(int(n) for n in names if files.exists(self._directory / n / _MARKER))
        return [types.SimpleNamespace(step=step) for step in found]

    def save(self, step: int, state: PyTree, *, force: bool, custom_metadata: dict[str, Any]) -> None:
        """Saves a state, and removes all but the newest `keep` states and what a killed save left; see `Store.save`."""
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
        """The state of a step, in the structure, shapes and dtypes of `like`."""
        with self._copy(step) as store:
            return store.load(step, like)

    def metadata(self, step: int) -> Any:
        """Orbax's record of the state of a step, whose `custom_metadata` is what `save` was given."""
        with self._copy(step) as store:
            return store.metadata(step)

    def close(self) -> None:
        """Removes the copies on this machine."""
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
    """The state with NumPy arrays for JAX arrays, and with the data of random keys for the keys.

    Among several processes Orbax refuses JAX arrays that lie in one process alone.
    """

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array):
            return leaf
        return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)

    return jax.tree.map(one, state)


def plain_like(like: PyTree) -> PyTree:
    """Zeros in the structure, shapes and dtypes that `plain` gives for a state like `like` (arrays or shapes)."""

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
            return leaf
        seen = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
        return np.zeros(seen.shape, seen.dtype)

    return jax.tree.map(one, like)


def dressed(found: PyTree, like: PyTree) -> PyTree:
    """The inverse of `plain`: random keys from their data, and arrays with the sharding that they have in `like`."""

    def one(leaf: Any, like: Any) -> Any:
        if not isinstance(like, jax.Array | jax.ShapeDtypeStruct):
            return leaf
        if _is_key(like):
            leaf = jax.random.wrap_key_data(jnp.asarray(leaf), impl=jax.random.key_impl(jnp.empty((), like.dtype)))
        return jax.device_put(leaf, like.sharding or jax.local_devices()[0])

    return jax.tree.map(one, found, like)


def _is_key(leaf: Any) -> bool:
    return bool(jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key))
