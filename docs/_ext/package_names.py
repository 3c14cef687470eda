"""What the package offers, read from its files without importing them: modules, definitions, and their other names.

A definition is shown under the shortest name by which users reach it. `mvp_jax.core.prune` is offered as
`mvp_jax.prune`, so its functions are `mvp_jax.prune.by_leaf` and so on. What a folder's `__init__.py` lists in
`__all__` is shown as the folder's. A module that gives another's function as its own has it too, as in
`count = mask_measures.count`. All other names by which a definition can be reached are its aliases.
"""

import ast
import dataclasses
import functools
import pathlib

PACKAGE = "mvp_jax"

Definition = ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign


@dataclasses.dataclass(kw_only=True)
class Module:
    """A file of the package.

    Attributes:
        path: the module's name, by its file.
        file: where it lies, from the root of the repository.
        docstring: its text.
        is_package: whether it is an `__init__.py`.
        definitions: public names that it defines; a list, as `typing.overload` defines a name several times.
        documents: the text below an assignment, by name.
        others: names that are another module's, with their path (`mvp_jax.core.counts.total`).
        offered: what `__all__` lists, in its order; `None` without one.
    """

    path: str
    file: str
    docstring: str
    is_package: bool
    definitions: dict[str, list[Definition]]
    documents: dict[str, str]
    others: dict[str, str]
    offered: list[str] | None


@dataclasses.dataclass(kw_only=True)
class Entry:
    """A definition, under the name by which it is shown.

    Attributes:
        shown: the full name, as `mvp_jax.prune.by_leaf`.
        home: the shown name of the module whose page it stands on.
        module: the module that defines it.
        name: its name there.
    """

    shown: str
    home: str
    module: Module
    name: str

    @property
    def nodes(self) -> list[Definition]:
        return self.module.definitions[self.name]

    @property
    def text(self) -> str:
        """The docstring, or the text below an assignment."""
        node = self.nodes[-1]
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            return ast.get_docstring(node) or ""
        return self.module.documents.get(self.name, "")


@dataclasses.dataclass(kw_only=True)
class Names:
    """All modules and entries.

    Attributes:
        modules: by shown name.
        entries: by shown name.
        targets: the shown name that each name leads to, of modules and definitions, with their aliases.
        listed: for each module's shown name, the names that it gives without being their home, with what they lead to.
    """

    modules: dict[str, Module]
    entries: dict[str, Entry]
    targets: dict[str, str]
    listed: dict[str, dict[str, str]]

    @functools.cached_property
    def classes(self) -> dict[str, str]:
        """Names like `SparsityProblem`, which stand for one thing in the whole package."""
        found: dict[str, list[str]] = {}
        for shown in self.entries:
            found.setdefault(shown.rpartition(".")[2], []).append(shown)
        return {name: s[0] for name, s in found.items() if len(s) == 1 and name[:1].isupper() and len(name) > 2}


def names_of(node: ast.stmt) -> list[str]:
    """The names that a statement defines.

    Args:
        node: any statement.
    """
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [t.id for t in node.targets if isinstance(t, ast.Name)]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return [node.target.id]
    return []


def text_of(node: ast.stmt | None) -> str:
    """The text that a statement is, if it is nothing but text; such a text documents the assignment above it.

    Args:
        node: the statement below an assignment.
    """
    value = node.value if isinstance(node, ast.Expr) else None
    return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else ""


def _is_type_variable(node: ast.stmt) -> bool:
    value = getattr(node, "value", None)
    return isinstance(value, ast.Call) and ast.unparse(value.func).rpartition(".")[2] in ("TypeVar", "ParamSpec")


def read(file: pathlib.Path, root: pathlib.Path) -> Module:
    """Reads one file.

    Args:
        file: a Python file of the package.
        root: the folder that holds the package.
    """
    tree = ast.parse(file.read_text(encoding="utf-8"))
    parts = list(file.relative_to(root).with_suffix("").parts)
    is_package = parts[-1] == "__init__"
    definitions: dict[str, list[Definition]] = {}
    documents: dict[str, str] = {}
    imported: dict[str, str] = {}
    others: dict[str, str] = {}
    offered: list[str] | None = None
    for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
            imported |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
        if not isinstance(node, Definition):
            continue
        for name in names_of(node):
            if name == "__all__" and isinstance(given := getattr(node, "value", None), ast.List):
                offered = [str(e.value) for e in given.elts if isinstance(e, ast.Constant)]
            if name.startswith("_") or _is_type_variable(node):
                continue
            value = getattr(node, "value", None)
            if isinstance(value, ast.Attribute) and isinstance(value.value, ast.Name) and value.value.id in imported:
                others[name] = f"{imported[value.value.id]}.{value.attr}"
                continue
            definitions.setdefault(name, []).append(node)
            if text := text_of(after):
                documents[name] = text
    others |= {name: imported[name] for name in offered or () if name in imported}
    return Module(
        path=".".join(parts[:-1] if is_package else parts),
        file=file.relative_to(root).as_posix(),
        docstring=ast.get_docstring(tree) or "",
        is_package=is_package,
        definitions=definitions,
        documents=documents,
        others=others,
        offered=offered,
    )


