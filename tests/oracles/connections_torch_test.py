"""Scores of single weights against autograd and forward hooks in PyTorch, on a small network with the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvp_jax.core import trees
from mvp_jax.core.types import Variables
from mvp_jax.saliency import input_norms, synflow_scores, weight_scores

torch = pytest.importorskip("torch")
F = torch.nn.functional

PRUNABLE = ["(first|second|fc|head)/kernel"]
SHAPE = (6, 6, 2)


class Net(torch.nn.Module):
    """Two convolutions (the second strided and grouped), a batch norm, pooling, two linear layers."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv2d(2, 4, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(4)
        self.second = torch.nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False)
        self.fc = torch.nn.Linear(6, 5)
        self.head = torch.nn.Linear(5, 3)

    def forward(self, x):
        h = torch.relu(self.norm(self.first(x)))
        h = torch.relu(self.second(h)).mean((2, 3))
        return self.head(torch.relu(self.fc(h)))


def apply(v, x):
    """The same, channels last."""

    def convolve(x, layer, stride, groups):
        return jax.lax.conv_general_dilated(
            x,
            layer["kernel"],
            (stride, stride),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        ) + layer.get("bias", 0.0)

    p, r = v.params, v.rest["norm"]
    h = convolve(x, p["first"], 1, 1)
    h = (h - r["mean"]) * jax.lax.rsqrt(r["var"] + 1e-5) * p["norm"]["scale"] + p["norm"]["bias"]
    h = jax.nn.relu(convolve(jax.nn.relu(h), p["second"], 2, 2)).mean((1, 2))
    h = jax.nn.relu(h @ p["fc"]["kernel"] + p["fc"]["bias"])
    return h @ p["head"]["kernel"] + p["head"]["bias"], v.rest


def from_torch(name, tensor):
    """A weight, or anything of its shape, in our layout."""
    a = tensor.detach().numpy()
    if name.endswith("weight") and a.ndim == 4:
        return a.transpose(2, 3, 1, 0)
    return a.T if a.ndim == 2 else a


NAMES = {"weight": "kernel", "bias": "bias", "running_mean": "mean", "running_var": "var"}


def as_tree(tensors):
    tree = {}
    for name, tensor in tensors.items():
        layer, _, leaf = name.partition(".")
        ours = "scale" if (layer, leaf) == ("norm", "weight") else NAMES[leaf]
        tree.setdefault(layer, {})[ours] = jnp.asarray(from_torch(name, tensor))
    return tree


def case():
    torch.manual_seed(0)
    net = Net().eval()
    with torch.no_grad():
        for tensor in (*net.parameters(), net.norm.running_mean):
            tensor.add_(0.3 * torch.randn_like(tensor))
        net.norm.running_var.uniform_(0.5, 2.0)
    statistics = {k: v for k, v in net.named_buffers() if not k.endswith("tracked")}
    variables = Variables(as_tree(dict(net.named_parameters())), as_tree(statistics))
    rng = np.random.default_rng(0)
    return net, variables, rng.normal(size=(7, *SHAPE)).astype(np.float32), rng.integers(0, 3, 7)


def channels_first(x):
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def loss(variables, x, y):
    logits, _ = apply(variables, x)
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1))


def compare(got, tensors, rtol=1e-3):
    expected, got = trees.flatten(as_tree(tensors)), trees.flatten(got)
    for path, e in expected.items():
        assert np.ptp(e) > 0, path
        np.testing.assert_allclose(got[path], e, rtol=rtol, atol=1e-4 * np.abs(e).max(), err_msg=path)
    return expected


def test_the_networks_agree():
    net, variables, x, _ = case()
    expected = net(channels_first(x)).detach().numpy()
    assert np.ptp(expected, axis=0).min() > 0.05
    np.testing.assert_allclose(apply(variables, x)[0], expected, rtol=1e-4, atol=1e-5)


def test_snip_and_grasp():
    net, variables, x, y = case()
    names, params = zip(*net.named_parameters(), strict=True)
    value = F.cross_entropy(net(channels_first(x)), torch.from_numpy(y))
    grads = torch.autograd.grad(value, params, create_graph=True)
    snip = {n: (p * g).abs() for n, p, g in zip(names, params, grads, strict=True)}
    # Half the gradient of the squared norm of the gradient is Hessian times gradient.
    curved = torch.autograd.grad(sum((g**2).sum() for g in grads) / 2, params)
    grasp = {n: p * h for n, p, h in zip(names, params, curved, strict=True)}

    def ours(params, x, y):
        return loss(Variables(params, variables.rest), x, y)

    compare(weight_scores.snip(variables.params, jax.grad(ours)(variables.params, x, y)), snip)
    found = compare(weight_scores.grasp(ours, variables.params, x, y), grasp)
    assert min(float(s.min()) for s in found.values()) < 0 < max(float(s.max()) for s in found.values())


def test_fisher():
    net, variables, x, y = case()
    expected = {n: torch.zeros_like(p) for n, p in net.named_parameters()}
    for i in range(len(y)):
        net.zero_grad()
        F.cross_entropy(net(channels_first(x[i : i + 1])), torch.from_numpy(y[i : i + 1])).backward()
        for n, p in net.named_parameters():
            expected[n] += p.detach() ** 2 * p.grad**2 / len(y)

    def ours(params, x1, y1):
        return loss(Variables(params, variables.rest), x1[None], y1[None])

    compare(weight_scores.fisher(ours, variables.params, x, y, batch=3), expected)


def test_synflow():
    net, variables, _, _ = case()
    with torch.no_grad():
        for module in (net.first, net.second, net.fc, net.head):
            module.weight.abs_()
            if module.bias is not None:
                module.bias.zero_()
        net.norm.weight.fill_(1)
        net.norm.bias.zero_()
        net.norm.running_mean.zero_()
        net.norm.running_var.fill_(1)
    net(torch.ones(1, *SHAPE[::-1])).sum().backward()
    expected = {n: p * p.grad for n, p in net.named_parameters() if n.endswith("weight") and "norm" not in n}
    got = synflow_scores.synflow(apply, variables, SHAPE, prunable=PRUNABLE)
    assert len(compare(got, expected, rtol=1e-4)) == 4
    assert got["norm"]["scale"].shape == got["fc"]["bias"].shape == ()


def test_wanda():
    net, variables, x, _ = case()
    expected = {}

    def hook(name):
        def note(module, given, _):
            a = given[0]
            if isinstance(module, torch.nn.Linear):
                squares = (a**2).sum(0).expand_as(module.weight)
            else:
                # Windows as columns, group by group: what every tap of every filter meets.
                groups, taps = module.groups, module.weight[0].numel()
                columns = F.unfold(a, module.kernel_size, stride=module.stride, padding=module.padding)
                squares = (columns**2).sum((0, 2)).reshape(groups, 1, taps)
                squares = squares.expand(groups, module.out_channels // groups, taps).reshape(module.weight.shape)
            expected[f"{name}.weight"] = module.weight.abs() * squares.sqrt()

        return note

    for name in ("first", "second", "fc", "head"):
        getattr(net, name).register_forward_hook(hook(name))
    net(channels_first(x))
    found = input_norms.norms(apply, variables, x, prunable=PRUNABLE)
    compare(weight_scores.wanda(variables.params, found.norm), expected, rtol=1e-4)
    assert [found.outputs[n]["kernel"] for n in ("first", "second", "fc", "head")] == [(3,), (3,), (1,), (1,)]
