"""Docstrings as MyST Markdown.

The package's docstrings are Markdown with Google's sections. What Markdown lacks is added here: sections become field
lists, examples become fenced blocks, and paper numbers become links.
"""

import inspect
import re
import textwrap

FIELDS = {"Args": "param", "Attributes": "var", "Raises": "raises", "Warns": "warns"}
"""Sections of entries, and the name of a field for one entry."""

TEXTS = {"Returns": "returns", "Yields": "returns"}
"""Sections of plain text, and their field."""

_SECTION = re.compile(rf"^({'|'.join([*FIELDS, *TEXTS])}):\s*$")
_ENTRY = re.compile(r"^(\*{0,2}[\w.]+(?:, \*{0,2}[\w.]+)*): ?(.*)$")


def _linked(text: str) -> str:
    """Paper numbers and addresses become links, and what HTML would swallow is escaped, outside code."""
    parts = re.split(r"(`+[^`]*`+)", text)
    for i in range(0, len(parts), 2):
        part = re.sub(r"<(?=[A-Za-z/!])", r"\\<", parts[i])
        part = re.sub(r"(?<![\w/(<])(https?://[^\s)>\]]+[^\s)>\].,;:])", r"<\1>", part)
        parts[i] = re.sub(r"\barXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", part)
    return "".join(parts)


def body(lines: list[str]) -> list[str]:
    """Text with examples: `>>>` begins one, an empty line ends it, as for `doctest`.

    Args:
        lines: without common indentation.
    """
    found: list[str] = []
    text: list[str] = []
    at = 0
    while at < len(lines):
        if not lines[at].lstrip().startswith(">>> "):
            text.append(lines[at])
            at += 1
            continue
        found += _linked("\n".join(text)).split("\n") if text else []
        text = []
        indent = " " * (len(lines[at]) - len(lines[at].lstrip()))
        if found and found[-1].strip():
            found.append("")
        found.append(f"{indent}```pycon")
        while at < len(lines) and lines[at].strip():
            found.append(lines[at])
            at += 1
        found += [f"{indent}```", ""]
    found += _linked("\n".join(text)).split("\n") if text else []
    return found


def _field(name: str, lines: list[str]) -> list[str]:
    """One field, its text indented below its first line."""
    while lines and not lines[-1].strip():
        lines = lines[:-1]
    written = body(lines)
    head, rest = (written[0], written[1:]) if written else ("", [])
    return [f":{name}: {head}".rstrip(), *(f"    {line}".rstrip() for line in rest)]


def entries(lines: list[str]) -> dict[str, list[str]]:
    """The entries of a section, by name; what stands before the first has the name "".

    Args:
        lines: the section's lines, without common indentation.
    """
    found: dict[str, list[str]] = {}
    name = ""
    for line in lines:
        match = _ENTRY.match(line)
        if match:
            name = match[1]
            found[name] = [match[2]]
        else:
            found.setdefault(name, []).append(line)
    for name, text in found.items():
        found[name] = [text[0].strip(), *textwrap.dedent("\n".join(text[1:])).split("\n")] if name else text
        while found[name] and not found[name][-1].strip():
            found[name].pop()
    return {name: text for name, text in found.items() if text}


def sections(docstring: str) -> list[tuple[str, list[str]]]:
    """A docstring's parts in their order, `(section, lines)`; the section is "" for text between sections.

    Args:
        docstring: as it stands in the file.

    >>> sections('Sums.' + chr(10) * 2 + 'Args:' + chr(10) + '    x: what to sum.' + chr(10) * 2 + 'More.')
    [('', ['Sums.', '']), ('Args', ['x: what to sum.', '']), ('', ['More.'])]
    """
    found: list[tuple[str, list[str]]] = [("", [])]
    for line in inspect.cleandoc(docstring).split("\n"):
        match = _SECTION.match(line)
        if match:
            found.append((match[1], []))
        elif found[-1][0] and line.strip() and not line.startswith(" "):
            found.append(("", [line]))
        else:
            found[-1][1].append(line)
    return [(name, textwrap.dedent("\n".join(lines)).split("\n") if name else lines) for name, lines in found if lines]


def to_myst(docstring: str, without: tuple[str, ...] = ()) -> list[str]:
    """A docstring as lines of MyST.

    Args:
        docstring: as it stands in the file.
        without: sections to leave out.
    """
    found: list[str] = []
    open_fields = False
    for name, lines in sections(docstring):
        if name in without:
            continue
        if name and not open_fields and found and found[-1].strip():
            found.append("")
        if name in TEXTS:
            found += _field(TEXTS[name], lines)
        elif name:
            for entry, text in entries(lines).items():
                found += _field(f"{FIELDS[name]} {entry}".strip(), text)
        else:
            if open_fields:
                found.append("")
            found += body(lines)
        open_fields = bool(name)
    return found


def summary(docstring: str) -> str:
    """The first sentence, on one line, for a table.

    Args:
        docstring: as it stands in the file.

    >>> summary('Sums `a.b`, e.g. arrays. Then more.')
    'Sums `a.b`, e.g. arrays.'
    """
    first = " ".join(inspect.cleandoc(docstring).split("\n\n")[0].split())
    match = re.match(r"(?:`[^`]*`|[^`])*?(?<!e\.g)(?<!i\.e)[.!?](?=\s+[A-Z`]|$)", first)
    text = match[0] if match else first
    return _linked(text).replace("|", "\\|")
