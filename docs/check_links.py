"""Finds links of a built site that lead nowhere: `python docs/check_links.py build/docs`.

Sphinx checks the links that pages write. This also sees those that templates, cards and extensions make, and pictures.
"""

import html.parser
import pathlib
import sys
import urllib.parse


class _Page(html.parser.HTMLParser):
    """What a page links to, and the places in it that can be linked to."""

    def __init__(self) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.places: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes addresses and names."""
        given = dict(attrs)
        self.links |= {link for key in ("href", "src") if (link := given.get(key))}
        self.places |= {name for key in ("id", "name") if (name := given.get(key))}


def broken(site: pathlib.Path) -> list[str]:
    """All internal links that lead nowhere.

    Args:
        site: the folder that Sphinx wrote.

    Returns:
        A line for each, with the page and the link.

    Raises:
        ValueError: if the folder holds no front page.
    """
    if not (site / "index.html").is_file():
        raise ValueError(f"{site} has no index.html; build the site first, as docs/README.md says")
    pages: dict[pathlib.Path, _Page] = {}
    for path in sorted(site.resolve().rglob("*.html")):
        if "_static" in path.parts:  # the theme's templates
            continue
        pages[path] = _Page()
        pages[path].feed(path.read_text(encoding="utf-8"))
    found = []
    for path, page in pages.items():
        for link in sorted(page.links):
            parts = urllib.parse.urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            wanted = (path.parent / urllib.parse.unquote(parts.path)).resolve() if parts.path else path
            place = urllib.parse.unquote(parts.fragment)
            if not wanted.exists():
                found.append(f"{path.relative_to(site.resolve())}: {link} is not there")
            elif place and wanted in pages and place not in pages[wanted].places:
                found.append(f"{path.relative_to(site.resolve())}: {link} names no place in that page")
    return found


def main(arguments: list[str]) -> int:
    """Prints the links that lead nowhere, and returns how many there are, at most 1."""
    lines = broken(pathlib.Path(arguments[0]))
    sys.stdout.write("".join(f"{line}\n" for line in lines) or "all internal links lead somewhere\n")
    return min(len(lines), 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
