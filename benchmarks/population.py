"""How fast does a population train, beside the same runs one after the other and beside PyTorch?

    pip install torch==2.13.0
    python benchmarks/population.py [--members 8] [--rounds 3] [--without-torch] [--without-slow] [--quick]

Seconds until all members have taken a step: `population.fit` under each mapping, beside the loop that one would write
instead (a jitted step with donated state, members one after the other), and beside PyTorch, eager and compiled, one
after the other on as many threads. All have the same weights, examples, batches and optimiser (SGD with momentum,
float32), and their losses must agree before anything is timed. Indexing the batch is timed, compiling is not.
Contenders take turns, every other round backwards; a ratio comes from two times of one round, with its median (least to
most). The machine must be idle, or `OMP_WAIT_POLICY=PASSIVE` be set, see `any_model.py`. One line of JSON follows.
"""

import argparse
import dataclasses
import json
import logging
import math
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mvp_jax import models, train
from mvp_jax.core import trees
from mvp_jax.core.types import Variables
from mvp_jax.parallel import mapping
from mvp_jax.train import population

RATE, MOMENTUM, EXAMPLES = 0.01, 0.9, 512


@dataclasses.dataclass
class Contender:
    """One way of training `K` members.

    Attributes:
        name: for people.
        call: `(batches int[K, steps, B] or None to choose) -> losses [K]`, the mean over the steps; waits for them.
        compiles: whether no steps at all compile what some steps need.
        times: seconds of each round, of one step.
        once: too slow for more than one round.
    """

    name: str
    call: Callable[..., np.ndarray]
    compiles: bool = False
    times: list[float] = dataclasses.field(default_factory=list)
    once: bool = False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet", "vit"], choices=("resnet", "vit"))
    parser.add_argument("--members", type=int, nargs="+", default=[8])
    parser.add_argument("--batch", type=int, default=64, help="of the ResNet")
    parser.add_argument("--vit-batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=1, help="of each member in a call")
    parser.add_argument("--mappings", nargs="+", default=list(mapping.MAPPINGS), choices=mapping.MAPPINGS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--without-torch", action="store_true")
    parser.add_argument("--without-slow", action="store_true", help="no native convolutions under vmap and map on CPU")
    parser.add_argument("--quick", action="store_true", help="only show that it runs")
    args = parser.parse_args()
    if args.quick:
        args.members, args.batch, args.vit_batch, args.rounds, args.mappings = [2], 4, 2, 2, ["auto"]
    here = {"threads": threads_here(), "jax": jax.__version__, "device": jax.devices()[0].device_kind}
    print(f"{here}, load average before {os.getloadavg()[0]:.1f}", flush=True)
    said: list[str] = []
    planner = logging.getLogger("mvp_jax.parallel.auto")
    planner.setLevel(logging.INFO)
    planner.addHandler(type("Said", (logging.Handler,), {"emit": lambda _, record: said.append(record.getMessage())})())
    rows = [row for kind in args.models for k in args.members for row in speed(kind, k, args, said)]
    print(json.dumps(here | {"rows": rows}))


def threads_here() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def subject(kind: str, conv: str, quick: bool) -> models.Model:
    if kind == "vit":
        if quick:
            return models.create("vit_micro", image_size=16, channels=3, layers=1, dim=16, classes=10)
        return models.create("vit_tiny", image_size=32, patch=4, channels=3, classes=10)
    size = {"image_size": 8, "width": 4} if quick else {"image_size": 32}
    return models.create("resnet8" if quick else "resnet20", channels=3, classes=10, conv=conv, **size)


def speed(kind: str, k: int, args: argparse.Namespace, said: list[str]) -> list[dict[str, Any]]:
    said.clear()
    batch = args.vit_batch if kind == "vit" else args.batch
    convs = ("",) if kind == "vit" else ("native",) if args.quick else ("native", "im2col")
    side = subject(kind, convs[0], args.quick).input_shape[0]
    rng = np.random.default_rng(0)
    data = {
        "x": rng.normal(size=(EXAMPLES, side, side, 3)).astype(np.float32),
        "y": rng.integers(0, 10, EXAMPLES).astype(np.int32),
    }
    contenders = []
    for conv in convs:
        model = subject(kind, conv, args.quick)
        contenders.append(Contender(f"own loop {conv}".strip(), own_loop(model, k, data, batch, args.steps)))
        for way in args.mappings:
            native = conv == "native" and jax.default_backend() == "cpu"
            if native and args.without_slow and way in ("vmap", "map"):
                continue
            on_host = native and way in ("loop", "auto")
            call = ours(model, k, data, batch, way, args.steps)
            contenders.append(Contender(f"{way} {conv}".strip(), call, compiles=not on_host))
    variables = subject(kind, convs[0], args.quick).init(jax.random.key(0))
    size = sum(p.size for p in jax.tree.leaves(variables.params))
    if not args.without_torch:
        contenders += with_torch(subject(kind, convs[0], args.quick), variables, k, data, batch, args)

    print(f"\n{kind}: {size:,} parameters, {k} members, batch {batch}, images of {side} pixels", flush=True)
    timed(contenders, k, batch, args)
    print("\n".join(f"auto: {line}" for line in dict.fromkeys(said)))
    print("\n| contender | seconds for a step of all members | times the own loop's |\n|---|--:|--:|")
    rows = []
    for c in contenders:
        ratios = [a / b for a, b in zip(c.times, contenders[0].times, strict=False)]
        row = {"model": kind, "members": k, "batch": batch, "contender": c.name, "seconds": c.times, "ratios": ratios}
        rows.append(row | {"auto": list(dict.fromkeys(said))})
        spread = "once" if c.once else f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"| {c.name} | {statistics.median(c.times):.3f} | {statistics.median(ratios):.2f} ({spread}) |")
    return rows


def timed(contenders: list[Contender], k: int, batch: int, args: argparse.Namespace) -> None:
    """Fills in `times`; the first contender is what the others are measured by."""
    wanted, reference = np.zeros(0), math.inf
    for c in contenders:
        start = time.perf_counter()
        if c.compiles:
            c.call(np.zeros((k, 0, batch), np.int32))
        compiling = time.perf_counter() - start
        losses = []
        for s in range(2):
            chosen = library_batches(k, s, batch)
            if s == 1 and c.once:
                break
            start = time.perf_counter()
            losses.append(c.call(chosen))
            spent = time.perf_counter() - start
            c.once = s == 0 and c.compiles and spent > 10 * reference
            if c.once:
                c.times.append(spent)
        if c is contenders[0]:
            wanted, reference = np.array(losses), spent
        apart = float(np.max(np.abs(np.array(losses) / wanted[: len(losses)] - 1)))
        print(f"  {c.name}: ready after {compiling + spent:.0f} s, losses {apart:.0e} off the own loop's", flush=True)
        if not apart < 2e-3:
            raise SystemExit(f"{c.name} computes something else: losses {losses}, the own loop's are {wanted}")
    for i in range(args.rounds):
        for c in contenders if i % 2 == 0 else contenders[::-1]:
            if not c.once:
                start = time.perf_counter()
                c.call(None)
                c.times.append((time.perf_counter() - start) / args.steps)
        times = ", ".join(f"{c.times[-1]:.3f}" for c in contenders)
        print(f"  round {i + 1}, load {os.getloadavg()[0]:.1f}: {times}", flush=True)


def library_batches(k: int, step: int, batch: int) -> np.ndarray:
    """What `population.fit` lets each member see in a step, `int32[K, 1, B]`."""
    keys = jax.vmap(lambda key: jax.random.fold_in(key, 2**31 - 1))(jax.random.split(jax.random.key(1), k))
    chosen = jax.vmap(lambda key: train.batch_indices(key, jnp.int32(step), EXAMPLES, batch))(keys)
    return np.asarray(chosen)[:, None]


def batches_for(given: np.ndarray | None, k: int, steps: int, batch: int) -> np.ndarray:
    if given is not None:
        return given
    rng = np.random.default_rng()
    return np.stack([rng.permutation(EXAMPLES)[: steps * batch].reshape(steps, batch) for _ in range(k)])


def ours(
    model: models.Model, k: int, data: dict[str, Any], batch: int, way: mapping.MemberMapping, steps: int
) -> Callable[..., Any]:
    tx = train.optimizer("sgd", momentum=MOMENTUM)
    one = train.create(model.init(jax.random.key(0)), tx, jax.random.key(0))
    states = population.create(
        one, jax.random.split(jax.random.key(1), k), population.run_settings(k, learning_rate=RATE)
    )
    data = jax.tree.map(jnp.asarray, data)
    index = jnp.tile(jnp.arange(EXAMPLES, dtype=jnp.int32), (k, 1))
    recipe = train.Recipe(model=model, tx=tx, batch=batch)

    def call(given: np.ndarray | None) -> np.ndarray:
        nonlocal states
        n = steps if given is None else given.shape[1]
        states, means = population.fit(recipe, states, data, n, index=index, mapping=way)
        return np.asarray(jax.block_until_ready((states, means))[1]["loss"])

    return call


def own_loop(model: models.Model, k: int, data: dict[str, Any], batch: int, steps: int) -> Callable[..., Any]:
    tx = optax.sgd(RATE, momentum=MOMENTUM)
    x, y = jnp.asarray(data["x"]), jnp.asarray(data["y"])

    def step(state: Any, x: jax.Array, y: jax.Array, chosen: jax.Array) -> tuple[Any, jax.Array]:
        params, rest, opt_state = state

        def objective(params: Any) -> tuple[jax.Array, Any]:
            logits, new = model.apply(Variables(params, rest), x[chosen], train=True)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y[chosen]).mean(), new

        (loss, rest), grads = jax.value_and_grad(objective, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), rest, opt_state), loss

    step = jax.jit(step, donate_argnums=0)
    states = []
    for _ in range(k):
        params, rest = model.init(jax.random.key(0))
        states.append((params, rest, tx.init(params)))

    def call(given: np.ndarray | None) -> np.ndarray:
        losses = []
        for i, mine in enumerate(batches_for(given, k, steps, batch)):
            for chosen in mine:
                states[i], loss = step(states[i], x, y, chosen)
                losses.append(loss)
        jax.block_until_ready(states)
        return np.array(losses).reshape(k, -1).mean(1)

    return call


