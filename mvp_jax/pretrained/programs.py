"""StableHLO programs by `jax.export`, of a `Model` or of any function, which JAX runs without this package.

What is written is read again, run on examples and compared with the model before it counts as written.
"""

import json
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from mvp_jax.core import trees
from mvp_jax.core.types import Array, PyTree
from mvp_jax.models.api import Model
from mvp_jax.pretrained import calls, saving
from mvp_jax.pretrained.comparison import Written, difference
from mvp_jax.storage import dtypes

PROGRAM, WEIGHTS, REPORT = "program.stablehlo", "weights.safetensors", "report.json"


def program(
    directory: str | os.PathLike[str],
    model: Model | Callable[[PyTree, PyTree], PyTree],
    variables: PyTree,
    *,
    x: PyTree | None = None,
    any_batch: bool = True,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
) -> Written:
    """Writes a model or a function as a StableHLO program for any batch size, and its weights beside it.

    JAX alone runs it, on any of the platforms:

        program = jax.export.deserialize(open("DIR/program.stablehlo", "rb").read())
        weights = safetensors.numpy.load_file("DIR/weights.safetensors")
        y = program.call(weights, x)

    In a program, inputs and outputs are dicts with string keys, lists, tuples and arrays. Any other container, such as
    `nnx.State`, is `{path: array}` there; a random key is its `jax.random.key_data`. Weights are `{path: array}`;
    those of a dtype that NumPy lacks, such as bfloat16, lie in the file by their bits, which the program knows.

    Args:
        directory: the folder to write; if it is there already, it is replaced as a whole.
        model: the model, dense or slim, of which the logits are computed; or a pure function `model(variables, x)`,
            which may return any pytree of arrays, such as `(logits, new statistics)`.
        variables: the model's variables; for a function, any pytree of arrays.
        x: examples to compare on. For a model `[n, ...]`, and `None` stands for three that are made up. A function
            needs them: an array or any pytree of arrays; the first axis of each, of one length `n`, is the batch.
            Arrays without axes belong to no example.
        any_batch: whether the batch size is left open; otherwise the program takes inputs of the shapes of `x` alone.
        platforms: the platforms to compile for, as `jax.export` names them.

    Returns:
        The folder, with the difference to the model, which stands in its `report.json` too.

    Raises:
        ValueError: if the variables are not the model's or no arrays, a function has no `x`, `flatbuffers` is missing,
            the folder cannot be written, JAX cannot export the function (with any batch size, or at all), or the
            program's outputs are not the model's to 1e-3 of the largest.

    >>> import tempfile
    >>> def linear(params, x):
    ...     return {"y": x["a"] @ params["w"]}
    >>> x = {"a": jnp.ones((2, 3))}
    >>> written = program(pathlib.Path(tempfile.mkdtemp()) / "linear", linear, {"w": jnp.ones((3, 1))}, x=x)
    >>> load_program(written.path)({"a": np.ones((5, 3), np.float32)})["y"].shape
    (5, 1)
    """
    calls.check_packages("stablehlo")
    call = calls.prepared(model, variables, x, any_batch)
    wanted = calls.computed(call)
    named = {path: _stored(path, leaf) for path, leaf in trees.flatten(call.variables).items()}

    def run(weights: Mapping[str, Array], x: PyTree) -> PyTree:
        own = {p: _restored(weights[p], leaf) for p, leaf in trees.flatten(call.variables).items()}
        return calls.plain(call.apply(trees.replace(call.variables, own), calls.dressed(x, call.x)))

    inputs = calls.plain(call.x)
    weights = {path: array for path, (array, _) in named.items()}
    made = _exported(run, weights, inputs, call.batched, platforms)
    files = {PROGRAM: made, WEIGHTS: safetensors.numpy.save(weights)}
    read = jax.export.deserialize(bytearray(files[PROGRAM]))
    apart = math.nan
    if jax.default_backend() in {p.replace("cuda", "gpu") for p in platforms}:
        apart = difference(read.call(safetensors.numpy.load(files[WEIGHTS]), inputs), wanted)
    report = {
        "difference": apart,
        "input": calls.described(inputs, call.batched),
        "by_bits": {path: name for path, (_, name) in named.items() if name},
        "platforms": list(platforms),
    }
    files[REPORT] = json.dumps(report, indent=1).encode()
    return Written(saving.write_folder(directory, files), apart, sum(len(content) for content in files.values()))


