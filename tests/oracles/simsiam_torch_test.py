"""SimSiam's heads, loss and gradients against PyTorch's, written as in the paper's algorithm 1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
from mvp_jax import models
from mvp_jax.core.types import Variables
from mvp_jax.train import simsiam

N, DIM, HIDDEN = 7, 12, 5


def views(key, x):
    return x, x[:, ::-1, ::-1]


def heads(params, layers):
    """The same projector and predictor as PyTorch modules."""
    nn = torch.nn

    def linear(p):
        made = nn.Linear(*p["kernel"].shape, bias="bias" in p)
        made.weight.data = torch.tensor(np.asarray(p["kernel"]).T.copy())
        if "bias" in p:
            made.bias.data = torch.tensor(np.asarray(p["bias"]))
        return made

    def norm(p):
        made = nn.BatchNorm1d(len(p["scale"]))
        made.weight.data, made.bias.data = (torch.tensor(np.asarray(p[n])) for n in ("scale", "bias"))
        return made

    def stack(p, maps, last):
        found = []
        for i in range(maps):
            found.append(linear(p["dense"][str(i)]))
            if i < maps - 1 or last:
                found.append(norm(p["norms"][str(i)]))
            if i < maps - 1:
                found.append(nn.ReLU())
        return nn.Sequential(*found)

    return stack(params["projector"], layers, True), stack(params["predictor"], 2, False)


@pytest.mark.parametrize("layers", [2, 3])
def test_loss_and_gradients_are_torchs(layers):
    body = models.create("resnet8", width=4, image_size=8, channels=3, classes=2)
    model = simsiam.siamese(body, views, dim=DIM, hidden=HIDDEN, projector_layers=layers)
    variables = model.init(jax.random.key(0))
    leaves, structure = jax.tree.flatten(variables.params)
    rng = np.random.default_rng(0)
    # No scale of 1, no bias of 0, so that nothing hides.
    leaves = [jnp.asarray(np.asarray(a) + 0.1 * rng.normal(size=a.shape), jnp.float32) for a in leaves]
    variables = Variables(jax.tree.unflatten(structure, leaves), variables.rest)
    x = jnp.asarray(rng.uniform(size=(N, 8, 8, 3)), jnp.float32)

    def ours(params):
        out, rest = model.apply(Variables(params, variables.rest), x, train=True, key=jax.random.key(1))
        return simsiam.loss(out).mean(), rest

    (value, rest), grads = jax.value_and_grad(ours, has_aux=True)(variables.params)

    f, g, h, of_body = [], *heads(variables.params, layers), variables.rest["body"]
    for view in views(None, x):
        seen = body.inspect(Variables(variables.params["body"], of_body), view, train=True)
        of_body = seen.rest
        f.append(torch.tensor(np.asarray(seen.features), requires_grad=True))
    z1, z2 = g(f[0]), g(f[1])
    p1, p2 = h(z1), h(z2)

    def distance(p, z):
        return -torch.nn.functional.cosine_similarity(p, z.detach(), dim=1).mean()

    theirs = distance(p1, z2) / 2 + distance(p2, z1) / 2
    theirs.backward()
    assert float(value) == pytest.approx(theirs.item(), abs=1e-5)
    assert abs(theirs.item()) > 0.01
    for module, name, maps in ((g, "projector", layers), (h, "predictor", 2)):
        linears = [m for m in module if isinstance(m, torch.nn.Linear)]
        norms = [m for m in module if isinstance(m, torch.nn.BatchNorm1d)]
        assert len(linears) == maps
        for i, made in enumerate(linears):
            own = grads[name]["dense"][str(i)]["kernel"]
            assert float(jnp.abs(own).max()) > 1e-4
            np.testing.assert_allclose(own, made.weight.grad.numpy().T, rtol=2e-3, atol=2e-6)
        for i, made in enumerate(norms):
            np.testing.assert_allclose(grads[name]["norms"][str(i)]["scale"], made.weight.grad, rtol=2e-3, atol=2e-6)
            # Both views have moved the means; PyTorch's momentum of 0.1 is 0.9 here.
            np.testing.assert_allclose(rest[name]["norms"][str(i)]["mean"], made.running_mean, rtol=1e-3, atol=1e-5)

    # What reaches the body: PyTorch's gradient at the features, pulled back through ours.
    def features(params):
        found, own = [], variables.rest["body"]
        for view in views(None, x):
            seen = body.inspect(Variables(params, own), view, train=True)
            own = seen.rest
            found.append(seen.features)
        return found

    _, pull = jax.vjp(features, variables.params["body"])
    (expected,) = pull([jnp.asarray(a.grad.numpy()) for a in f])
    for a, b in zip(jax.tree.leaves(grads["body"]), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=5e-3, atol=1e-5)
    assert max(float(jnp.abs(a).max()) for a in jax.tree.leaves(expected)) > 1e-3
    assert float(jnp.abs(grads["body"]["head"]["kernel"]).max()) == 0
