"""Code that names something of the package links to it: `prune.by_leaf` in a sentence, `Masks` in a signature.

Also every name by which something can be reached (`mvp_jax.core.prune.by_leaf`) is in the inventory of the site.
"""

import builtins
import pathlib
from typing import Any

import package_names
import reference_pages
from docutils import nodes
from package_names import PACKAGE, Names
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.domains.python import ObjectEntry
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode


def _names(app: Sphinx) -> Names:
    return package_names.collect(pathlib.Path(app.srcdir).parent)


def _generate(app: Sphinx) -> None:
    reference_pages.write(pathlib.Path(app.srcdir), reference_pages.pages(_names(app)))


def _add_aliases(app: Sphinx, env: BuildEnvironment) -> list[str]:
    objects = env.get_domain("py").data["objects"]
    for alias, shown in _names(app).targets.items():
        if shown in objects and alias not in objects:
            entry = objects[shown]
            objects[alias] = ObjectEntry(entry.docname, entry.node_id, entry.objtype, True)
    return []


def find(text: str, page: str, names: Names) -> str | None:
    """The shown name that a piece of code means; `None` if it means nothing of the package.

    Args:
        text: such as `units.reduce`, `Recipe`, `by_leaf()`.
        page: the name of the page it stands on; on a page of the reference, names of its module need no prefix.
        names: all names of the package.
    """
    text = text.removesuffix("()")
    if not text.replace(".", "").replace("_", "").isalnum():
        return None
    module = page.removeprefix(f"{reference_pages.FOLDER}/") if page.startswith(f"{reference_pages.FOLDER}/") else ""
    tried = [text] if text.startswith(f"{PACKAGE}.") else []
    if module:
        tried += [f"{module}.{text}", f"{names.modules[module].path if module in names.modules else module}.{text}"]
    if "." in text:
        tried.append(f"{PACKAGE}.{text}")
    for one in tried:
        if one in names.targets:
            return names.targets[one]
    return names.classes.get(text)


def _leave_builtins(app: Sphinx, doctree: nodes.document) -> None:
    """Keeps the type `bytes` from being taken for a field of this name, which Sphinx would look for in all classes."""
    for node in doctree.findall(addnodes.pending_xref):
        if node.get("refdomain") == "py" and hasattr(builtins, node["reftarget"]):
            node.attributes.pop("refspecific", None)
            node["reftarget"] = f"builtins.{node['reftarget']}"


def _parameters(node: nodes.Node) -> set[str]:
    """The parameters of the entry that a node stands in, which are not the functions of the same name."""
    found: set[str] = set()
    while node is not None:
        if isinstance(node, addnodes.desc):
            for signature in node.findall(addnodes.desc_parameter):
                found |= {n.astext() for n in signature.findall(addnodes.desc_sig_name)}
            for signature in node.children:
                if isinstance(signature, addnodes.desc_signature):
                    found.add(signature.get("fullname", ""))
        node = node.parent
    return found


def _link_code(app: Sphinx, doctree: nodes.document, page: str) -> None:
    names, objects = _names(app), app.env.get_domain("py").data["objects"]
    for node in list(doctree.findall(nodes.literal)):
        held = node.parent
        if isinstance(held, nodes.reference | nodes.title | addnodes.desc_signature | addnodes.pending_xref):
            continue
        shown = find(node.astext(), page, names)
        if shown is None or shown not in objects or node.astext() in _parameters(node):
            continue
        entry = objects[shown]
        if entry.docname == page and entry.objtype == "module":
            continue
        held.replace(node, make_refnode(app.builder, page, entry.docname, entry.node_id, node.deepcopy(), shown))


def _missing(app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, content: nodes.Node) -> nodes.Node | None:
    """Types in signatures, which are written as the files import them."""
    if node.get("refdomain") != "py" or node.get("reftype") not in ("class", "obj", "exc"):
        return None
    wanted, page = node["reftarget"], node.get("refdoc", "")
    shown = find(wanted, page, _names(app)) or _names(app).classes.get(wanted.rpartition(".")[2])
    entry = env.get_domain("py").data["objects"].get(shown) if shown else None
    return entry and make_refnode(app.builder, page, entry.docname, entry.node_id, content, shown)


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the extension."""
    app.connect("builder-inited", _generate)
    app.connect("doctree-read", _leave_builtins)
    app.connect("env-updated", _add_aliases)
    app.connect("doctree-resolved", _link_code)
    app.connect("missing-reference", _missing)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
