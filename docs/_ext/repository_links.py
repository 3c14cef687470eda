"""Links that work on GitHub work in the site: to other pages, to notebooks, and to files of the repository.

Pages link to each other and to files by relative paths, as GitHub wants it. Of these, what is a page of the site
becomes a link to that page; other files of the repository become links to GitHub, or to a copy in the site for tables
and pictures beside the pages. A link that leads nowhere is a warning, and so stops a build with `-W`.
"""

import pathlib
import posixpath
import re
from typing import Any

from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)

COPIES = {"CONTRIBUTING.md": "project/contributing", "CHANGELOG.md": "project/changelog"}
"""Files outside the folder of the documentation that the site shows, with their pages."""

INSTEAD = {"README.md": "index.md"}
"""Files that the site has another page for."""

_LINK = re.compile(r"(?<!\\)\]\((?!<)([^)\s]+)\)")
_CODE = re.compile(
    r"(^[ \t]*(`{3,}|~{3,}).*?^[ \t]*\2[ \t]*$|(?<!`)(`+)(?!`)(?:(?!\n\n).)+?(?<!`)\3(?!`))", re.DOTALL | re.MULTILINE
)
_ABSOLUTE = re.compile(r"^(?:[a-z][a-z0-9+.-]*:|#|/)", re.IGNORECASE)


def sources(root: pathlib.Path) -> dict[str, str]:
    """Where each page that is a copy comes from, by the page's name: `{"gallery/isp": "colabs/isp.ipynb"}`.

    Args:
        root: the repository.
    """
    found = {page: file for file, page in COPIES.items() if (root / file).is_file()}
    return found | {f"gallery/{p.stem}": f"colabs/{p.name}" for p in sorted((root / "colabs").glob("*.ipynb"))}


def target(link: str, file: str, page: str, root: pathlib.Path, repository: str) -> str | None:
    """What a link becomes in the site.

    Args:
        link: as it is written, relative.
        file: the file that holds it, from the root of the repository.
        page: the name of the page that shows the file.
        root: the repository.
        repository: its address; "" if there is none.

    Returns:
        The link; `None` if it leads nowhere.
    """
    path, mark, fragment = link.partition("#")
    wanted = posixpath.normpath(posixpath.join(posixpath.dirname(file), path))
    if not (root / wanted).exists():
        return None
    back = {origin: name for name, origin in sources(root).items()}
    readme = f"{wanted}/README.md"
    if wanted in INSTEAD:
        found = INSTEAD[wanted]
    elif wanted in back:
        suffix = pathlib.PurePosixPath(wanted).suffix
        found = back[wanted] + suffix
    elif wanted.startswith("docs/") and (root / wanted).is_file():
        found = wanted.removeprefix("docs/")
    elif wanted.startswith("docs/") and (root / readme).is_file():
        found = readme.removeprefix("docs/")
    elif repository:
        return f"{repository}/{'tree' if (root / wanted).is_dir() else 'blob'}/main/{wanted}{mark}{fragment}"
    else:
        return ""
    return posixpath.relpath(found, posixpath.dirname(page) or ".") + mark + fragment


def rewritten(text: str, file: str, page: str, root: pathlib.Path, repository: str) -> tuple[str, list[str]]:
    """A page's text with its links as the site needs them, and the links that lead nowhere.

    Args:
        text: Markdown, or a notebook's JSON.
        file: as in `target`.
        page: as in `target`.
        root: as in `target`.
        repository: as in `target`.
    """
    broken: list[str] = []

    def one(match: re.Match[str]) -> str:
        link = match[1]
        if _ABSOLUTE.match(link):
            return match[0]
        found = target(link, file, page, root, repository)
        if found is None:
            broken.append(link)
            return match[0]
        return f"]({found})" if found else "]"

    if file.endswith(".ipynb"):
        return _LINK.sub(one, text), []
    # Calls such as `METHODS[name](problem)` stand in code and are no links.
    out, at = [], 0
    for code in _CODE.finditer(text):
        out += [_LINK.sub(one, text[at : code.start()]), code[0]]
        at = code.end()
    return "".join([*out, _LINK.sub(one, text[at:])]), broken


def _source_read(app: Sphinx, page: str, content: list[str]) -> None:
    root = pathlib.Path(app.srcdir).parent
    file = sources(root).get(page, f"docs/{page}.md")
    if page.startswith("reference/") or not (root / file).is_file():
        return
    repository = app.config.repository_address
    content[0], broken = rewritten(content[0], file, page, root, repository)
    for link in broken:
        logger.warning("%s links to %s, which is not in the repository", file, link, location=page)
    if run := re.fullmatch(r"results/([^/]+)/.+", page):  # what a run wrote, reached from the pages about it
        titled = re.search(r"^# ", content[0], re.MULTILINE)
        title = "" if titled else f"# What the run `{run[1]}` wrote\n\n"
        content[0] = f"---\norphan: true\n---\n\n{title}{content[0]}"


def _copy(app: Sphinx) -> None:
    """Copies what lies outside into the folder of the documentation, where it changed, and removes what is gone."""
    docs = pathlib.Path(app.srcdir)
    for old in (docs / "gallery").glob("*.ipynb"):
        if not (docs.parent / "colabs" / old.name).is_file():
            old.unlink()
    for page, file in sources(docs.parent).items():
        source = docs.parent / file
        copy = docs / (page + source.suffix)
        copy.parent.mkdir(exist_ok=True)
        content = source.read_bytes()
        if not copy.is_file() or copy.read_bytes() != content:
            copy.write_bytes(content)


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the extension."""
    app.add_config_value("repository_address", "", "env")
    app.connect("builder-inited", _copy)
    app.connect("source-read", _source_read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
