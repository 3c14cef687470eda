"""Paths into pytrees, rules over paths, and stacks of trees.

A path is the sequence of keys to a leaf joined by `/`, the same for plain dicts, `nnx.State`, Linen
`FrozenDict`s, tuples and dataclasses.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from mvp_jax.core import layouts
from mvp_jax.core.types import PyTree

PathRules: TypeAlias = Sequence[str | tuple[str, Any]]
"""Regular expressions over whole paths, each alone (meaning `True`) or paired with a value."""


def path_of(keys: Sequence[Any]) -> str:
    """The `/`-joined name of a key path as given by `jax.tree_util`.

    >>> [path_of(k) for k, _ in jax.tree_util.tree_leaves_with_path({"a": (1, {"b": 2})})]
    ['a/0', 'a/1/b']
    """
    keys = tuple(keys)
    # An nnx.State wraps every leaf in a Variable, whose content is its attribute `value`; a dict key of that name is
    # an ordinary one.
    if len(keys) > 1 and keys[-1] == jax.tree_util.GetAttrKey("value"):
        keys = keys[:-1]
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def flatten(tree: PyTree) -> dict[str, Any]:
    """All leaves by path, in the order of `jax.tree.leaves`.

    Args:
        tree: any pytree.

    Returns:
        `{path: leaf}`.

    Raises:
        ValueError: if two leaves have the same path (a dict with the keys `1` and `"1"`).

    >>> flatten({"conv": {"kernel": 1, "bias": 2}})
    {'conv/bias': 2, 'conv/kernel': 1}
    """
    pairs = [(path_of(k), v) for k, v in jax.tree_util.tree_leaves_with_path(tree)]
    leaves = dict(pairs)
    if len(leaves) != len(pairs):
        seen: set[str] = set()
        twice = sorted({p for p, _ in pairs if p in seen or seen.add(p)})  # type: ignore[func-returns-value]
        raise ValueError(f"two leaves share a path: {twice}; give the keys of each container distinct names")
    return leaves


def paths(tree: PyTree) -> PyTree:
    """The same tree with every leaf replaced by its path.

    >>> paths({"a": 1, "b": [2, 3]})
    {'a': 'a', 'b': ['b/0', 'b/1']}
    """
    return jax.tree_util.tree_map_with_path(lambda k, _: path_of(k), tree)


def match(tree: PyTree, rules: PathRules, default: Any = False) -> PyTree:
    """Gives every leaf the value of the first rule that matches its whole path.

    Args:
        tree: any pytree.
        rules: patterns for `re.fullmatch`, each alone (value `True`) or as `(pattern, value)`.
        default: the value where no rule matches.

    Returns:
        A tree of the same structure with the values as leaves.

    Raises:
        ValueError: if a rule matches no leaf at all, with the paths there are.

    >>> params = {"conv": {"kernel": 1, "bias": 2}, "head": {"kernel": 3}}
    >>> match(params, [("head/.*", "frozen"), (".*/kernel", "pruned")], default="dense")
    {'conv': {'bias': 'dense', 'kernel': 'pruned'}, 'head': {'kernel': 'frozen'}}
    """
    pairs = [(r, True) if isinstance(r, str) else (r[0], r[1]) for r in rules]
    names = list(flatten(tree))
    idle = [pattern for pattern, _ in pairs if not any(re.fullmatch(pattern, n) for n in names)]
    if idle:
        shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        raise ValueError(
            f"rules that match no leaf: {idle}; rules are regular expressions over whole paths, which are: {shown}"
        )

    def value(name: str) -> Any:
        return next((v for pattern, v in pairs if re.fullmatch(pattern, name)), default)

    return jax.tree.map(value, paths(tree))


def select(tree: PyTree, rules: PathRules) -> PyTree:
    """A tree of Python booleans: the value of the first rule that matches a leaf's path, `False` if none does.

    Args:
        tree: any pytree.
        rules: patterns for `re.fullmatch`, each alone (value `True`) or as `(pattern, value)`.

    Raises:
        ValueError: if a rule matches no leaf at all, with the paths there are.

    >>> select({"conv": {"kernel": 1, "bias": 2}}, [".*/kernel"])
    {'conv': {'bias': False, 'kernel': True}}
    """
    return jax.tree.map(bool, match(tree, rules, default=False))


def stack(trees: Sequence[PyTree]) -> PyTree:
    """Trees of one structure as one tree whose leaves lead with the member axis `K`.

    Raises:
        ValueError: if there are no trees, or their structures differ.

    >>> stack([{"a": jnp.zeros(2)}, {"a": jnp.ones(2)}])["a"].shape
    (2, 2)
    """
    if not trees:
        raise ValueError("no trees to stack; give at least one")
    for i, tree in enumerate(trees):
        check_same_structure(trees[0], tree, "tree 0", f"tree {i}")
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def unstack(tree: PyTree) -> list[PyTree]:
    """The members of a stacked tree, a list of `K` trees: the inverse of `stack`.

    Raises:
        ValueError: if the leaves lead with axes of different lengths.

    >>> [t["a"].tolist() for t in unstack({"a": jnp.arange(4).reshape(2, 2)})]
    [[0, 1], [2, 3]]
    """
    sizes = {leaf.shape[0] for leaf in jax.tree.leaves(tree)}
    if len(sizes) != 1:
        raise ValueError(f"leaves lead with different sizes {sorted(sizes)}; a stack has one member axis")
    tree = jax.tree.map(lambda leaf: layouts.gathered(leaf, (0,)), tree)
    return [jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in range(sizes.pop())]


def check_same_structure(a: PyTree, b: PyTree, a_name: str = "the first", b_name: str = "the second") -> None:
    """Raises `ValueError`, naming the paths that differ, unless both trees have one structure.

    Args:
        a: any pytree.
        b: the tree that must have the structure of `a`, in containers of the same types.
        a_name: what the first tree is called in the error.
        b_name: what the second tree is called in the error.

    >>> check_same_structure({"a": 1}, {"b": 1}, "params", "masks")
    Traceback (most recent call last):
    ...
    ValueError: params and masks differ in structure: only in params: ['a']; only in masks: ['b']
    """
    structures: list[Any] = [jax.tree.structure(a), jax.tree.structure(b)]
    if structures[0] == structures[1]:
        return
    left, right = set(flatten(a)), set(flatten(b))
    if left == right:
        kinds = f"{type(a).__name__} and {type(b).__name__}"
        raise ValueError(
            f"{a_name} and {b_name} differ in structure: they have the same paths in containers of other types "
            f"({kinds} outside); trees.align(tree, like) gives one tree the containers of the other"
        )
    raise ValueError(_apart(left, right, a_name, b_name))


def _apart(left: set[str], right: set[str], a_name: str, b_name: str) -> str:
    return (
        f"{a_name} and {b_name} differ in structure: only in {a_name}: {sorted(left - right)[:5]}; "
        f"only in {b_name}: {sorted(right - left)[:5]}"
    )


def align(tree: PyTree, like: PyTree, name: str = "the tree", like_name: str = "the other") -> PyTree:
    """The leaves of a tree in the structure of another one: leaves that have the same path belong together.

    What kind of container holds them does not matter: an `nnx.State` of `Param`, one of `OptVariable`, a nested dict, a
    Linen `FrozenDict`, or lists that a checkpoint restored for tuples. A scalar, such as `True`, stands for every leaf
    of a subtree that `like` has in its place.

    Args:
        tree: any pytree.
        like: the pytree whose structure the result has; its leaves are not looked at.
        name: what the tree is called in the error.
        like_name: what the other tree is called in the error.

    Returns:
        The leaves of `tree` in the containers of `like`.

    Raises:
        ValueError: naming the paths that only one of the two trees has.

    >>> align([1, {"b": 2}], ({"a": 0, "c": 0}, {"b": 0}))
    ({'a': 1, 'c': 1}, {'b': 2})
    """
    structure: Any = jax.tree.structure(like)
    if jax.tree.structure(tree) == structure:
        return tree
    leaves, names = flatten(tree), list(flatten(like))
    scalars = [path for path, leaf in leaves.items() if jnp.ndim(leaf) == 0]

    def source(path: str) -> str:
        if path in leaves:
            return path
        # An empty path is that of a tree which is a leaf itself.
        return next((s for s in scalars if not s or path.startswith(f"{s}/")), path)

    sources = [source(path) for path in names]
    if set(sources) != set(leaves):
        found = {p for p, s in zip(names, sources, strict=True) if s in leaves}
        raise ValueError(_apart(set(names) - found, set(leaves) - set(sources), like_name, name))
    return jax.tree.unflatten(structure, [leaves[s] for s in sources])


def broadcasts(small: Sequence[int], large: Sequence[int]) -> bool:
    """Whether an array of the shape `small` broadcasts to the shape `large`, and not beyond it.

    >>> broadcasts((1, 3), (2, 3)), broadcasts((2, 3), (1, 3))
    (True, False)
    """
    try:
        return jnp.broadcast_shapes(tuple(small), tuple(large)) == tuple(large)
    except ValueError:
        return False


def replace(tree: PyTree, leaves: Mapping[str, Any]) -> PyTree:
    """A copy of the tree with other leaves at the given paths.

    Raises:
        ValueError: naming the paths that the tree lacks.

    >>> replace({"a": {"b": 1, "c": 2}}, {"a/b": 5})
    {'a': {'b': 5, 'c': 2}}
    """
    unknown = sorted(set(leaves) - set(flatten(tree)))
    if unknown:
        raise ValueError(f"no such paths: {unknown}; the tree has {sorted(flatten(tree))[:8]}")
    return jax.tree_util.tree_map_with_path(lambda k, v: leaves.get(path_of(k), v), tree)