def with_torch(
    model: models.Model, variables: Variables, k: int, data: dict[str, Any], batch: int, args: argparse.Namespace
) -> list[Contender]:
    try:
        import torch
    except ImportError as error:
        print(f"PyTorch's part left out: {error}; pip install torch==2.13.0")
        return []
    torch.set_num_threads(threads_here())
    device = "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("highest" if device == "cpu" else "high")
    x = torch.from_numpy(data["x"].transpose(0, 3, 1, 2).copy()).to(device)
    y = torch.from_numpy(data["y"].astype(np.int64)).to(device)

    def loss_of(net: Any, x: Any, y: Any) -> Any:
        return torch.nn.functional.cross_entropy(net(x), y)

    def contender(name: str, loss_of: Callable[..., Any]) -> Contender:
        nets = [twin(model, variables).to(device).train() for _ in range(k)]
        optimizers = [torch.optim.SGD(net.parameters(), lr=RATE, momentum=MOMENTUM) for net in nets]

        def call(given: np.ndarray | None) -> np.ndarray:
            losses = []
            for net, optimizer, mine in zip(nets, optimizers, batches_for(given, k, args.steps, batch), strict=True):
                for chosen in torch.from_numpy(mine.astype(np.int64)).to(device):
                    optimizer.zero_grad()
                    loss = loss_of(net, x[chosen], y[chosen])
                    loss.backward()
                    optimizer.step()
                    losses.append(loss.detach())
            return torch.stack(losses).cpu().numpy().reshape(k, -1).mean(1)

        return Contender(f"PyTorch {torch.__version__.split('+')[0]} {name}", call)

    found = [contender("eager", loss_of)]
    if not args.quick:
        found.append(contender("compiled", torch.compile(loss_of)))
    return found


