"""Writes the reference: a page for each module, with an entry for each public name, as MyST Markdown."""

import ast
import copy
import inspect
import json
import pathlib
from collections.abc import Iterator

import docstrings
import package_names
from package_names import PACKAGE, Entry, Module, Names

FOLDER = "reference"
"""Below the folder of the documentation."""

LAYERS = (
    ("core", "Pure functions over arrays and trees"),
    ("graph", "Coupled groups of any function"),
    ("parallel", "Members over devices, work over hosts"),
    ("saliency", "Scores of weights and units"),
    ("compact", "Smaller arrays, models and functions"),
    ("storage", "What a run leaves on disk"),
    ("models", "Networks"),
    ("data", "Data sets, tasks, streams"),
    ("reports", "Tables and pictures"),
    ("pretrained", "Checkpoints of other libraries"),
    ("train", "Training"),
    ("bank", "A folder of pruned models"),
    ("methods", "Methods"),
    ("delivery", "A checkpoint in, a model folder out"),
    ("experiments", "The jobs behind the configs"),
)
"""The folders of the package from the ground up, as the README's table of layers orders them, with their titles."""


def page(shown_module: str) -> str:
    """The name of a module's page, without its ending."""
    return f"{FOLDER}/{shown_module}"


def signature(name: str, node: ast.FunctionDef, *, method: bool = False) -> str:
    """A function's name, arguments, and what it returns, on one line.

    Args:
        name: to show.
        node: the definition.
        method: whether the first argument is the object.

    >>> signature("scaled", ast.parse("def scaled(self, by: float = 2.0, /) -> float: ...").body[0], method=True)
    'scaled(by: float=2.0, /) -> float'
    """
    given = copy.deepcopy(node.args)
    if method and (given.posonlyargs or given.args):
        (given.posonlyargs or given.args).pop(0)
    returns = f" -> {ast.unparse(node.returns)}" if node.returns and node.name != "__init__" else ""
    return f"{name}({ast.unparse(given)}){returns}"


def _directive(kind: str, argument: str, options: dict[str, str], content: list[str], depth: int) -> list[str]:
    fence = "`" * (9 - 2 * depth)
    head = [f"{fence}{{py:{kind}}} {argument}"]
    head += [f":{key}: {json.dumps(value) if value else ''}".rstrip() for key, value in options.items()]
    return [*head, "", *content, fence, ""]


def _decorators(node: ast.FunctionDef | ast.ClassDef) -> set[str]:
    return {ast.unparse(d).partition("(")[0].rpartition(".")[2] for d in node.decorator_list}


def _documents(node: ast.ClassDef) -> Iterator[tuple[ast.stmt, str]]:
    """The statements of a class, with the text below each."""
    for here, after in zip(node.body, [*node.body[1:], None], strict=True):
        yield here, package_names.text_of(after)


def _default(value: ast.expr) -> str:
    """A field's default as a reader would write it."""
    if isinstance(value, ast.Call) and ast.unparse(value.func).rpartition(".")[2] == "field":
        given = {k.arg: k.value for k in value.keywords}
        if "default" in given:
            return ast.unparse(given["default"])
        if "default_factory" in given:
            factory = given["default_factory"]
            return ast.unparse(factory.body) if isinstance(factory, ast.Lambda) else f"{ast.unparse(factory)}()"
        return ""
    return ast.unparse(value)


def _described(text: str) -> dict[str, list[str]]:
    """What the section `Attributes` of a class says of each name; an entry may name several, `rows, columns: ...`."""
    parts = [docstrings.entries(lines) for section, lines in docstrings.sections(text) if section == "Attributes"]
    return {name: lines for part in parts for names, lines in part.items() for name in names.split(", ")}


def _field(member: ast.Assign | ast.AnnAssign, text: list[str]) -> list[str]:
    """A field of a class, or nothing if it is private."""
    target = member.target if isinstance(member, ast.AnnAssign) else member.targets[0]
    if not isinstance(target, ast.Name) or target.id.startswith("_"):
        return []
    options = {"type": ast.unparse(member.annotation)} if isinstance(member, ast.AnnAssign) else {}
    if member.value is not None and (value := _default(member.value)):
        options["value"] = value
    return _directive("attribute", target.id, options, docstrings.body(text), 1)