def load_program(directory: str | os.PathLike[str]) -> Callable[[PyTree], PyTree]:
    """The function from a batch to outputs that `program` wrote to a folder.

    Args:
        directory: the folder.

    Returns:
        `f(x) -> y`, for batches of any size unless it was written for one alone. `x` is what the function took, in its
        containers or in those of the program; `y` comes in those of the program.

    Raises:
        ValueError: if the folder does not hold one; by `f`, if `x` has other arrays than the program takes.
    """
    folder = pathlib.Path(directory)
    try:
        read = jax.export.deserialize(bytearray((folder / PROGRAM).read_bytes()))
        weights = safetensors.numpy.load_file(folder / WEIGHTS)
        takes = trees.flatten(jax.tree.unflatten(read.in_tree, read.in_avals)[0][1])
    except Exception as error:  # flatbuffers and safetensors raise what they like
        raise ValueError(f"{folder} holds no program written by export.program: {error}") from error

    def call(x: PyTree) -> PyTree:
        given = calls.plain(x)
        if trees.flatten(given).keys() != takes.keys():
            has = {path or "x": f"{a.dtype}[{', '.join(map(str, a.shape))}]" for path, a in takes.items()}
            raise ValueError(f"x has the arrays {sorted(trees.flatten(given))}; the program in {folder} takes {has}")
        return read.call(weights, given)

    return call


def _stored(path: str, leaf: Array) -> tuple[np.ndarray, str]:
    """An array as it lies in the file of weights, and the name of its dtype if that is not NumPy's."""
    try:
        return dtypes.by_bits(np.array(jax.random.key_data(leaf) if calls.is_key(leaf) else leaf, order="C"))
    except ValueError as error:
        raise ValueError(f"the variable at {path!r} holds {error}") from error


def _restored(stored: Array, like: Array) -> Array:
    """The array that lies in the file by its bits, inside a program."""
    if calls.is_key(like) or stored.dtype == like.dtype:
        return calls.wrapped(stored, like)
    info = jnp.iinfo if jnp.issubdtype(like.dtype, jnp.integer) else jnp.finfo
    return jax.lax.bitcast_convert_type(stored.astype(f"uint{info(like.dtype).bits}"), like.dtype)


def _exported(
    run: Callable[..., PyTree],
    weights: Mapping[str, np.ndarray],
    inputs: PyTree,
    batched: frozenset[str],
    platforms: Sequence[str],
) -> bytes:
    """The exported function; where its batch size cannot be left open, that is said."""
    fixed = {path: jax.ShapeDtypeStruct(a.shape, a.dtype) for path, a in weights.items()}

    def export(batched: frozenset[str]) -> bytes:
        (n,) = jax.export.symbolic_shape("n")

        def shape(keys: Any, a: Array) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((n, *a.shape[1:]) if trees.path_of(keys) in batched else a.shape, a.dtype)

        shapes = jax.tree_util.tree_map_with_path(shape, inputs)
        return bytes(jax.export.export(jax.jit(run), platforms=tuple(platforms))(fixed, shapes).serialize())

    try:
        return export(batched)
    except Exception as error:  # what a function raises under tracing has no common type
        try:
            export(frozenset())
        except Exception:
            raise ValueError(
                f"JAX cannot export this function for {list(platforms)}: {calls.short(error)}; name fewer `platforms`"
            ) from error
        raise ValueError(
            f"the batch size of this function cannot be left open: {calls.short(error)}; write x.shape[0] or -1 in it "
            "instead of numbers, or give any_batch=False, for batches exactly as large as that of x"
        ) from error
