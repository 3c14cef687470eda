"""Key tables that work both ways: names and layouts of arrays in other libraries' checkpoints, and ours.

A rule pairs a template of their names with templates of our paths. Their names follow from our model's paths, so that
what must be in a checkpoint is known before it is opened.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mvp_jax.core import trees
from mvp_jax.core.types import Variables


class Layout(NamedTuple):
    """How arrays are stored there and lie here; `back(forward(a, c), c)` is `a` for dense models.

    Attributes:
        forward: `(stored, config) -> array`, or a tuple of arrays where a rule has several paths.
        back: `(array or tuple, config) -> stored`.
    """

    forward: Callable[..., Any]
    back: Callable[..., Any]


def _qkv(a: np.ndarray, config: Any) -> tuple[np.ndarray, ...]:
    if a.shape[0] % 3:
        raise ValueError(f"{a.shape[0]} rows are not three equal parts")
    return tuple(HEADS.forward(part, config) for part in np.split(a, 3))


def _cells(a: np.ndarray, config: Any) -> np.ndarray:
    if config.pool == 1:
        return a.T
    return a.reshape(a.shape[0], -1, config.pool, config.pool).transpose(2, 3, 1, 0)


SAME = Layout(lambda a, c: a, lambda a, c: a)
"""As it is."""

LINEAR = Layout(lambda a, c: a.T, lambda a, c: a.T)
"""`[out, in]` to `[in, out]`."""

CONV = Layout(lambda a, c: a.transpose(2, 3, 1, 0), lambda a, c: a.transpose(3, 2, 0, 1))
"""OIHW to HWIO."""

HEADS = Layout(
    lambda a, c: a.T.reshape(*a.shape[1:], c.heads[0], -1),
    lambda a, c: a.reshape(*a.shape[:-2], -1).T,
)
"""`[H·d, D]` to `[D, H, d]`, and `[H·d]` to `[H, d]`; heads as in layer 0, dense layers are alike."""

OUT = Layout(lambda a, c: a.T.reshape(c.heads[0], -1, a.shape[0]), lambda a, c: a.reshape(-1, a.shape[-1]).T)
"""`[D, H·d]` to `[H, d, D]`."""

QKV = Layout(_qkv, lambda a, c: np.concatenate([HEADS.back(part, c) for part in a]))
"""Fused query, key and value, `[3·H·d, D]` or `[3·H·d]`, to three of `HEADS`."""

CELLS = Layout(_cells, lambda a, c: a.T if c.pool == 1 else a.transpose(3, 2, 0, 1).reshape(a.shape[-1], -1))
"""A head over channel-first cells, `[classes, C·p·p]`, to `[p, p, C, classes]`; over one cell to `[C, classes]`."""


@dataclasses.dataclass(frozen=True)
class KeyRule:
    """One kind of array there and here.

    Attributes:
        key: template of their names, `vit.encoder.layer.{i}.attention.output.dense.weight`. A placeholder stands for
            a number and has the same value in `key` and `path`; `{i+1}` counts from 1 where `{i}` counts from 0.
        path: template of our path, which starts with `params/` or `rest/`; several where they keep several of ours
            in one array, all with the same placeholders; `()`: read past, never written.
        layout: between them.
        tied: a second name of what another rule holds. It may be missing, stands in where the first name is missing,
            must be equal where both are there, and is never written.
    """

    key: str
    path: str | tuple[str, ...]
    layout: Layout = SAME
    tied: bool = False

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.path,) if isinstance(self.path, str) else self.path


class Format(NamedTuple):
    """The checkpoints of one library for one of our families.

    Attributes:
        name: `vit (Hugging Face)`.
        rules: for every array; the first that matches a name counts.
        config: their `config.json` to our frozen configuration; `ValueError` for what we do not have.
        describe: our configuration to their `config.json`, empty where they keep none; `ValueError` where their code
            has no such model.
    """

    name: str
    rules: tuple[KeyRule, ...]
    config: Callable[[Mapping[str, Any]], Any]
    describe: Callable[[Any], dict[str, Any]]


def affine(key: str, path: str, kernel: Layout = LINEAR, bias: Layout = SAME) -> tuple[KeyRule, ...]:
    """Rules for `weight` and `bias` under `key`, which are `kernel` and `bias` under `params/{path}`.

    >>> [(r.key, r.path) for r in affine("fc{j+1}", "fc{j}")]
    [('fc{j+1}.weight', 'params/fc{j}/kernel'), ('fc{j+1}.bias', 'params/fc{j}/bias')]
    """
    return KeyRule(f"{key}.weight", f"params/{path}/kernel", kernel), KeyRule(
        f"{key}.bias", f"params/{path}/bias", bias
    )


def norm(key: str, path: str) -> tuple[KeyRule, ...]:
    """Rules for `weight` and `bias` under `key`, which are `scale` and `bias` under `params/{path}`."""
    return KeyRule(f"{key}.weight", f"params/{path}/scale"), KeyRule(f"{key}.bias", f"params/{path}/bias")


def batch_norm(key: str, path: str) -> tuple[KeyRule, ...]:
    """`norm`, and running statistics, which are `mean` and `var` under `rest/{path}`."""
    return (
        *norm(key, path),
        KeyRule(f"{key}.running_mean", f"rest/{path}/mean"),
        KeyRule(f"{key}.running_var", f"rest/{path}/var"),
        KeyRule(f"{key}.num_batches_tracked", ()),
    )


def also(rules: Iterable[KeyRule], old: str, new: str) -> tuple[KeyRule, ...]:
    """The rules, and those whose key starts with `old` once more, as second names that start with `new`.

    >>> [(r.key, r.tied) for r in also(norm("vit.layernorm", "norm"), "vit.", "")][::2]
    [('vit.layernorm.weight', False), ('layernorm.weight', True)]
    """
    rules = tuple(rules)
    second = [dataclasses.replace(r, key=new + r.key[len(old) :], tied=True) for r in rules if r.key.startswith(old)]
    return (*rules, *second)


_PLACE = re.compile(r"\{(\w+)(\+1)?\}")


@functools.cache
def _pattern(template: str) -> tuple[re.Pattern[str], tuple[tuple[str, int], ...]]:
    """A regular expression for a template, and what each of its groups is called and counts from."""
    parts = _PLACE.split(template)  # text, name, "+1" or None, text, ...
    text = r"(0|[1-9]\d*)".join(re.escape(part) for part in parts[::3])
    return re.compile(text), tuple((n, 1 if one else 0) for n, one in zip(parts[1::3], parts[2::3], strict=True))


def _fields(template: str, name: str) -> dict[str, int] | None:
    """The values of the placeholders with which a template gives a name; `None` if none do."""
    pattern, places = _pattern(template)
    found = pattern.fullmatch(name)
    if found is None:
        return None
    values = {place: int(text) - start for (place, start), text in zip(places, found.groups(), strict=True)}
    return None if any(v < 0 for v in values.values()) else values


def _fill(template: str, values: Mapping[str, int]) -> str:
    return _PLACE.sub(lambda m: str(values[m[1]] + (1 if m[2] else 0)), template)


def match(form: Format, name: str) -> tuple[KeyRule, tuple[str, ...]] | None:
    """The rule for one of their names, and our paths for what it holds; `None` if there is no such rule.

    >>> form = Format("example", batch_norm("layer{i+1}.bn", "layers/{i}/norm"), dict, dict)
    >>> match(form, "layer3.bn.running_var")[1]
    ('rest/layers/2/norm/var',)
    """
    for rule in form.rules:
        values = _fields(rule.key, name)
        if values is not None:
            return rule, tuple(_fill(path, values) for path in rule.paths)
    return None


def keys(form: Format, config: Any, paths: Iterable[str]) -> dict[str, tuple[KeyRule, tuple[str, ...]]]:
    """All names there of what a model has, first and second names alike.

    Args:
        form: the format.
        config: our configuration; not looked at by the rules themselves.
        paths: of our model's variables, as `trees.flatten` gives them.

    Returns:
        `{their name: (rule, our paths)}`, in the order of the rules. Rules that read past are not in it.
    """
    del config
    ours = tuple(paths)
    have = set(ours)
    found: dict[str, tuple[KeyRule, tuple[str, ...]]] = {}
    for rule in form.rules:
        for path in ours if rule.paths else ():
            values = _fields(rule.paths[0], path)
            if values is not None:
                held = tuple(_fill(p, values) for p in rule.paths)
                if have.issuperset(held):
                    found.setdefault(_fill(rule.key, values), (rule, held))
    return found


def to_ours(form: Format, name: str, stored: np.ndarray, config: Any) -> dict[str, np.ndarray]:
    """One of their arrays as ours.

    Args:
        form: the format.
        name: theirs.
        stored: the array as it is stored.
        config: our configuration.

    Returns:
        `{our path: array}`, views where the layout allows; nothing for what is read past.

    Raises:
        ValueError: if there is no rule for the name, or the shape cannot be brought into our layout.

    >>> form = Format("example", affine("fc", "head"), dict, dict)
    >>> to_ours(form, "fc.weight", np.zeros((10, 3)), None)["params/head/kernel"].shape
    (3, 10)
    """
    found = match(form, name)
    if found is None:
        raise ValueError(f"{name}: not in the key table of {form.name}")
    rule, paths = found
    if not paths:
        return {}
    try:
        arrays = rule.layout.forward(stored, config)
    except (ValueError, IndexError) as error:  # numpy's own, of transpose and reshape
        raise ValueError(f"{name}: shape {stored.shape} does not fit {form.name} ({error})") from error
    return dict(zip(paths, (arrays,) if isinstance(rule.path, str) else arrays, strict=True))


def from_ours(rule: KeyRule, arrays: Sequence[np.ndarray], config: Any) -> np.ndarray:
    """Arrays at a rule's paths, in their order, as the one array that is stored."""
    stored = rule.layout.back(arrays[0] if isinstance(rule.path, str) else tuple(arrays), config)
    return np.ascontiguousarray(stored)