def twin(model: models.Model, variables: Variables) -> Any:
    """The same network in PyTorch, with the same weights. Its modules are named as the parameters here."""
    import torch

    net = torch_vit(model.config) if isinstance(model.config, models.vit.ViTConfig) else torch_resnet(model.config)
    theirs = dict(net.named_parameters())
    other = {"kernel": "weight", "scale": "weight", "bias": "bias"}
    with torch.no_grad():
        for path, leaf in trees.flatten(variables.params).items():
            module, _, leaf_name = path.replace("/", ".").rpartition(".")
            # PyTorch's attention has one layer for query, key and value.
            part = {"query": 0, "key": 1, "value": 2}.get(module.rpartition(".")[2])
            if part is not None:
                module = module.rpartition(".")[0] + ".qkv"
            target = theirs[f"{module}.{other.get(leaf_name, leaf_name)}" if module else leaf_name]
            if part is not None:
                target = target.chunk(3)[part]
            value = np.array(leaf)
            if leaf_name == "kernel":
                convolves = target.ndim == 4
                value = value.transpose(3, 2, 0, 1) if convolves else value.reshape(target.shape[::-1]).T
            target.copy_(torch.from_numpy(value.reshape(target.shape).copy()))
    ours = sum(p.size for p in jax.tree.leaves(variables.params))
    if ours != sum(p.numel() for p in theirs.values()):
        raise SystemExit(f"{ours} parameters here, {sum(p.numel() for p in theirs.values())} in PyTorch")
    return net


