"""How long does a round of Instant Soup Pruning take, beside the same round with clones one after the other?

    pip install torch==2.13.0
    python benchmarks/isp_round.py [--layers 12] [--steps 10] [--mapping auto] [--rounds 3] [--quick]

A round: the weights of a ViT-tiny are given (32 pixels, patches of 4), five members are forked from them, each takes
some steps of AdamW at a rate and on examples of its own, each drops a tenth of the entries of its layers' kernels
(global magnitude), and the union of the five masks is put on the given weights. Here the members are one population,
by the moves that `methods.isp` is made of; PyTorch, eager, does it as the published code does: `copy.deepcopy`, a fresh
AdamW, training and `prune.global_unstructured` for one member after the other, then `or` and
`prune.custom_from_mask`. Its attention is the fused one, with one layer for query, key and value. PyTorch's weights
are bare, as in the first round of a run, whereas here a mask (of ones) is applied in every step in any case.

The parts are copying (members and empty moments; PyTorch's come into being in the first step), training, selection
(scores and the members' masks) and the vote (the union, its floor, the masked weights); one ends before the next
begins. All is float32, from the same weights and batches. Before anything counts, a round of each shows that losses,
weak masks and elected masks agree, and (unless `--quick`) that `isp.superpose` elects what the parts do; compiling is
timed by a first round without steps. The two take turns, every other time backwards; a ratio comes from two times of
one turn, and the median is given (least to most). The machine must be idle, or `OMP_WAIT_POLICY=PASSIVE` be set, see
`any_model.py`. One line of JSON follows the table.
"""

import argparse
import copy
import functools
import gc
import json
import logging
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import prune as torch_prune

from mvp_jax import models, train
from mvp_jax.core import prune, trees, vote
from mvp_jax.core.patterns import Pattern
from mvp_jax.core.types import Array, Masks, Params, Scores
from mvp_jax.methods import sparse, weak_members
from mvp_jax.methods.sparse import isp
from mvp_jax.parallel import mapping
from mvp_jax.train import population

EXAMPLES, SHARE, TARGET = 1024, 0.1, 0.9
PARTS = ("copying", "training", "selection", "vote")
PRUNED = ("qkv", "out", "fc1", "fc2")


class Round(NamedTuple):
    """What a round gave.

    Attributes:
        seconds: of each part.
        losses: of each member, the mean over its steps.
        ballots: the weak masks by path, `[K, ...]`, of the prunable kernels in this library's shapes.
        elected: the mask of the given weights likewise.
    """

    seconds: dict[str, float]
    losses: np.ndarray
    ballots: dict[str, np.ndarray]
    elected: dict[str, np.ndarray]


class Clock:
    """Adds what has passed since it was last asked to a part."""

    def __init__(self) -> None:
        self.seconds, self.last = dict.fromkeys(PARTS, 0.0), time.perf_counter()

    def end(self, part: str) -> None:
        now = time.perf_counter()
        self.seconds[part] += now - self.last
        self.last = now


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=5)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--dim", type=int, default=192)
    parser.add_argument("--steps", type=int, default=10, help="of each member")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--mapping", default="auto", choices=mapping.MAPPINGS)
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch; XLA takes all cores that it may use")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="only show that it runs")
    args = parser.parse_args()
    if args.quick:
        args.dim, args.layers, args.steps, args.rounds = 48, 2, 2, 2
    torch.set_num_threads(args.threads)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    versions = {"jax": jax.__version__, "torch": torch.__version__, "device": jax.devices()[0].device_kind}
    here = versions | {"cores": cores, "threads of PyTorch": torch.get_num_threads()}
    print(f"{here}, load average before {os.getloadavg()[0]:.1f}", flush=True)
    if cores != torch.get_num_threads():
        print(f"Not the same number of threads: take --threads {cores}, or fewer cores (taskset)")
    logging.basicConfig(stream=sys.stdout, format="auto: %(message)s")
    logging.getLogger("mvp_jax.parallel.auto").setLevel(logging.INFO)

    problem = subject(args)
    ours = with_jax(problem, args)
    start = time.perf_counter()
    ours(0)
    compiling = time.perf_counter() - start
    theirs = with_torch(problem, args)
    # Quickly means without compiling the vote a second time.
    check(ours(args.steps, verify=not args.quick), theirs(args.steps))
    rounds: list[tuple[dict[str, float], dict[str, float]]] = []
    for i in range(args.rounds):
        taken = {}
        for call in (ours, theirs) if i % 2 == 0 else (theirs, ours):
            gc.collect()
            taken[call] = whole(call(args.steps).seconds)
        rounds.append((taken[ours], taken[theirs]))
        print(f"  turn {i + 1}, load {os.getloadavg()[0]:.1f}: {rounds[-1][0]['round']:.2f} s here, "
              f"{rounds[-1][1]['round']:.2f} s in PyTorch", flush=True)  # fmt: skip
    size = sum(p.size for p in jax.tree.leaves(problem.variables.params))
    print(f"\n{size:,} parameters, {args.members} members, {args.steps} steps of {args.batch}; compiled in "
          f"{compiling:.0f} s; {table(rounds)}")  # fmt: skip
    print(json.dumps(here | vars(args) | {"compiling": compiling, "seconds": rounds}))