def _method(member: ast.FunctionDef, described: list[str]) -> list[str]:
    """A method or a property, or nothing if it is private or a part of one that has been shown."""
    marks, own = _decorators(member), ast.get_docstring(member) or ""
    if (member.name.startswith("_") and member.name != "__call__") or marks & {"overload", "setter", "deleter"}:
        return []
    if marks & {"property", "cached_property"}:
        options = {"type": ast.unparse(member.returns)} if member.returns else {}
        return _directive("property", member.name, options, docstrings.to_myst(own) or docstrings.body(described), 1)
    options = {mark: "" for mark in ("classmethod", "staticmethod") if mark in marks}
    line = signature(member.name, member, method="staticmethod" not in marks)
    return _directive("method", line, options, docstrings.to_myst(own), 1)


def _members(node: ast.ClassDef, text: str) -> list[str]:
    """Fields, properties and methods of a class."""
    described = _described(text)
    found: list[str] = []
    for member, below in _documents(node):
        if isinstance(member, ast.AnnAssign | ast.Assign):
            name = package_names.names_of(member)
            found += _field(member, described.get(name[0] if name else "", inspect.cleandoc(below).split("\n")))
        elif isinstance(member, ast.FunctionDef):
            found += _method(member, described.get(member.name, []))
    return found


def _class(entry: Entry, node: ast.ClassDef) -> list[str]:
    begins = [m for m in node.body if isinstance(m, ast.FunctionDef) and m.name == "__init__"]
    bases = [ast.unparse(b) for b in node.bases]
    kind = "exception" if any(b.endswith(("Error", "Exception", "Warning")) for b in bases) else "class"
    name = entry.shown.rpartition(".")[2]
    head = signature(name, begins[-1], method=True) if begins else name
    content = []
    if "dataclass" in _decorators(node):
        frozen = "frozen=True" in ast.unparse(node.decorator_list[0])
        content = [f"*{'A frozen' if frozen else 'A'} dataclass.*", ""]
    elif bases:
        content = [f"*Bases: {', '.join(f'`{b}`' for b in bases)}.*", ""]
    content += docstrings.to_myst(entry.text, without=("Attributes",))
    if begins and (text := ast.get_docstring(begins[-1])):
        content += ["", *docstrings.to_myst(text)]
    return _directive(kind, head, {}, [*content, "", *_members(node, entry.text)], 0)


def entry_lines(entry: Entry) -> list[str]:
    """The entry of one name.

    Args:
        entry: the definition.
    """
    node, name = entry.nodes[-1], entry.shown.rpartition(".")[2]
    if isinstance(node, ast.ClassDef):
        return _class(entry, node)
    if isinstance(node, ast.FunctionDef):
        return _directive("function", signature(name, node), {}, docstrings.to_myst(entry.text), 0)
    options = {}
    if isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation).rpartition(".")[2] != "TypeAlias":
        options["type"] = ast.unparse(node.annotation)
    if node.value is not None:
        value = ast.unparse(node.value)
        options["value"] = value if len(value) <= 120 else f"{value[:117]}..."
    return _directive("data", name, options, docstrings.to_myst(entry.text), 0)


def _row(label: str, target: str, kind: str, text: str) -> str:
    return f"| {{py:{kind}}}`{label} <{target}>` | {docstrings.summary(text)} |"


def _tables(shown: str, names: Names, own: list[Entry]) -> list[str]:
    """What stands on the page, and what the module gives besides."""
    found: list[str] = []
    if len(own) > 1:
        rows = [_row(e.shown.rpartition(".")[2], e.shown, "obj", e.text) for e in own]
        found += ["| name | what it is |", "|:--|:--|", *rows, ""]
    others = names.listed[shown]
    rows = []
    for name, target in sorted(others.items()):
        if target in names.entries:
            rows.append(_row(name, target, "obj", names.entries[target].text))
        elif target in names.modules:
            rows.append(_row(name, target, "mod", names.modules[target].docstring))
    if rows:
        found += ["Also here, described where the link leads:", "", "| name | what it is |", "|:--|:--|", *rows, ""]
    return found


