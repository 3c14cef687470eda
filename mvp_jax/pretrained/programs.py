"""Programs that run without this package: StableHLO by `jax.export`, and ONNX, of a `Model` or of any function.

What is written is read again, run on examples and compared with the model before it counts as written.
"""

import importlib.util
import json
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import nnx

from mvp_jax.core import trees
from mvp_jax.core.types import Array, PyTree, Variables
from mvp_jax.models.api import Model
from mvp_jax.pretrained import loading
from mvp_jax.pretrained.comparison import Written, difference, examples
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
    need("flatbuffers", "'mvp-jax[export]'")
    call = _prepared(model, variables, x, any_batch)
    wanted = _computed(call)
    named = {path: _stored(path, leaf) for path, leaf in trees.flatten(call.variables).items()}

    def run(weights: Mapping[str, Array], x: PyTree) -> PyTree:
        own = {p: _restored(weights[p], leaf) for p, leaf in trees.flatten(call.variables).items()}
        return _plain(call.apply(trees.replace(call.variables, own), _dressed(x, call.x)))

    inputs = _plain(call.x)
    weights = {path: array for path, (array, _) in named.items()}
    made = _exported(run, weights, inputs, call.batched, platforms)
    files = {PROGRAM: bytes(made.serialize()), WEIGHTS: safetensors.numpy.save(weights)}
    read = jax.export.deserialize(bytearray(files[PROGRAM]))
    apart = math.nan
    if jax.default_backend() in {p.replace("cuda", "gpu") for p in platforms}:
        apart = difference(read.call(safetensors.numpy.load(files[WEIGHTS]), inputs), wanted)
    report = {
        "difference": apart,
        "input": _described(inputs, call.batched),
        "by_bits": {path: name for path, (_, name) in named.items() if name},
        "platforms": list(platforms),
    }
    files[REPORT] = json.dumps(report, indent=1).encode()
    return Written(loading.write_folder(directory, files), apart, sum(len(content) for content in files.values()))


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
        given = _plain(x)
        if trees.flatten(given).keys() != takes.keys():
            has = {path or "x": f"{a.dtype}[{', '.join(map(str, a.shape))}]" for path, a in takes.items()}
            raise ValueError(f"x has the arrays {sorted(trees.flatten(given))}; the program in {folder} takes {has}")
        return read.call(weights, given)

    return call


def onnx(
    path: str | os.PathLike[str],
    model: Model | Callable[[PyTree, PyTree], PyTree],
    variables: PyTree,
    *,
    x: PyTree | None = None,
    any_batch: bool = True,
) -> Written:
    """Writes a model or a function as an ONNX graph for any batch size, weights included; converted by jax2onnx.

    Where `x` or what is computed are several arrays, the graph's inputs or outputs have their paths for names.

    Args:
        path: the file to write; a report with the difference goes beside it, `PATH.json`.
        model: the model, dense or slim, of which the logits are computed; or a pure function `model(variables, x)`,
            which may return any pytree of arrays.
        variables: the model's variables; for a function, any pytree of arrays.
        x: examples to compare on, run by onnxruntime. For a model `[n, ...]`, and `None` stands for three that are
            made up. A function needs them: an array or any pytree of arrays; the first axis of each is the batch.
        any_batch: whether the batch size is left open; otherwise the graph takes inputs of the shapes of `x` alone.

    Returns:
        The file, with the difference to the model.

    Raises:
        ValueError: if jax2onnx, onnx or onnxruntime is missing, a function has no `x`, jax2onnx or onnxruntime cannot
            express the function, or the graph's outputs are not the model's to 1e-3 of the largest; nothing is written
            then.
    """
    for name in ("jax2onnx", "onnxruntime"):
        # No extra of this package: jax2onnx asks for an older orbax-checkpoint than this, and does without any.
        need(name, "onnx onnxruntime onnx-ir; pip install --no-deps jax2onnx")
    import jax2onnx
    import onnxruntime

    call = _prepared(model, variables, x, any_batch)
    wanted = _computed(call)
    inputs = trees.flatten(_plain(call.x))
    outputs = trees.flatten(wanted)

    def run(*leaves: Array) -> Any:
        x = _dressed(dict(zip(inputs, leaves, strict=True)), call.x)
        out = jax.tree.leaves(_plain(call.apply(call.variables, x)))
        return out[0] if len(out) == 1 else tuple(out)

    try:
        made = jax2onnx.to_onnx(
            run,
            inputs=[_onnx_shape(a, path in call.batched) for path, a in inputs.items()],
            model_name="model",
            input_names=list(inputs) if len(inputs) > 1 else None,
            output_names=list(outputs) if len(outputs) > 1 else None,
        )
        content = made.SerializeToString()
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        names = [i.name for i in session.get_inputs()]
        got = session.run(None, {n: np.asarray(a) for n, a in zip(names, inputs.values(), strict=True)})
    except Exception as error:  # the converter raises what it likes, and has no rule for many primitives
        raise ValueError(
            f"jax2onnx cannot write this function for onnxruntime: {_short(error)}; any_batch=False writes it for the "
            "shapes of x alone, and export.program writes any function that JAX compiles"
        ) from error
    apart = difference(got, wanted)
    target = pathlib.Path(path)
    report = {
        "difference": apart,
        "input": _described(inputs, call.batched),
        "name": names[0] if len(names) == 1 else names,
    }
    loading.write_file(target, content)
    loading.write_file(target.with_name(target.name + ".json"), json.dumps(report, indent=1).encode())
    return Written(target, apart, len(content))


