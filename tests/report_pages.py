"""What the tests of a model's report share: hostile texts, and readers of HTML and Markdown that see what is wrong."""

import html.parser
import io
import re

import markdown_it  # what `rich` reads Markdown with
import numpy as np
from PIL import Image

from mvp_jax.reports import model_report_html

HOSTILE = (
    "<script>alert(1)</script>",
    "]]> --> </style></title></svg><img src=x onerror=alert(1)>",
    "\" onmouseover='alert(1)' x=\"",
    "| a | b |\n|---|---|\n# heading [link](https://example.org) `code` **bold** &amp; &lt;",
    "left \u202e turned \u2066 אבג مرحبا \ud800 \x00 \x1b[31m \ufffe",
    "javascript:alert(1)",
    "x" * 10_000,
)


def png(size: int = 8, colour: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), colour, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


class Page(html.parser.HTMLParser):
    """The elements of a page, with what is wrong with it."""

    VOID = frozenset({"meta", "link", "img", "br", "wbr"})
    CLOSED = frozenset({"line", "circle", "rect", "path", "polyline"})
    OTHERS = (
        "html head title style body main header h1 h2 h3 p strong section table caption thead tbody tr th td span i "
        "b div figure figcaption svg text ul li bdi details summary code footer"
    )
    ALLOWED = VOID | CLOSED | set(OTHERS.split(" "))

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.elements: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        self.wrong += [f"never closed: {tag}" for tag in self.open]

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        if tag not in self.ALLOWED or len(set(names)) < len(names):
            self.wrong.append(f"{tag} {names}")
        for name, value in attributes:
            if name.startswith("on") or name in ("srcset", "action", "formaction", "background", "xlink:href", "ping"):
                self.wrong.append(f"{tag} {name}={value!r:.60}")
            if name in ("src", "href") and not (value or "").startswith("data:"):
                self.wrong.append(f"{tag} loads {value!r:.60}")
            if name == "style" and not re.fullmatch(r"(max-)?width:[\d.]+(%|px)", value or ""):
                self.wrong.append(f"{tag} style={value!r:.60}")
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        if tag not in self.CLOSED:
            self.wrong.append(f"{tag} closes itself")
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag):
        if not self.open or self.open[-1] != tag:
            self.wrong.append(f"</{tag}> inside {self.open[-2:]}")
        else:
            self.open.pop()

    def handle_comment(self, data):
        self.wrong.append(f"a comment {data!r:.40}")

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).replace("\u00a0", " ").split())


def checked(report) -> Page:
    text = model_report_html.to_html(report)
    text.encode("utf-8")
    assert text.startswith("<!DOCTYPE html>\n<html lang=")
    page = Page(text)
    assert page.wrong == []
    assert "url(" not in text.split("</style>")[0]
    assert "@import" not in text
    return page


def tables(markdown: str) -> list[list[list[str]]]:
    """The tables of a Markdown text, split at bars that are not escaped, as GitHub splits them."""
    found: list[list[list[str]]] = [[]]
    for line in markdown.split("\n"):
        if line.startswith("| "):
            found[-1].append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        elif found[-1]:
            found.append([])
    return [t for t in found if t]


def assert_tables_are_whole(markdown: str) -> int:
    found = tables(markdown)
    for rows in found:
        assert len({len(row) for row in rows}) == 1, rows
        assert all(set(cell) <= set("-:") and "---" in cell for cell in rows[1])
        assert len(rows) > 2
    return len(found)


def rendered(markdown: str) -> list[str]:
    """The texts of a Markdown document as a reader of Markdown shows them, piece by piece; fails if one became more."""
    reader = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"])
    pieces, tokens = [], reader.parse(markdown)
    assert [token.type for token in tokens].count("hr") == 1, "the one above the last line"
    for token in tokens:
        assert token.type not in ("html_block", "code_block", "fence", "blockquote_open", "ordered_list_open"), token
        if token.type == "inline":
            kinds = {child.type for child in token.children}
            assert kinds <= {"text", "text_special", "code_inline", "strong_open", "strong_close"}, kinds
            pieces.append("".join(child.content for child in token.children))
    return pieces
