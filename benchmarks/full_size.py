"""How long does it take to load published sizes of models, in how much memory, and does a round of pruning run on them?

    python benchmarks/full_size.py [--models bert_base,vit_base] [--quick]

For each model a checkpoint of random weights is written as `transformers` keeps it. A fresh process then loads it
(`pretrained.load`): seconds, and the rise of the resident memory at its highest over what it was once JAX had started,
as a multiple of the size of the file. Another takes Instant Soup Pruning through one round: two members, two steps each
of batches of two, the vote, the landing and two steps of fine-tuning; compilation included. One line of JSON follows
the table.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from mvp_jax import models, pretrained
from mvp_jax.methods import sparse, weak_members
from mvp_jax.methods.sparse import isp
from mvp_jax.pretrained import formats, key_table

MODELS = {"bert_base": {}, "clip_vision_b32": {}, "clip_text_b": {}, "vit_base": {}, "resnet50": {}}
QUICK = {"bert_micro": {}}


def resident(which: str) -> int:
    """`VmRSS` or `VmHWM` of this process in bytes, as the kernel counts them."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(which))


def write(name: str, options: dict[str, Any], folder: pathlib.Path) -> None:
    """A checkpoint of random weights."""
    model = models.create(name, **options)
    rng = np.random.default_rng(0)
    like = jax.eval_shape(model.init, jax.random.key(0))
    variables = jax.tree.map(lambda leaf: rng.normal(0, 0.02, leaf.shape).astype(np.float32), like)
    form = formats.for_config(model.config)
    tensors = dict(key_table.stored(form, variables, model.config))
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(form.describe(model.config)))


def load(name: str, options: dict[str, Any], folder: pathlib.Path) -> dict[str, float]:
    model = models.create(name, **options)
    jax.block_until_ready(jnp.ones(3) + 1)
    before, start = resident("VmRSS"), time.perf_counter()
    _, variables = pretrained.load(folder, model)
    jax.block_until_ready(variables)
    return {"seconds": time.perf_counter() - start, "rise": resident("VmHWM") - before}


def one_round(name: str, options: dict[str, Any], folder: pathlib.Path) -> dict[str, float]:
    model = models.create(name, **options)
    _, variables = pretrained.load(folder, model)
    shape = (4, *model.input_shape)
    if jnp.issubdtype(model.input_dtype, jnp.integer):
        x = jax.random.randint(jax.random.key(0), (4, min(32, shape[1])), 5, 100)
    else:
        x = jax.random.normal(jax.random.key(0), shape)
    problem = sparse.SparsityProblem(
        model=model, variables=variables, train={"x": x, "y": jnp.arange(4) % model.num_classes}, sparsity=0.1
    )
    training = sparse.SparsityTraining(steps=2, batch=2, learning_rate=1e-4, optimizer="adamw")
    settings = isp.Settings(
        members=2,
        round_sparsity=0.1,
        epochs=1.0,
        weak_epochs=1.0,
        training=training,
        mapping="loop",
        diversity=weak_members.Diversity(subset=1.0),
    )
    start = time.perf_counter()
    got = isp.isp(problem, settings, jax.random.key(1))
    jax.block_until_ready(got.variables)
    assert bool(got.alive)
    return {"seconds": time.perf_counter() - start, "peak": resident("VmHWM")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--quick", action="store_true", help="a tiny model, to see that it runs")
    parser.add_argument("--part", nargs=2, metavar=("PART", "FOLDER"), help="used by the processes that are started")
    args = parser.parse_args()
    chosen = QUICK if args.quick else {name: MODELS[name] for name in args.models.split(",")}
    if args.part:
        ((name, options), *_), folder = chosen.items(), pathlib.Path(args.part[1])
        print(json.dumps({"load": load, "round": one_round}[args.part[0]](name, options, folder)))
        return
    rows = []
    for name, options in chosen.items():
        with tempfile.TemporaryDirectory() as place:
            folder = pathlib.Path(place)
            write(name, options, folder)
            size = (folder / "model.safetensors").stat().st_size
            parts: dict[str, dict[str, float]] = {}
            for part in ("load", "round"):
                command = [sys.executable, __file__, "--part", part, place]
                command += ["--quick"] if args.quick else ["--models", name]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    sys.exit(done.stderr)
                parts[part] = json.loads(done.stdout.splitlines()[-1])
            rows.append(
                {
                    "model": name, "megabytes": size / 1e6, "load_seconds": parts["load"]["seconds"],
                    "rise": parts["load"]["rise"] / size, "round_seconds": parts["round"]["seconds"],
                    "round_peak_megabytes": parts["round"]["peak"] / 1e6,
                }
            )  # fmt: skip
            r = rows[-1]
            if len(rows) == 1:
                print("| model | file, MB | loaded in, s | memory rises by, × file | a round takes, s | at most, MB |")
                print("|:--|--:|--:|--:|--:|--:|")
            print(
                f"| {name} | {r['megabytes']:.0f} | {r['load_seconds']:.2f} | {r['rise']:.2f} | "
                f"{r['round_seconds']:.0f} | {r['round_peak_megabytes']:.0f} |",
                flush=True,
            )
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
