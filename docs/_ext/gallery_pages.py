"""The gallery's front page: a card for each notebook, with its title, its first sentence and its first picture."""

import base64
import json
import pathlib
import re
from typing import Any

import docstrings
from sphinx.application import Sphinx

FOLDER = "gallery"

FIRST = ("quickstart", "mvp", "isp", "prune_any_model", "checkpoint", "research_loop")
"""The order in which they are read; others follow by name."""

SHORT = 60
"""A first sentence of fewer characters is followed by the second."""


def card(notebook: dict[str, Any]) -> tuple[str, str, bytes | None]:
    """What a card shows.

    Args:
        notebook: its JSON.

    Returns:
        Its title, its first sentence (two if the first is short), and its first picture (PNG), if an executed cell has
        one.

    Raises:
        ValueError: if it has no title.
    """
    texts = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "markdown"]
    whole = "\n\n".join(texts)
    title = re.search(r"^# (.+)$", whole, re.MULTILINE)
    if not title:
        raise ValueError("a notebook of the gallery begins with a heading: a cell of Markdown with a line `# Title`")
    after = [p for p in re.split(r"\n\s*\n", whole[title.end() :]) if p.strip()]
    sentences = [p for p in after if not p.lstrip().startswith(("[![", "#", "|", "-", "<"))]
    plain = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", sentences[0]).replace("**", "") if sentences else ""
    first = docstrings.summary(plain)
    rest = " ".join(plain.split())[len(first) :]
    if rest and len(first) < SHORT:
        first = f"{first} {docstrings.summary(rest)}"
    picture = next(
        (
            base64.b64decode("".join(out["data"]["image/png"]))
            for c in notebook["cells"]
            for out in c.get("outputs", ())
            if "image/png" in out.get("data", {})
        ),
        None,
    )
    return title[1], first, picture


def _write(app: Sphinx) -> None:
    docs = pathlib.Path(app.srcdir) / FOLDER
    files = {p.stem: p for p in docs.glob("*.ipynb")}
    order = [n for n in FIRST if n in files] + sorted(set(files) - set(FIRST))
    lines = ["# Gallery", "", "Notebooks, one idea each. Each runs on a CPU in a few minutes.", ""]
    lines += ["::::{grid} 1 2 2 2", ":gutter: 3", ""]
    for name in order:
        title, text, picture = card(json.loads(files[name].read_text(encoding="utf-8")))
        lines += [f":::{{grid-item-card}} {title}", f":link: {name}", ":link-type: doc"]
        if picture:
            (docs / f"{name}.png").write_bytes(picture)
            lines += [f":img-bottom: {name}.png", f":img-alt: A picture from the notebook {title}"]
        lines += ["", text, ":::", ""]
    lines += ["::::", "", "```{toctree}", ":hidden:", "", *order, "```", ""]
    page, text = docs / "index.md", "\n".join(lines)
    if not page.is_file() or page.read_text(encoding="utf-8") != text:
        page.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the extension."""
    app.connect("builder-inited", _write, priority=600)  # after the notebooks were copied
    return {"parallel_read_safe": True, "parallel_write_safe": True}