def _table(tree: ast.Module, name: str) -> dict[str, str]:
    """A literal table of the package's `__init__.py`."""
    for node in tree.body:
        if name in names_of(node) and isinstance(node, ast.Assign):
            found: dict[str, str] = ast.literal_eval(node.value)
            return found
    raise ValueError(f"{PACKAGE}/__init__.py has no table {name}; the reference takes the public names from it")


def _resolve(path: str, modules: dict[str, Module]) -> str:
    """The path of the definition or module that a path leads to, through modules that hand on others' names."""
    for _ in range(10):
        if path in modules:
            return path
        home, _, name = path.rpartition(".")
        if home not in modules or name not in modules[home].others:
            return path
        path = modules[home].others[name]
    raise ValueError(f"{path} leads in a circle")


def _read_all(root: pathlib.Path) -> tuple[dict[str, Module], dict[str, str]]:
    """All modules by path, and the names under which the package itself offers some of them."""
    files = sorted((root / PACKAGE).rglob("*.py"))
    modules = {m.path: m for m in (read(f, root) for f in files if f.name != "__main__.py")}
    face = ast.parse((root / PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    modules[PACKAGE].others |= {name: f"{PACKAGE}.{p}.{name}" for name, p in _table(face, "_NAMES").items()}
    return modules, {f"{PACKAGE}.{path}": f"{PACKAGE}.{name}" for name, path in _table(face, "_PLACES").items()}


Way = tuple[str, str]
"""A module's path and a name in it."""


def _ways(modules: dict[str, Module]) -> dict[str, list[Way]]:
    """How each definition is reached, by its path; first where it is defined."""
    found: dict[str, list[Way]] = {
        f"{m.path}.{name}": [(m.path, name)] for m in modules.values() for name in m.definitions
    }
    for m in modules.values():
        for name in m.others:
            path = _resolve(f"{m.path}.{name}", modules)
            if path in found:
                found[path].append((m.path, name))
    return found


def _best(ways: list[Way], shown: dict[str, str], short: dict[str, str]) -> Way:
    """Where a definition is shown: in its own module if that has a short name, else where the name has fewest parts."""
    if ways[0][0] in short:
        return ways[0]
    # Names that are also a module's, as `from mvp_jax.data.augment.mixing import mixing`, stay with the file.
    taken = {*shown, *shown.values()}
    free = [ways[0], *(w for w in ways[1:] if f"{shown[w[0]]}.{w[1]}" not in taken)]
    return min(free, key=lambda way: shown[way[0]].count("."))


@functools.cache
def collect(root: pathlib.Path) -> Names:
    """Reads the whole package.

    Args:
        root: the folder that holds the package.

    Returns:
        Its public names.

    Raises:
        ValueError: if two definitions would be shown under one name.
    """
    by_path, short = _read_all(root)
    modules = {path: short.get(path, path) for path in by_path}
    entries: dict[str, Entry] = {}
    targets = modules | {shown: shown for shown in modules.values()}
    listed: dict[str, dict[str, str]] = {shown: {} for shown in modules.values()}
    for path, ways in _ways(by_path).items():
        home, best_name = _best(ways, modules, short)
        shown = f"{modules[home]}.{best_name}"
        if shown in entries:
            raise ValueError(f"{path} and {entries[shown].module.path} would both be shown as {shown}; rename one")
        module, name = ways[0]
        entries[shown] = Entry(shown=shown, home=modules[home], module=by_path[module], name=name)
        reachable = {f"{form}.{w[1]}" for w in ways for form in (w[0], modules[w[0]])}
        targets |= dict.fromkeys([shown, *(other for other in sorted(reachable) if other not in targets)], shown)
        for module, name in ways:
            if module != home:
                listed[modules[module]][name] = shown
    for m in by_path.values():  # folders also offer modules
        for name in m.others:
            found = _resolve(f"{m.path}.{name}", by_path)
            if found in by_path:
                listed[modules[m.path]][name] = modules[found]
    return Names(modules={modules[p]: m for p, m in by_path.items()}, entries=entries, targets=targets, listed=listed)
