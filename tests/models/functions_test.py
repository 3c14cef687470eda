"""Models that are made of others: what is frozen stays to the last bit, and everything else is the model's own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mvp_jax import models, train
from mvp_jax.core import trees
from mvp_jax.core.types import Variables
from mvp_jax.models import bert, functions
from tests.model_kinds import batch, made


def small():
    """A function of two matrices, cheap to compile."""

    def apply(variables, x, **_):
        return jnp.tanh(x @ variables.params["body"]) @ variables.params["head"]["kernel"], variables.rest

    rng = np.random.default_rng(0)
    params = {"body": rng.normal(size=(5, 4)), "head": {"kernel": rng.normal(size=(4, 3))}}
    model = functions.from_apply(apply, input_shape=(5,), num_classes=3)
    return model, Variables(jax.tree.map(jnp.float32, params), {}), jnp.float32(rng.normal(size=(4, 5)))


def test_frozen_is_the_same_function_with_fewer_gradients():
    model, variables = made("vit_mean")
    frozen = functions.freeze(model, "head", "layers")
    x = batch(model)
    gates = {g.name: jnp.linspace(0.5, 1.0, g.size) for g in model.groups}
    same = (model.inspect(variables, x, gates=gates), frozen.inspect(variables, x, gates=gates))
    jax.tree.map(np.testing.assert_array_equal, *same)
    np.testing.assert_array_equal(frozen.apply(variables, x)[0], model.apply(variables, x)[0])

    def slopes(m, how):
        return trees.flatten(jax.grad(lambda p: jnp.sum(how(m)(Variables(p, {}), x)[0] ** 2))(variables.params))

    usual = slopes(model, lambda m: m.apply)
    for how in (lambda m: m.apply, lambda m: m.inspect):
        for path, g in slopes(frozen, how).items():
            if path.startswith(("head/", "layers/")):
                assert not np.asarray(g).any(), path
            else:
                np.testing.assert_allclose(g, usual[path], rtol=1e-5, atol=1e-6)
                assert np.asarray(g).any(), path
    assert all(np.asarray(usual[f"head/{n}"]).any() for n in ("kernel", "bias"))


def test_equal_wrappers_are_one_object():
    model, _ = made("vit_mean")
    frozen = functions.freeze(model, "head", "layers")
    assert functions.freeze(model, "layers", "head", "head") is frozen
    assert functions.freeze(model, "head") is not frozen
    assert frozen.with_classes(7).with_classes(3) is frozen
    assert frozen.resize({}) is frozen
    assert frozen.with_classes(7).num_classes == 7
    assert frozen.resize({"layers/0/fc1": 2}).config.mlp == (2,)
    assert frozen.groups == model.groups


def test_a_training_step_leaves_what_is_frozen():
    model, variables, x = small()
    frozen = functions.freeze(model, "head")
    examples = {"x": x, "y": jnp.asarray([0, 1, 2, 0])}

    def after(decayed):
        tx = train.optimizer("adamw", weight_decay=0.5, decayed=decayed)
        state = train.create(variables, tx, jax.random.key(0), settings=train.RunSettings(learning_rate=0.01))
        step = train.make_step(frozen, train.cross_entropy, tx)
        for _ in range(2):
            state, _ = step(state, examples)
        return state.variables.params

    def body(params):
        return {name: jax.tree.map(lambda _, n=name: n != "head", p) for name, p in params.items()}

    kept = after(body)
    jax.tree.map(np.testing.assert_array_equal, kept["head"], variables.params["head"])
    assert float(jnp.abs(kept["body"] - variables.params["body"]).min()) > 1e-4
    # As documented: decay is not a gradient.
    assert float(jnp.abs(after(None)["head"]["kernel"] - variables.params["head"]["kernel"]).max()) > 1e-4


def test_members_under_vmap():
    model, variables, x = small()
    frozen = functions.freeze(model, "head")
    two = trees.stack([variables, jax.tree.map(lambda a: 1.1 * a, variables)])
    logits = jax.vmap(lambda v: frozen.apply(v, x)[0])(two)
    np.testing.assert_allclose(logits, jax.vmap(lambda v: model.apply(v, x)[0])(two), rtol=1e-6)
    grads = jax.vmap(jax.grad(lambda v: jnp.sum(frozen.apply(v, x)[0])))(two)
    assert float(optax.tree.norm(grads.params["head"])) == 0.0
    assert float(optax.tree.norm(grads.params["body"])) > 0.1


def test_strange_names_are_refused():
    model, variables = made("vit_mean")
    with pytest.raises(ValueError, match="nothing to freeze"):
        functions.freeze(model)
    strange = functions.freeze(model, "haed", "head")
    with pytest.raises(ValueError, match=r"cannot freeze \['haed'\]: the top-level entries of params are \['head'"):
        strange.apply(variables, batch(model))
    with pytest.raises(ValueError, match=r"entries of params are \[\]"):
        strange.apply(Variables([jnp.ones(2)], {}), batch(model))


def test_a_model_made_of_a_function_has_no_head():
    model, variables, _ = small()
    assert model.head == ""
    assert made("distiller")[0].head == "head"
    with pytest.raises(ValueError, match="has no head that could be replaced"):
        models.replace_head(variables, model)
    for use in (lambda: model.with_classes(2), lambda: model.resize({}), lambda: model.init(jax.random.key(0))):
        with pytest.raises(ValueError, match="made of a function alone"):
            use()


def test_a_language_model_has_no_head_and_its_classifier_one():
    model = models.build(bert.micro(task="masked_lm"))
    assert model.head == ""
    classifier = model.with_classes(3)
    assert classifier.head == "head"
    with pytest.raises(ValueError, match="hold no head/kernel"):
        models.replace_head(jax.eval_shape(model.init, jax.random.key(0)), classifier)