def subject(args: argparse.Namespace) -> sparse.SparsityProblem:
    model = models.create(
        "vit_micro", image_size=32, patch=4, channels=3, classes=10, heads=3, dim=args.dim, mlp=4 * args.dim,
        layers=args.layers,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    data = {
        "x": jnp.asarray(rng.normal(size=(EXAMPLES, 32, 32, 3)), jnp.float32),
        "y": jnp.asarray(rng.integers(0, 10, EXAMPLES), jnp.int32),
    }
    return sparse.SparsityProblem(model=model, variables=model.init(jax.random.key(0)), train=data, sparsity=TARGET)


def training(args: argparse.Namespace) -> sparse.SparsityTraining:
    return sparse.SparsityTraining(optimizer="adamw", learning_rate=1e-4, weight_decay=0.1, batch=args.batch)


def drawn(args: argparse.Namespace) -> tuple[train.RunSettings, Array, Array]:
    """Settings, examples and keys of the members."""
    key_draw, key_members = jax.random.split(jax.random.key(1))
    rate = jnp.float32(training(args).learning_rate)
    chosen = weak_members.draw(
        key_draw, rate, diversity=weak_members.Diversity(), count=args.members, examples=EXAMPLES
    )
    return *chosen, jax.random.split(key_members, args.members)


@functools.partial(jax.jit, static_argnames="pattern")
def selected(params: Params, kept: Masks, keep: Array, *, pattern: Pattern) -> tuple[Scores, Masks]:
    scores = jax.vmap(lambda p: pattern.entries(p, kept, "l2"))(params)
    return scores, weak_members.ballots(scores, kept, keep, pattern=pattern)


@functools.partial(jax.jit, static_argnames="pattern")
def elected(
    run: sparse.Run, scores: Scores, cast: Masks, floor: Array, weights: Array, *, pattern: Pattern
) -> sparse.Run:
    """The run under the union of the masks, as `isp.superpose` elects it."""
    chosen = vote.elect(
        cast, floor, scope=pattern.scope, rule="union", weights=weights, within=run.kept,
        tie_break=vote.soup(scores, weights=weights),
    )  # fmt: skip
    return sparse.with_masks(run, chosen, pattern.masks(chosen, run.state.variables.params, run.kept))


def with_jax(problem: sparse.SparsityProblem, args: argparse.Namespace) -> Callable[..., Round]:
    tx, pattern = training(args).tx, problem.pattern
    run = sparse.begin(problem, training(args), jax.random.key(0))
    own, index, keys = drawn(args)
    recipe = train.Recipe(model=problem.model, tx=tx, batch=args.batch)
    keep, floor = np.int32(prune.keep_count(problem.keep(0.0), SHARE)), np.int32(problem.keep())
    jax.block_until_ready((run, own, index, problem.train))

    def call(steps: int, verify: bool = False) -> Round:
        clock = Clock()
        one = run.state._replace(opt_state=tx.init(run.state.variables.params))
        states = jax.block_until_ready(population.create(one, keys, own))
        clock.end("copying")
        states, means = jax.block_until_ready(
            population.fit(recipe, states, problem.train, steps, index=index, mapping=args.mapping)
        )
        clock.end("training")
        who = weak_members.weights(states)
        params = states.variables.params
        scores, cast = jax.block_until_ready(selected(params, run.kept, keep, pattern=pattern))
        clock.end("selection")
        after = jax.block_until_ready(elected(run, scores, cast, floor, who, pattern=pattern))
        clock.end("vote")
        if verify:
            chosen, _ = isp.superpose(scores, run.kept, keep, floor, who, pattern=pattern, rule="union")
            if not jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), chosen, after.kept)):
                raise SystemExit("isp.superpose elects another mask than its parts")
        losses = np.asarray(means["loss"])
        return Round(clock.seconds, losses, kernels(cast, problem), kernels(after.kept, problem))

    return call


