"""Key tables that work both ways: names and layouts of arrays in other libraries' checkpoints, and ours.

"Their" names and arrays are those of the other library, "our" paths and arrays those of this package's models. A rule
pairs a template of their names with templates of our paths. Their names follow from our model's paths, so that what
must be in a checkpoint is known before it is opened.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mvp_jax.core import trees
from mvp_jax.core.types import Variables


class Layout(NamedTuple):
    """How arrays are laid out in a checkpoint and in our models; `back(forward(a, c), c)` is `a` for dense models.

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
"""The same layout in both."""

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
    """The name, path and layouts of one kind of array, in a checkpoint and in our models.

    Attributes:
        key: template of its name in the checkpoint, `vit.encoder.layer.{i}.attention.output.dense.weight`. A
            placeholder stands for a number and has the same value in `key` and `path`; `{i+1}` counts from 1 where
            `{i}` counts from 0.
        path: template of its path in our models, which starts with `params/` or `rest/`. Several paths where the
            checkpoint keeps several of our arrays in one, all with the same placeholders; `()`: the array is ignored
            when it is read, and never written.
        layout: how to get from one layout to the other.
        tied: whether this is a second name of an array that another rule holds. It may be missing; if the first name is
            missing, it is read instead; if both are there, they must be equal; it is never written.
    """

    key: str
    path: str | tuple[str, ...]
    layout: Layout = SAME
    tied: bool = False

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.path,) if isinstance(self.path, str) else self.path


class Format(NamedTuple):
    """The checkpoints of one library for one of our families of models.

    Attributes:
        name: family and library, such as `vit (Hugging Face)`.
        rules: rules for every array; the first whose template matches a name counts.
        config: makes our frozen configuration of the content of their `config.json`; raises `ValueError` for models
            that we do not have.
        describe: makes the content of their `config.json` of our configuration, empty where they keep no such file;
            raises `ValueError` for models that their code does not have.
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
    """Rules for a batch norm: those of `norm`, and running statistics, here `mean` and `var` under `rest/{path}`."""
    return (
        *norm(key, path),
        KeyRule(f"{key}.running_mean", f"rest/{path}/mean"),
        KeyRule(f"{key}.running_var", f"rest/{path}/var"),
        KeyRule(f"{key}.num_batches_tracked", ()),
    )


def with_aliases(rules: Iterable[KeyRule], old: str, new: str) -> tuple[KeyRule, ...]:
    """The rules, and for those whose key starts with `old` also a second name, which starts with `new` instead.

    Args:
        rules: any rules.
        old: the beginning of keys that have a second name.
        new: the beginning of the second names.

    Returns:
        The given rules, then those of the second names, which are `tied`.

    >>> [(r.key, r.tied) for r in with_aliases(norm("vit.layernorm", "norm"), "vit.", "")][::2]
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
    """The rule of a format for a name in a checkpoint, and the paths in our models of what the array holds.

    Returns:
        `(rule, paths)`; `None` if the format has no rule for the name.

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
    """All names that a checkpoint of a model may have, second names included.

    Args:
        form: the format.
        config: our configuration of the model; no rule depends on it yet.
        paths: the paths of our model's variables, as `trees.flatten` gives them.

    Returns:
        `{their name: (rule, our paths)}`, in the order of the rules. Rules for ignored arrays are not in it.
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
    """An array of a checkpoint as the arrays of our model that it holds.

    Args:
        form: the checkpoint's format.
        name: the array's name in the checkpoint.
        stored: the array in the checkpoint's layout.
        config: our configuration of the model.

    Returns:
        `{our path: array}` in our layout, as views where possible; empty for arrays that are ignored.

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
    """The one array that a checkpoint stores for our arrays at a rule's paths, given in the order of the paths."""
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
    """Our variables under a checkpoint's names and in its layouts, one after another.

    Args:
        form: the checkpoint's format.
        variables: the variables of a dense model.
        config: the model's configuration.

    Yields:
        `(their name, array)` for every array that the format stores; second names are left out.

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
    """A field of a `config.json`, or its default if it is missing.

    Raises:
        ValueError: if its type is not that of the default; whole numbers are taken for floats.

    >>> field({"hidden_size": 64}, "hidden_size", 768), field({}, "hidden_size", 768)
    (64, 768)
    """
    value = described.get(name, default)
    kind = type(default)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise ValueError(f"{name} in config.json is {value!r:.80}; it must be {_KINDS.get(kind, kind.__name__)}")
    return value


def require(described: Mapping[str, Any], **allowed: Any) -> None:
    """Raises `ValueError` if a field of a `config.json` has another value than the only one that our models can have.

    >>> require({"hidden_act": "mish"}, hidden_act="gelu")
    Traceback (most recent call last):
    ...
    ValueError: config.json has hidden_act='mish'; the models here have 'gelu' alone
    """
    for name, value in allowed.items():
        if described.get(name, value) != value:
            raise ValueError(f"config.json has {name}={described[name]!r:.80}; the models here have {value!r} alone")


def classes(described: Mapping[str, Any]) -> int:
    """The number of classes in a Hugging Face `config.json`: how many labels it names, or 2 if it names none."""
    labels = described.get("id2label")
    if isinstance(labels, dict) and labels:
        return len(labels)
    return int(field(described, "num_labels", 2))


def labels(n: int, names: Sequence[str] | None = None) -> dict[str, Any]:
    """The fields of a Hugging Face `config.json` that say the number of classes and their names.

    Args:
        n: the number of classes.
        names: the name of each class; `None`: `LABEL_0`, `LABEL_1`, ..., as `transformers` calls them.

    >>> classes(labels(3)), labels(2, ["no", "yes"])["label2id"]
    (3, {'no': 0, 'yes': 1})
    """
    named = [f"LABEL_{i}" for i in range(n)] if names is None else list(names)
    return {
        "id2label": {str(i): name for i, name in enumerate(named)},
        "label2id": {name: i for i, name in enumerate(named)},
    }
