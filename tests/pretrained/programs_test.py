"""Programs of functions that are no model of this package: Linen, NNX, Equinox, by hand, and cut by `compact.slim`."""

import json
import subprocess
import sys

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from mvp_jax import compact, graph
from mvp_jax.pretrained import export
from mvp_jax.storage import dtypes
from tests.pretrained.export_test import READ

pytest.importorskip("flatbuffers")


def numbers(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


class Pictures(nn.Module):
    """Linen, with batch statistics."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3))(x)))
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


class Rows(nnx.Module):
    """NNX, with integer keys, statistics and the random state of dropout."""

    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(5, 6, rngs=rngs), nnx.Linear(6, 3, rngs=rngs)])
        self.norm, self.dropout = nnx.BatchNorm(6, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.layers[1](self.dropout(nnx.relu(self.norm(self.layers[0](x)))))


def linen():
    variables = Pictures().init(jax.random.key(0), numbers(1, 6, 6, 2))
    statistics = {"BatchNorm_0": {"mean": numbers(4), "var": jnp.abs(numbers(4, seed=2)) + 0.5}}
    variables = {**variables, "batch_stats": statistics}
    return Pictures().apply, variables, lambda n: numbers(n, 6, 6, 2, seed=n)


def linen_training():
    apply, variables, x = linen()
    return lambda v, x: apply(v, x, train=True, mutable=["batch_stats"]), variables, x


def nnx_module():
    module = Rows(nnx.Rngs(0))
    module.eval()
    definition, state = nnx.split(module)
    return lambda state, x: nnx.merge(definition, state)(x), state, lambda n: numbers(n, 5, seed=n)


def nnx_pure():
    apply, state, x = nnx_module()
    pure = nnx.to_pure_dict(state)
    assert 0 in pure["layers"]
    return apply, pure, x


def equinox():
    module = eqx.nn.MLP(5, 3, 8, 2, key=jax.random.key(1))
    arrays, static = eqx.partition(module, eqx.is_array)
    return lambda arrays, x: jax.vmap(eqx.combine(arrays, static))(x), arrays, lambda n: numbers(n, 5, seed=n)


def by_hand():
    def apply(v, x):
        y = x["rows"] @ v["w"][1] * x["scale"] + v["b"]
        return {"y": y, "best": jnp.argmax(y, -1)}, (None, x["more"][0].sum((1, 2)), v["k"] * 2)

    def x(n):
        return {"rows": numbers(n, 5, seed=n), "more": [numbers(n, 2, 3, seed=n + 1)], "scale": np.float32(1.5)}

    return apply, {"w": (numbers(5, 2), numbers(5, 4, seed=3)), "b": numbers(4, seed=4), "k": 2.0}, x


def slim():
    apply, variables, x = linen()
    found = graph.groups(apply, variables, x(2))
    assert [g.size for g in found] == [4]
    units = {g.name: np.arange(g.size) % 2 == 0 for g in found}
    small, cut = compact.slim(apply, variables, found, units, x(2))
    return small, cut, x


KINDS = {f.__name__: f for f in (linen, linen_training, nnx_module, nnx_pure, equinox, by_hand, slim)}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_back_computes_what_the_function_does_at_any_batch_size(kind, tmp_path):
    apply, variables, x = KINDS[kind]()
    written = export.program(tmp_path / "out", apply, variables, x=x(3))
    assert 0 <= written.difference < 1e-5
    assert json.loads((written.path / "report.json").read_text())["difference"] == written.difference
    run = export.load_program(written.path)
    for n in (1, 7):
        got, wanted = jax.tree.leaves(run(x(n))), jax.tree.leaves(apply(variables, x(n)))
        assert len(got) == len(wanted) > 0
        for a, b in zip(got, wanted, strict=True):
            assert a.shape == np.shape(b)
            np.testing.assert_allclose(a, b, atol=1e-5)
        assert np.ptp(np.asarray(wanted[-1] if kind != "by_hand" else wanted[1])) > 1e-2


def test_a_slim_function_is_the_masked_one(tmp_path):
    apply, variables, x = linen()
    small, cut, _ = slim()
    run = export.load_program(export.program(tmp_path / "out", small, cut, x=x(2)).path)
    kernel = np.asarray(variables["params"]["Conv_0"]["kernel"])
    assert safetensors.numpy.load_file(tmp_path / "out" / "weights.safetensors")["params/Conv_0/kernel"].shape == (
        *kernel.shape[:-1],
        2,
    )
    dense = {**variables["params"]}
    # What a removed filter gives is zero after its norm, if scale and bias are.
    dense["BatchNorm_0"] = {k: np.where([1, 0, 1, 0], a, 0) for k, a in variables["params"]["BatchNorm_0"].items()}
    for n in (1, 7):
        wanted = apply({**variables, "params": dense}, x(n))
        np.testing.assert_allclose(run(x(n)), wanted, atol=1e-5)
        assert float(jnp.abs(wanted - apply(variables, x(n))).max()) > 1e-2


def test_a_function_runs_without_this_package_and_without_flax(tmp_path):
    apply, state, x = nnx_module()
    written = export.program(tmp_path / "out", apply, state, x=x(3))
    np.save(tmp_path / "x.npy", x(7))
    subprocess.run([sys.executable, "-c", READ, str(written.path)], check=True, cwd=tmp_path)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), apply(state, x(7)), atol=1e-5)


def test_weights_of_any_dtype_are_those_of_the_function(tmp_path):
    def apply(v, x):
        return {name: x * leaf.astype(jnp.float32) for name, leaf in v.items()}

    values = np.array([1.0, 0.5, 2.0, 1.0])
    names = [name for name in dtypes.BY_BITS if name.startswith(("bfloat16", "float8"))]
    variables = {name: jnp.asarray(values.astype(dtypes.BY_BITS[name])) for name in names}
    variables |= {name: jnp.asarray(np.array([1, -2, 0, 1]).astype(dtypes.BY_BITS[name])) for name in ("int4", "int2")}
    variables |= {"uint4": jnp.asarray(np.array([1, 15, 8, 0]).astype(dtypes.BY_BITS["uint4"]))}
    x = numbers(3, 4)
    folder = export.program(tmp_path / "out", apply, variables, x=x).path
    assert set(json.loads((folder / "report.json").read_text())["by_bits"]) == set(variables)
    found = export.load_program(folder)(x)
    for name, got in found.items():
        wanted = {"int4": [1, -2, 0, 1], "int2": [1, -2, 0, 1], "uint4": [1, 15, 8, 0]}.get(name, values)
        np.testing.assert_allclose(got, np.asarray(x) * np.asarray(wanted, np.float32))


def test_random_keys_go_as_their_data(tmp_path):
    def apply(key, x):
        return x[0] + jax.random.normal(jax.random.fold_in(x[1], jax.random.bits(key)), x[0].shape[1:]), x[1]

    key, x = jax.random.key(3), (numbers(3, 2), jax.random.key(5))
    run = export.load_program(export.program(tmp_path / "out", apply, key, x=x).path)
    more = (numbers(7, 2), jax.random.key(6))
    got, data = run(more)
    np.testing.assert_allclose(got, apply(key, more)[0], atol=1e-6)
    assert data.tolist() == jax.random.key_data(more[1]).tolist()


def test_containers_that_jax_does_not_know_become_paths(tmp_path):
    def apply(state, x):
        return {1: x @ state["w"], 10: state}, nnx.State({"a": {3: x}})

    variables = nnx.State({"w": nnx.Param(numbers(5, 2))})
    run = export.load_program(export.program(tmp_path / "out", apply, variables, x=numbers(3, 5)).path)
    first, second = run(numbers(7, 5))
    assert {path: a.shape for path, a in first.items()} == {"1": (7, 2), "10/w": (5, 2)}
    assert {path: a.shape for path, a in second.items()} == {"a/3": (7, 5)}


def test_mixed_precision_is_compared_with_the_compiled_function(tmp_path):
    def apply(w, x):
        for _ in range(3):
            x = jnp.tanh(x.astype(jnp.bfloat16) @ w["a"]) @ w["b"]
        return x.astype(jnp.float32)

    variables = {"a": numbers(16, 64).astype(jnp.bfloat16), "b": numbers(64, 16).astype(jnp.bfloat16)}
    written = export.program(tmp_path / "out", apply, variables, x=numbers(3, 16))
    np.testing.assert_allclose(
        export.load_program(written.path)(numbers(7, 16)),
        jax.jit(apply)(variables, numbers(7, 16)),
        rtol=0.05,
        atol=0.5,
    )


def test_a_batch_size_that_cannot_be_left_open_is_said_and_can_be_fixed(tmp_path):
    def apply(w, x):
        return x.reshape(3, -1) @ w

    x, w = numbers(3, 5), numbers(5, 2)
    with pytest.raises(ValueError, match=r"batch size of this function cannot be left open: .*any_batch=False"):
        export.program(tmp_path / "out", apply, w, x=x)
    assert not (tmp_path / "out").exists()
    folder = export.program(tmp_path / "out", apply, w, x=x, any_batch=False).path
    assert json.loads((folder / "report.json").read_text())["input"] == [3, 5]
    np.testing.assert_allclose(export.load_program(folder)(x), np.asarray(x) @ np.asarray(w), atol=1e-6)
    with pytest.raises(ValueError, match="Shape mismatch"):
        export.load_program(folder)(numbers(7, 5))


def called_back(x):
    return jax.pure_callback(lambda a: np.asarray(a), jax.ShapeDtypeStruct(x.shape, x.dtype), x)


WRONG = {
    "no x": (lambda v, x: x, {}, None, {}, "needs examples: give `x`"),
    "lengths": (lambda v, x: x[0], {}, (np.ones((3, 2)), np.ones((1, 2))), {}, r"differ in length: \{'0': 3, '1': 1\}"),
    "no array": (lambda v, x: x, {"f": jnp.tanh}, np.ones(3), {}, r"at 'f', which is no array; .*eqx\.partition"),
    "text": (lambda v, x: "y", {}, np.ones(3), {}, "does not work under jax.jit"),
    "linen": (Pictures(), {}, np.ones(3), {}, r"a Pictures is neither .*`module\.apply`"),
    "no function": ({}, {}, np.ones(3), {}, "a dict is neither"),
    "callback": (lambda v, x: called_back(x), {}, np.ones(3), {}, "JAX cannot export this function .*python_callback"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_cannot_be_a_program_is_refused_in_words(kind, tmp_path):
    apply, variables, x, options, message = WRONG[kind]
    with pytest.raises(ValueError, match=message):
        export.program(tmp_path / "out", apply, variables, x=x, **options)
    assert not (tmp_path / "out").exists()


def test_a_module_and_inputs_of_another_form_are_refused_in_words(tmp_path):
    apply, state, x = nnx_module()
    with pytest.raises(ValueError, match=r"Rows is an nnx\.Module; take definition, state = nnx\.split"):
        export.program(tmp_path / "out", Rows(nnx.Rngs(0)), state, x=x(3))
    run = export.load_program(export.program(tmp_path / "out", apply, state, x=x(3)).path)
    with pytest.raises(
        ValueError, match=r"x has the arrays \['rows'\]; the program in .* takes \{'x': 'float32\[n, 5\]'"
    ):
        run({"rows": x(3)})