def kernels(tree: Any, problem: sparse.SparsityProblem) -> dict[str, np.ndarray]:
    """The leaves that are pruned, by path."""
    flags = trees.flatten(problem.prunable)
    return {path: np.asarray(leaf) for path, leaf in trees.flatten(tree).items() if flags[path]}


def with_torch(problem: sparse.SparsityProblem, args: argparse.Namespace) -> Callable[..., Round]:
    config = problem.model.config
    given = ViT(config.dim, len(config.mlp), config.heads[0], config.mlp[0], config.tokens, config.classes)
    load(given, problem.variables.params)
    x = torch.from_numpy(np.array(problem.train["x"]).transpose(0, 3, 1, 2).copy())
    y = torch.from_numpy(np.array(problem.train["y"], np.int64))
    own, index, keys = drawn(args)
    state = sparse.begin(problem, training(args), jax.random.key(0)).state
    batches = torch.from_numpy(batches_of(state, index, keys, args).astype(np.int64))
    rates = np.asarray(own.learning_rate).tolist()
    paths = [path for path, flag in trees.flatten(problem.prunable).items() if flag]
    shapes = {path: leaf.shape for path, leaf in trees.flatten(problem.variables.params).items()}

    def call(steps: int) -> Round:
        main = copy.deepcopy(given)  # Whose weights the vote masks: a run has them anyway.
        clock = Clock()
        ballots, losses = [], []
        for rate, mine in zip(rates, batches, strict=True):
            member = copy.deepcopy(main)
            optimizer = torch.optim.AdamW(member.parameters(), lr=rate, weight_decay=training(args).weight_decay)
            clock.end("copying")
            own = []
            for chosen in mine[:steps]:
                optimizer.zero_grad()
                loss = functional.cross_entropy(member(x[chosen]), y[chosen])
                loss.backward()
                optimizer.step()
                own.append(loss.item())
            clock.end("training")
            linear = pruned(member)
            torch_prune.global_unstructured(
                [(module, "weight") for module in linear.values()], torch_prune.L1Unstructured, amount=SHARE
            )
            ballots.append({name: module.weight_mask for name, module in linear.items()})
            clock.end("selection")
            losses.append(statistics.mean(own))
        union = {}
        for name, module in pruned(main).items():
            union[name] = functools.reduce(torch.logical_or, [masks[name] for masks in ballots])
            torch_prune.custom_from_mask(module, "weight", union[name])
        clock.end("vote")

        def ours(masks: dict[str, torch.Tensor], path: str) -> np.ndarray:
            found = view({f"{name}.weight": mask for name, mask in masks.items()}, path)
            return found.numpy().T.reshape(shapes[path]) > 0

        cast = {path: np.stack([ours(masks, path) for masks in ballots]) for path in paths}
        return Round(clock.seconds, np.array(losses), cast, {path: ours(union, path) for path in paths})

    return call


def batches_of(state: train.TrainState, index: Array, keys: Array, args: argparse.Namespace) -> np.ndarray:
    """The examples that `population.fit` shows each member, `int32[K, steps, B]`."""

    def one(key: Array, own: Array, step: Array) -> Array:
        return own[train.next_batch(state._replace(step=step, key=key), own.shape[0], args.batch)]

    over_steps = jax.vmap(one, (None, None, 0))
    return np.asarray(jax.vmap(over_steps, (0, 0, None))(keys, index, jnp.arange(args.steps)))


