"""ONNX graphs by jax2onnx, of a `Model` or of any function, which onnxruntime runs without JAX.

What is written is run on examples by onnxruntime and compared with the model before it counts as written.
"""

import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from mvp_jax.core import trees
from mvp_jax.core.types import Array, PyTree
from mvp_jax.models.api import Model
from mvp_jax.pretrained import calls, saving
from mvp_jax.pretrained.comparison import Written, difference


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
    calls.check_packages("onnx")
    import onnxruntime

    call = calls.prepared(model, variables, x, any_batch)
    wanted = calls.computed(call)
    inputs = trees.flatten(calls.plain(call.x))
    outputs = trees.flatten(wanted)

    def run(*leaves: Array) -> Any:
        x = calls.dressed(dict(zip(inputs, leaves, strict=True)), call.x)
        out = jax.tree.leaves(calls.plain(call.apply(call.variables, x)))
        return out[0] if len(out) == 1 else tuple(out)

    try:
        made = _converted(run, inputs, call.batched, list(outputs))
        content = made.SerializeToString()
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        names = [i.name for i in session.get_inputs()]
        got = session.run(None, {n: np.asarray(a) for n, a in zip(names, inputs.values(), strict=True)})
    except Exception as error:  # the converter raises what it likes, and has no rule for many primitives
        raise ValueError(
            f"jax2onnx cannot write this function for onnxruntime: {calls.short(error)}; any_batch=False writes it for "
            "the shapes of x alone, and export.program writes what JAX compiles"
        ) from error
    apart = difference(got, wanted)
    target = pathlib.Path(path)
    report = {
        "difference": apart,
        "input": calls.described(inputs, call.batched),
        "name": names[0] if len(names) == 1 else names,
    }
    saving.write_file(target, content)
    saving.write_file(target.with_name(target.name + ".json"), json.dumps(report, indent=1).encode())
    return Written(target, apart, len(content))


def _converted(
    run: Callable[..., Any], inputs: Mapping[str, Array], batched: frozenset[str], outputs: list[str]
) -> Any:
    """The graph of a function: by the converter's own layers, or, where it cannot read one, by JAX's primitives."""
    import jax2onnx

    def convert(run: Callable[..., Any], shapes: Sequence[Any]) -> Any:
        return jax2onnx.to_onnx(
            run,
            inputs=shapes,
            model_name="model",
            input_names=list(inputs) if len(inputs) > 1 else None,
            output_names=outputs if len(outputs) > 1 else None,
        )

    def shape(path: str, a: Array, batch: Any) -> Any:
        sizes = (batch, *a.shape[1:]) if path in batched else a.shape
        return sizes if a.dtype == jnp.float32 and isinstance(batch, str) else jax.ShapeDtypeStruct(sizes, a.dtype)

    try:
        return convert(run, [shape(path, a, "B") for path, a in inputs.items()])
    except Exception:  # of its own layers, and of functions that trace another one, such as those of compact.slim
        shapes = [shape(path, a, jax.export.symbolic_shape("B")[0]) for path, a in inputs.items()]
        traced = core.jaxpr_as_fun(jax.make_jaxpr(run)(*shapes))

    def flat(*leaves: Array) -> Any:
        out = traced(*leaves)
        return out[0] if len(out) == 1 else tuple(out)

    return convert(flat, shapes)
