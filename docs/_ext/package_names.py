"""What the package offers, read from its files without importing them: modules, definitions, and their other names.

A definition is shown under the shortest name by which users reach it. `mvp_jax.core.prune` is offered as
`mvp_jax.prune`, so its functions are `mvp_jax.prune.by_leaf` and so on; what a folder's `__init__.py` lists in `__all__`
is shown as the folder's; and a module that gives another's function as its own (`count = mask_measures.count`) has it.
All other names by which a definition can be reached are its aliases.
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
        aliases: all other full names that lead to it.
    """

    shown: str
    home: str
    module: Module
    name: str
    aliases: list[str]

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
        shown_modules: the shown name of each module, by its path.
        entries: by shown name.
        targets: the shown name that each name leads to, of modules and definitions, with their aliases.
        listed: for each module's shown name, the names that it gives without being their home, with what they lead to.
    """

    modules: dict[str, Module]
    shown_modules: dict[str, str]
    entries: dict[str, Entry]
    targets: dict[str, str]
    listed: dict[str, dict[str, str]]


def _names_of(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [t.id for t in node.targets if isinstance(t, ast.Name)]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return [node.target.id]
    return []


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
        for name in _names_of(node):
            if name == "__all__" and isinstance(node.value, ast.List):
                offered = [e.value for e in node.value.elts if isinstance(e, ast.Constant)]
            if name.startswith("_") or _is_type_variable(node):
                continue
            value = getattr(node, "value", None)
            if isinstance(value, ast.Attribute) and isinstance(value.value, ast.Name) and value.value.id in imported:
                others[name] = f"{imported[value.value.id]}.{value.attr}"
                continue
            definitions.setdefault(name, []).append(node)
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
                documents[name] = after.value.value
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
        if name in _names_of(node):
            return ast.literal_eval(node.value)
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
    files = sorted((root / PACKAGE).rglob("*.py"))
    by_path = {m.path: m for m in (read(f, root) for f in files if f.name != "__main__.py")}
    face = ast.parse((root / PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    short = {f"{PACKAGE}.{path}": f"{PACKAGE}.{name}" for name, path in _table(face, "_PLACES").items()}
    by_path[PACKAGE].others |= {name: f"{PACKAGE}.{p}.{name}" for name, p in _table(face, "_NAMES").items()}
    shown_modules = {path: short.get(path, path) for path in by_path}

    reached: dict[str, list[tuple[str, str]]] = {
        f"{m.path}.{name}": [(m.path, name)] for m in by_path.values() for name in m.definitions
    }
    for m in by_path.values():
        for name in m.others:
            found = _resolve(f"{m.path}.{name}", by_path)
            if found in reached:
                reached[found].append((m.path, name))

    entries: dict[str, Entry] = {}
    targets = {path: shown for path, shown in shown_modules.items()} | {s: s for s in shown_modules.values()}
    listed: dict[str, dict[str, str]] = {shown: {} for shown in shown_modules.values()}
    for path, ways in reached.items():
        own = ways[0]
        # Names that are also a module's, as `from mvp_jax.data.augment.mixing import mixing`, stay with the file.
        free = [own] + [w for w in ways[1:] if f"{shown_modules[w[0]]}.{w[1]}" not in targets]
        best = own if own[0] in short else min(free, key=lambda w: (shown_modules[w[0]].count("."), free.index(w)))
        shown = f"{shown_modules[best[0]]}.{best[1]}"
        if shown in entries:
            raise ValueError(f"{path} and {entries[shown].module.path} would both be shown as {shown}; rename one")
        reachable = {f"{form}.{w[1]}" for w in ways for form in (w[0], shown_modules[w[0]])}
        aliases = sorted(a for a in reachable if a != shown and a not in shown_modules and a not in targets)
        entries[shown] = Entry(
            shown=shown, home=shown_modules[best[0]], module=by_path[own[0]], name=own[1], aliases=aliases
        )
        targets |= dict.fromkeys([shown, *aliases], shown)
        for module, name in ways:
            if module != best[0]:
                listed[shown_modules[module]][name] = shown
    for m in by_path.values():  # folders also offer modules
        for name in m.others:
            found = _resolve(f"{m.path}.{name}", by_path)
            if found in by_path:
                listed[shown_modules[m.path]][name] = shown_modules[found]
    return Names(
        modules={shown_modules[p]: m for p, m in by_path.items()},
        shown_modules=shown_modules,
        entries=entries,
        targets=targets,
        listed=listed,
    )