def stored_shape(rule: KeyRule, shapes: Sequence[tuple[int, ...]], config: Any) -> tuple[int, ...]:
    """The shape of the one array that is stored for arrays of these shapes at a rule's paths.

    >>> stored_shape(affine("fc", "head")[0], [(3, 10)], None)
    (10, 3)
    """
    arrays = [np.broadcast_to(np.float32(0), shape) for shape in shapes]  # without memory
    return tuple(rule.layout.back(arrays[0] if isinstance(rule.path, str) else tuple(arrays), config).shape)


def stored(form: Format, variables: Variables, config: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Our variables under their names and in their layouts, one after another.

    Args:
        form: the format.
        variables: of a dense model.
        config: its configuration.

    Yields:
        `(their name, array)` for every rule that is not a second name.

    Raises:
        ValueError: before the first, if the format has no place for some variable.
    """
    leaves = trees.flatten(Variables(*variables))
    first = {name: held for name, held in keys(form, config, leaves).items() if not held[0].tied}
    homeless = sorted(set(leaves) - {path for _, paths in first.values() for path in paths})
    if homeless:
        raise ValueError(f"{form.name} has no name for {homeless[:5]} ({len(homeless)} in all); choose another format")
    for name, (rule, paths) in first.items():
        yield name, from_ours(rule, [np.asarray(leaves[path]) for path in paths], config)


_KINDS: dict[type, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list"}


def field(described: Mapping[str, Any], name: str, default: Any) -> Any:
    """A field of a `config.json`, of the type of its default.

    >>> field({"hidden_size": 64}, "hidden_size", 768), field({}, "hidden_size", 768)
    (64, 768)
    """
    value = described.get(name, default)
    kind = type(default)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise ValueError(f"{name} in config.json is {value!r:.80}; it must be {_KINDS.get(kind, kind.__name__)}")
    return value


def only(described: Mapping[str, Any], **allowed: Any) -> None:
    """Raises `ValueError` for fields of a `config.json` with another value than the one that our models have.

    >>> only({"hidden_act": "mish"}, hidden_act="gelu")
    Traceback (most recent call last):
    ...
    ValueError: config.json has hidden_act='mish'; the models here have 'gelu' alone
    """
    for name, value in allowed.items():
        if described.get(name, value) != value:
            raise ValueError(f"config.json has {name}={described[name]!r:.80}; the models here have {value!r} alone")


def classes(described: Mapping[str, Any]) -> int:
    """The number of classes in a Hugging Face `config.json`: of its labels, 2 if it names none."""
    labels = described.get("id2label")
    if isinstance(labels, dict) and labels:
        return len(labels)
    return int(field(described, "num_labels", 2))


def labels(n: int) -> dict[str, Any]:
    """The fields of a Hugging Face `config.json` that say the number of classes.

    >>> classes(labels(3))
    3
    """
    return {
        "id2label": {str(i): f"LABEL_{i}" for i in range(n)},
        "label2id": {f"LABEL_{i}": i for i in range(n)},
    }