def torch_resnet(config: models.resnet.ResNetConfig) -> Any:
    """The CIFAR family with option A's shortcuts."""
    from torch import nn
    from torch.nn import functional as f

    class Block(nn.Module):
        def __init__(self, wide_in: int, wide: int, stride: int):
            super().__init__()
            self.conv1 = nn.Conv2d(wide_in, wide, 3, stride, 1, bias=False)
            self.norm1 = nn.BatchNorm2d(wide)
            self.conv2 = nn.Conv2d(wide, wide, 3, 1, 1, bias=False)
            self.norm2 = nn.BatchNorm2d(wide)
            self.stride, self.more = stride, wide - wide_in

        def forward(self, x: Any) -> Any:
            y = self.norm2(self.conv2(f.relu(self.norm1(self.conv1(x)))))
            if self.stride > 1 or self.more:
                low = self.more // 2
                x = f.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, low, self.more - low))
            return f.relu(x + y)

    class ResNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            width = config.stem_width
            conv = nn.Conv2d(config.channels, width, 3, 1, 1, bias=False)
            self.stem = nn.ModuleDict({"conv": conv, "norm": nn.BatchNorm2d(width)})
            stages = []
            for wide, inner, stride in zip(config.stage_widths, config.inner_widths, config.strides, strict=True):
                blocks = [Block(wide if b else width, wide, 1 if b else stride) for b in range(len(inner))]
                stages.append(nn.ModuleDict({"blocks": nn.ModuleList(blocks)}))
                width = wide
            self.stages = nn.ModuleList(stages)
            self.head = nn.Linear(width, config.classes)

        def forward(self, x: Any) -> Any:
            x = f.relu(self.stem["norm"](self.stem["conv"](x)))
            for stage in self.stages:
                for block in stage["blocks"]:
                    x = block(x)
            return self.head(x.mean((2, 3)))

    return ResNet()


def torch_vit(config: models.vit.ViTConfig) -> Any:
    """A pre-norm transformer as timm writes it: one layer for query, key and value, and PyTorch's fused attention."""
    import torch
    from torch import nn
    from torch.nn import functional as f

    dim, heads = config.dim, config.heads[0]

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

        def forward(self, x: Any) -> Any:
            n, t, _ = x.shape
            q, k, v = self.qkv(x).reshape(n, t, 3, heads, dim // heads).permute(2, 0, 3, 1, 4)
            return self.out(f.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, dim))

    class Layer(nn.Module):
        def __init__(self, mlp: int):
            super().__init__()
            self.norm1, self.attention = nn.LayerNorm(dim, 1e-6), Attention()
            self.norm2, self.fc1, self.fc2 = nn.LayerNorm(dim, 1e-6), nn.Linear(dim, mlp), nn.Linear(mlp, dim)

        def forward(self, x: Any) -> Any:
            x = x + self.attention(self.norm1(x))
            return x + self.fc2(f.gelu(self.fc1(self.norm2(x))))

    class ViT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch = nn.Conv2d(config.channels, dim, config.patch, config.patch)
            self.cls = nn.Parameter(torch.zeros(1, 1, dim))
            self.position = nn.Parameter(torch.zeros(1, config.tokens, dim))
            self.layers = nn.ModuleList([Layer(mlp) for mlp in config.mlp])
            self.norm, self.head = nn.LayerNorm(dim, 1e-6), nn.Linear(dim, config.classes)

        def forward(self, x: Any) -> Any:
            x = self.patch(x).flatten(2).transpose(1, 2)
            x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.position
            for layer in self.layers:
                x = layer(x)
            return self.head(self.norm(x)[:, 0])

    return ViT()


if __name__ == "__main__":
    main()