def need(module: str, packages: str) -> None:
    """Raises `ValueError`, with the command that installs them, if packages are not installed."""
    if importlib.util.find_spec(module) is None:
        raise ValueError(f"this needs {module}, which is not installed: pip install {packages}")


class _Call(NamedTuple):
    """A function to export, `apply(variables, x)`, arguments, and the paths in `x` whose batch size is left open."""

    apply: Callable[[PyTree, PyTree], PyTree]
    variables: PyTree
    x: PyTree
    batched: frozenset[str]


def _prepared(model: Any, variables: PyTree, x: PyTree | None, any_batch: bool) -> _Call:
    """The call of a model or a function, with arguments that are checked."""
    if x is None and not any_batch:
        raise ValueError("any_batch=False fixes the shapes of inputs to those of x: give `x`")
    if isinstance(model, Model):
        inputs = (examples(model) if x is None else jnp.asarray(x)).astype(model.input_dtype)
        given = _arrays(Variables(*variables), "the variables")
        return _Call(lambda v, x: model.apply(v, x)[0], given, inputs, frozenset([""] if any_batch else []))
    if isinstance(model, nnx.Module):
        raise ValueError(
            f"{type(model).__name__} is an nnx.Module; take definition, state = nnx.split(module), and give the "
            "function `lambda state, x: nnx.merge(definition, state)(x)` and the state"
        )
    if not callable(model) or hasattr(model, "apply"):
        raise ValueError(
            f"a {type(model).__name__} is neither a Model nor a function of variables and x; of a Linen module, give "
            "`module.apply`"
        )
    if x is None:
        raise ValueError("a function of one's own needs examples: give `x`, as the function takes it")
    inputs = _arrays(x, "x")
    sizes = {path: leaf.shape[0] for path, leaf in trees.flatten(inputs).items() if leaf.ndim}
    if any_batch and len(set(sizes.values())) > 1:
        raise ValueError(
            f"the first axes of x, which are the batch, differ in length: {sizes}; give as many examples of each, put "
            "what belongs to no example into the function or its variables, or fix all shapes by any_batch=False"
        )
    return _Call(model, _arrays(variables, "the variables"), inputs, frozenset(sizes if any_batch else []))


def _computed(call: _Call) -> PyTree:
    """What the function computes from the examples, compiled: rounding depends on what a compiler fuses."""
    try:
        return jax.jit(lambda variables, x: _plain(call.apply(variables, x)))(call.variables, call.x)
    except ValueError:
        raise
    except Exception as error:  # what a function raises under tracing has no common type
        raise ValueError(
            f"this function does not work under jax.jit, called with the variables and x: {_short(error)}; it must be "
            "pure and return arrays"
        ) from error


