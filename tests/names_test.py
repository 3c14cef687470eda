"""One name, one thing: no two public classes or type aliases of the package share a name."""

import ast
import pathlib
import sys
import typing

PACKAGE = pathlib.Path(__file__).resolve().parents[1] / "mvp_jax"

ALLOWED = {"Settings"}
"""One for each method, in the method's own module."""

NOT_SHADOWED = set(typing.__all__) - {"Pattern", "Text"}
"""`typing`'s own names but for those of `re.Pattern` and `str`, which nobody takes from there."""


def definitions(source: str) -> set[str]:
    """Public classes and type aliases at the top of a module: classes of all kinds, `X: TypeAlias = ...`,
    `X = Literal[...]`, `X = Callable[...]`, and `type X = ...`.
    """
    found = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef | getattr(ast, "TypeAlias", ast.ClassDef)):
            found.add(node.name if isinstance(node, ast.ClassDef) else node.name.id)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            if ast.unparse(node.annotation).rpartition(".")[2] == "TypeAlias":
                found.add(node.target.id)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name, value = node.targets[0].id, node.value
            # An alias without an annotation is written like a class and subscripts a type.
            if name[:1].isupper() and not name.isupper() and isinstance(value, ast.Subscript | ast.BinOp):
                found.add(name)
    return {name for name in found if not name.startswith("_")}


def places() -> dict[str, list[str]]:
    """The files that define each name."""
    found: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for name in definitions(path.read_text()):
            found.setdefault(name, []).append(path.relative_to(PACKAGE).as_posix())
    return found


def test_no_two_public_classes_or_aliases_share_a_name():
    twice = {name: files for name, files in places().items() if len(files) > 1 and name not in ALLOWED}
    assert twice == {}, f"rename all but one of these for what they are: {twice}"


def test_names_of_typing_are_not_shadowed():
    # `Array`, `Key` and other names of JAX's are aliases of the same thing; these would be something else.
    shadowing = {name: files for name, files in places().items() if name in NOT_SHADOWED}
    assert shadowing == {}, f"these are other things in `typing`: {shadowing}"


def test_the_exception_is_still_needed():
    assert len(places()["Settings"]) > 1


def test_the_parser_sees_all_kinds():
    source = """
class A(NamedTuple): ...
@dataclasses.dataclass
class B: ...
C: TypeAlias = dict[str, int]
Dee = Literal["a", "b"]
E: typing.TypeAlias = int
_F: TypeAlias = int
G = 3
h = Callable[[int], int]
def i():
    class J: ...
T = TypeVar("T")
LIMITS = {"a": 1}["a"]
"""
    assert definitions(source) == {"A", "B", "C", "Dee", "E"}
    if sys.version_info >= (3, 12):
        assert definitions("type K = int") == {"K"}