def _submodules(module: Module, names: Names) -> list[str]:
    """The pages below a folder's, first those offered under a short name."""
    below = [s for s, m in names.modules.items() if m.path.rpartition(".")[0] == module.path]
    return sorted(below, key=lambda s: (s.count("."), s))


def module_page(shown: str, names: Names) -> str:
    """The page of a module.

    Args:
        shown: the module's shown name.
        names: all names of the package.
    """
    module = names.modules[shown]
    own = [e for e in names.entries.values() if e.home == shown]
    if module.offered:
        order = {name: i for i, name in enumerate(module.offered)}
        own.sort(key=lambda e: order.get(e.shown.rpartition(".")[2], len(order)))
    lines = [f"# {shown.removeprefix(f'{PACKAGE}.')}", "", f"```{{py:module}} {shown}", "```", ""]
    folder, _, name = shown.rpartition(".")
    how = f"from {folder} import {name}" if folder else f"import {PACKAGE}"
    where = (
        f"Defined in `{module.file}`." if shown == module.path else f"Defined as `{module.path}` in `{module.file}`."
    )
    lines += [f"`{how}`. {where}", "", *docstrings.to_myst(module.docstring), ""]
    lines += _tables(shown, names, own)
    below = _submodules(module, names) if shown != PACKAGE else []
    if below:
        lines += ["## Modules", "", "| module | what is there |", "|:--|:--|"]
        lines += [_row(s.removeprefix(f"{PACKAGE}."), s, "mod", names.modules[s].docstring) for s in below]
        lines += ["", "```{toctree}", ":hidden:", "", *below, "```", ""]
    if own:
        lines += ["## Names", ""] if below else []
        for entry in own:
            lines += entry_lines(entry)
    return "\n".join(lines).rstrip() + "\n"


def index_page(names: Names) -> str:
    """The front page of the reference: what a researcher imports, then the layers.

    Args:
        names: all names of the package.
    """
    lines = ["# API reference", "", "Every public module, function and class, made from the docstrings.", ""]
    lines += ["## What is imported directly", ""]
    lines += [f"`from {PACKAGE} import masks, prune, vote` and so on; everything is loaded on first use.", ""]
    lines += ["| name | what it is |", "|:--|:--|"]
    for shown in sorted(s for s in names.modules if s.count(".") == 1 and s != f"{PACKAGE}.main"):
        if shown != f"{PACKAGE}.core":
            lines.append(_row(shown.rpartition(".")[2], shown, "mod", names.modules[shown].docstring))
    for target in sorted(t for t in names.targets if t.count(".") == 1 and names.targets[t] in names.entries):
        shown = names.targets[target]
        lines.append(_row(target.rpartition(".")[2], shown, "obj", names.entries[shown].text))
    lines += ["", "## Layers", "", "A file imports only from the layers above it in this list.", ""]
    lines += ["| folder | what is there |", "|:--|:--|"]
    for folder, title in LAYERS:
        lines.append(f"| {{py:mod}}`{folder} <{PACKAGE}.{folder}>` | {title}. |")
    lines += [f"| {{py:mod}}`main <{PACKAGE}.main>` | The command. |", ""]
    tree = [PACKAGE, *(f"{PACKAGE}.{folder}" for folder, _ in LAYERS), f"{PACKAGE}.main"]
    lines += ["```{toctree}", ":hidden:", "", *tree, "```"]
    return "\n".join(lines) + "\n"


def pages(names: Names) -> dict[str, str]:
    """All pages of the reference, by their path below the folder of the documentation.

    Args:
        names: all names of the package.
    """
    found = {f"{FOLDER}/index.md": index_page(names)}
    return found | {f"{page(shown)}.md": module_page(shown, names) for shown in names.modules}


def write(docs: pathlib.Path, found: dict[str, str]) -> None:
    """Writes pages that changed and removes those of modules that are gone, so that Sphinx reads only what is new.

    Args:
        docs: the folder of the documentation.
        found: the pages, by path.
    """
    (docs / FOLDER).mkdir(exist_ok=True)
    for path, text in found.items():
        file = docs / path
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")
    for file in (docs / FOLDER).glob("*.md"):
        if f"{FOLDER}/{file.name}" not in found:
            file.unlink()
