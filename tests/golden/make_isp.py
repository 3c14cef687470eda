"""Writes the golden masks of Instant Soup Pruning's published loop, as `torch.nn.utils.prune` computes them.

The weights are given (integers from NumPy's frozen generator), so that a file holds nothing but masks. Run from the
project's root in an environment with torch: `python -m tests.golden.make_isp`.
"""

import pathlib
import zlib

import numpy as np

PATH = pathlib.Path(__file__).with_name("isp.npz")
SHAPES = {"a": (10, 20), "b": (20, 16), "c": (16, 5)}
SIZE = sum(int(np.prod(s)) for s in SHAPES.values())
MEMBERS, SHARE, LANDING = 5, 0.1, 0.05
CASES = {"mild": (0, 40, 0.6), "wild": (1, 100, 0.6)}
"""By name: seed, how far members stray from the main weights (of 2048), target sparsity."""


def split(flat):
    """Numbers `[..., SIZE]` as `{leaf: [..., *shape]}`."""
    ends = np.cumsum([int(np.prod(s)) for s in SHAPES.values()])[:-1]
    parts = np.split(flat, ends, axis=-1)
    return {n: p.reshape(*p.shape[:-1], *s) for (n, s), p in zip(SHAPES.items(), parts, strict=True)}


def draw(seed, spread, rounds):
    """Main weights `[SIZE]`, and those of all members in every round, `[rounds, K, SIZE]`.

    The low bits of a magnitude are the entry's number: neither magnitudes nor their sums over members ever tie, and
    float32 holds both exactly.
    """
    rng = np.random.RandomState(seed)
    sign, size = rng.choice([-1, 1], SIZE), rng.randint(1, 2048, SIZE)
    strayed = size + rng.randint(-spread, spread + 1, (rounds, MEMBERS, SIZE))

    def weights(high):
        return (sign * (np.clip(high, 1, 2047) * 1024 + np.arange(SIZE)) / 2**21).astype(np.float32)

    return weights(size), weights(strayed)


def checksum(main, members):
    return zlib.crc32(main.tobytes() + members.tobytes())


def published(main, members, sparsity):
    """The published loop, given every round's members: the masks `bool[rounds, SIZE]`, the last after the landing.

    Each member drops a tenth of what is left by global magnitude, a weight goes if all drop it, and from 5 points away
    one magnitude step on the main weights lands on the target.
    """
    import torch
    from torch.nn.utils import prune

    def module(flat):
        layers = []
        for w in split(flat).values():
            layers.append(torch.nn.Module())
            layers[-1].weight = torch.nn.Parameter(torch.from_numpy(w.copy()))
        return layers

    def mask_of(layers):
        return [layer.weight_mask.clone() for layer in layers]

    def impose(layers, masks):
        for layer, m in zip(layers, masks, strict=True):
            prune.CustomFromMask.apply(layer, "weight", m)

    def by_magnitude(layers, amount):
        named = [(layer, "weight") for layer in layers]
        prune.global_unstructured(named, pruning_method=prune.L1Unstructured, amount=amount)

    layers, history = module(main), []
    impose(layers, [torch.ones_like(layer.weight) for layer in layers])
    for given in members:
        missing = round(sparsity * SIZE) - sum(int((m == 0).sum()) for m in mask_of(layers))
        landing = missing <= LANDING * SIZE
        if landing:
            # What is gone is zero, and so among the smallest: the amount is of all weights.
            for layer in layers:
                prune.remove(layer, "weight")
            by_magnitude(layers, sparsity)
        else:
            votes = []
            for flat in given:
                member = module(flat)
                impose(member, mask_of(layers))
                by_magnitude(member, SHARE)
                votes.append(mask_of(member))
            impose(layers, [torch.stack(v).amax(0) for v in zip(*votes, strict=True)])
        history.append(np.concatenate([m.numpy().ravel() > 0 for m in mask_of(layers)]))
        if landing:
            return np.stack(history)
    raise ValueError(f"{len(members)} rounds did not reach {sparsity}")


def main():
    arrays = {}
    for name, (seed, spread, sparsity) in CASES.items():
        given = draw(seed, spread, 40)
        masks = published(*given, sparsity)
        arrays[name] = np.packbits(masks, axis=1)
        arrays[f"{name}_drawn"] = np.uint32(checksum(*given))
        print(name, masks.sum(1).tolist())
    np.savez_compressed(PATH, **arrays)


if __name__ == "__main__":
    main()