def _arrays(tree: PyTree, what: str) -> PyTree:
    """The tree with all leaves as JAX arrays, each on one device."""

    def one(path: str, leaf: Any) -> Array:
        try:
            array = jnp.asarray(leaf)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{what} hold a {type(leaf).__name__} at {path!r}, which is no array; split such things off, by "
                "`eqx.partition(module, eqx.is_array)` or `nnx.split(module)`, and put them together in the function"
            ) from error
        return array if len(array.sharding.device_set) == 1 else jnp.asarray(np.asarray(array))

    named = trees.flatten(tree)
    return trees.replace(tree, {path: one(path, leaf) for path, leaf in named.items()})


def _plain(tree: PyTree) -> PyTree:
    """Dicts with string keys, lists and tuples as they are, other containers as `{path: leaf}`, and keys as data."""
    if type(tree) is dict and all(isinstance(key, str) for key in tree):
        return {key: _plain(value) for key, value in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(map(_plain, tree))
    if tree is None:
        return None
    if not jax.tree_util.treedef_is_leaf(jax.tree.structure(tree)):
        return {path: _plain(leaf) for path, leaf in trees.flatten(tree).items()}
    return jax.random.key_data(tree) if _is_key(tree) else tree


def _dressed(plain: PyTree, like: PyTree) -> PyTree:
    """The tree of which `_plain` made another, in its own containers; paths are the same in both."""
    given = trees.flatten(plain)
    return trees.replace(like, {p: _wrapped(given[p], leaf) for p, leaf in trees.flatten(like).items()})


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _wrapped(data: Array, like: Array) -> Array:
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(like)) if _is_key(like) else data


def _stored(path: str, leaf: Array) -> tuple[np.ndarray, str]:
    """An array as it lies in the file of weights, and the name of its dtype if that is not NumPy's."""
    try:
        return dtypes.by_bits(np.array(jax.random.key_data(leaf) if _is_key(leaf) else leaf, order="C"))
    except ValueError as error:
        raise ValueError(f"the variable at {path!r} holds {error}") from error


def _restored(stored: Array, like: Array) -> Array:
    """The array that lies in the file by its bits, inside a program."""
    if _is_key(like) or stored.dtype == like.dtype:
        return _wrapped(stored, like)
    info = jnp.iinfo if jnp.issubdtype(like.dtype, jnp.integer) else jnp.finfo
    return jax.lax.bitcast_convert_type(stored.astype(f"uint{info(like.dtype).bits}"), like.dtype)


def _exported(
    run: Callable[..., PyTree],
    weights: Mapping[str, np.ndarray],
    inputs: PyTree,
    batched: frozenset[str],
    platforms: Sequence[str],
) -> Any:
    """The exported function; where its batch size cannot be left open, that is said."""
    fixed = {path: jax.ShapeDtypeStruct(a.shape, a.dtype) for path, a in weights.items()}

    def export(batched: frozenset[str]) -> Any:
        (n,) = jax.export.symbolic_shape("n")

        def shape(keys: Any, a: Array) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((n, *a.shape[1:]) if trees.path_of(keys) in batched else a.shape, a.dtype)

        shapes = jax.tree_util.tree_map_with_path(shape, inputs)
        return jax.export.export(jax.jit(run), platforms=tuple(platforms))(fixed, shapes)

    try:
        return export(batched)
    except Exception as error:  # what a function raises under tracing has no common type
        try:
            export(frozenset())
        except Exception:
            raise ValueError(
                f"JAX cannot export this function for {list(platforms)}: {_short(error)}; `platforms` may name fewer"
            ) from error
        raise ValueError(
            f"the batch size of this function cannot be left open: {_short(error)}; write x.shape[0] or -1 instead of "
            "numbers in it, or give any_batch=False, for batches exactly as large as that of x"
        ) from error


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"


def _described(inputs: PyTree, batched: frozenset[str]) -> Any:
    """The shapes of inputs for the report, `n` for the batch size that is left open."""
    shapes = {p: ["n", *a.shape[1:]] if p in batched else list(a.shape) for p, a in trees.flatten(inputs).items()}
    return shapes[""] if list(shapes) == [""] else shapes


def _onnx_shape(a: Array, batched: bool) -> Any:
    shape = ("B", *a.shape[1:]) if batched else a.shape
    return shape if a.dtype == jnp.float32 else jax.ShapeDtypeStruct(shape, a.dtype)