class Attention(nn.Module):
    """Self-attention with one layer for query, key and value."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, tokens, dim = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(n, tokens, dim))


class Layer(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, dim: int, heads: int, mlp: int):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(dim, 1e-6), Attention(dim, heads)
        self.norm2, self.fc1, self.fc2 = nn.LayerNorm(dim, 1e-6), nn.Linear(dim, mlp), nn.Linear(mlp, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    """The same network; its modules are named as the parameters of `models.vit`."""

    def __init__(self, dim: int, layers: int, heads: int, mlp: int, tokens: int, classes: int):
        super().__init__()
        self.patch = nn.Conv2d(3, dim, 4, 4)
        self.cls, self.position = nn.Parameter(torch.zeros(1, 1, dim)), nn.Parameter(torch.zeros(1, tokens, dim))
        self.layers = nn.Sequential(*(Layer(dim, heads, mlp) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(dim, 1e-6), nn.Linear(dim, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.position
        return self.head(self.norm(self.layers(x))[:, 0])


def pruned(net: nn.Module) -> dict[str, nn.Module]:
    """The linear layers that lose weights, by name."""
    return {name: module for name, module in net.named_modules() if name.rpartition(".")[2] in PRUNED}


def view(tensors: dict[str, torch.Tensor], path: str) -> torch.Tensor:
    """Where a parameter of `models.vit` lies in PyTorch's."""
    module, _, leaf = path.replace("/", ".").rpartition(".")
    leaf = {"kernel": "weight", "scale": "weight"}.get(leaf, leaf)
    around, _, last = module.rpartition(".")
    if last in ("query", "key", "value"):
        return tensors[f"{around}.qkv.{leaf}"].chunk(3)[("query", "key", "value").index(last)]
    return tensors[f"{module}.{leaf}" if module else leaf]


def load(net: nn.Module, params: Params) -> None:
    """The parameters of `models.vit` into the same network here; both have to be complete."""
    tensors = dict(net.named_parameters())
    sizes = [sum(p.size for p in jax.tree.leaves(params)), sum(p.numel() for p in tensors.values())]
    if sizes[0] != sizes[1]:
        raise SystemExit(f"{sizes[0]} parameters here, {sizes[1]} in PyTorch")
    with torch.no_grad():
        for path, leaf in trees.flatten(params).items():
            target, value = view(tensors, path), np.array(leaf)
            if path.endswith("kernel"):
                convolves = target.ndim == 4
                value = value.transpose(3, 2, 0, 1) if convolves else value.reshape(target.shape[::-1]).T
            target.copy_(torch.from_numpy(value.reshape(target.shape).copy()))


def check(ours: Round, theirs: Round) -> None:
    """The two have to be the same round; rounding may move a few entries across a threshold."""
    apart = float(np.max(np.abs(ours.losses / theirs.losses - 1)))
    total = sum(m.size for m in ours.elected.values())
    kept = [[sum(int(m[k].sum()) for m in r.ballots.values()) for k in range(len(r.losses))] for r in (ours, theirs)]
    differ = sum(int((m != theirs.ballots[path]).sum()) for path, m in ours.ballots.items()) / (total * len(kept[0]))
    union = [sum(int(m.sum()) for m in r.elected.values()) for r in (ours, theirs)]
    differ_elected = sum(int((m != theirs.elected[path]).sum()) for path, m in ours.elected.items()) / total
    print(
        f"losses {apart:.0e} apart; each weak mask keeps {kept[0][0]:,} of {total:,}, {differ:.1e} of the entries "
        f"differ; the union keeps {union[0]:,} and {union[1]:,}, {differ_elected:.1e} differ",
        flush=True,
    )
    if kept[0] != kept[1] or kept[0][0] != prune.keep_count(total, SHARE):
        raise SystemExit(f"the weak masks keep {kept[0]} here, {kept[1]} in PyTorch")
    # Members have to disagree, or the vote is of no consequence.
    if not (apart < 2e-3 and differ < 5e-3 and differ_elected < 5e-3 and kept[0][0] < union[0] < total):
        raise SystemExit("the two rounds are not the same")


def whole(seconds: dict[str, float]) -> dict[str, float]:
    return {"round": sum(seconds.values())} | seconds


def table(rounds: list[tuple[dict[str, float], dict[str, float]]]) -> str:
    lines = [f"medians of {len(rounds)}", "", "| part | mvp_jax, s | PyTorch, s | ratio |", "|---|--:|--:|--:|"]
    for part in ("round", *PARTS):
        ours, theirs = ([pair[i][part] for pair in rounds] for i in (0, 1))
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        lines.append(
            f"| {part} | {statistics.median(ours):.3f} | {statistics.median(theirs):.3f} | "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
