"""What users may rely on is listed in docs/public_api.md, and nothing of it changes unseen.

`python tests/test_public_api.py` rewrites the listing after an intended change.
"""

import ast
import dataclasses
import doctest
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tagseg

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "tagseg"
PAGE = ROOT / "docs" / "public_api.md"
BLOCK = re.compile(r"^```text\n(.*?)^```$", re.DOTALL | re.MULTILINE)
MODULES = sorted(
    ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in SOURCE.rglob("*.py")
    if ">>>" in path.read_text(encoding="utf-8")
)


class _Plain(ast.NodeTransformer):
    """Takes what only the command line reads out of `Annotated[...]`."""

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        if ast.unparse(node.value) == "Annotated" and isinstance(node.slice, ast.Tuple):
            return self.visit(node.slice.elts[0])  # type: ignore[no-any-return]
        return self.generic_visit(node)


def signature(function: ast.FunctionDef) -> str:
    """Return a function's arguments and result as they are written; `self` is left out."""
    arguments = function.args
    if arguments.args and arguments.args[0].arg in ("self", "cls"):
        arguments.args = arguments.args[1:]
    returned = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    return f"({ast.unparse(arguments)}){returned}"


def described(name: str, node: ast.stmt) -> Iterator[str]:
    """Yield the lines that describe a function, or a class with its fields, constructor and public methods."""
    if isinstance(node, ast.FunctionDef):
        yield name + signature(node)
        return
    assert isinstance(node, ast.ClassDef), f"{name} is neither a class nor a function"
    yield f"class {name}({', '.join(map(ast.unparse, node.bases))})"
    for member in node.body:
        if isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name):
            if not member.target.id.startswith("_"):
                yield f"    {ast.unparse(member)}"
        elif isinstance(member, ast.FunctionDef):
            if "property" in map(ast.unparse, member.decorator_list):
                yield f"    {member.name}: {ast.unparse(member.returns)}" if member.returns else ""
            elif member.name in ("__init__", "__call__") or not member.name.startswith("_"):
                yield f"    {member.name}{signature(member)}"


def python_listing() -> str:
    """Return a line for every public name of Python and everything public in it, read from the source."""
    lines = []
    for module, names in tagseg._HOMES.items():
        tree = _Plain().visit(ast.parse((SOURCE / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")))
        defined = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        for name in names:
            lines += [(name.lower(), list(described(name, defined[name])))]
    return "\n".join(line for _, described_lines in sorted(lines) for line in described_lines) + "\n"


def command_listing() -> str:
    """Return a line for every command with its own flags; those of the settings are named like the settings."""
    from tagseg.cli.main import app  # type: ignore[attr-defined]
    from tagseg.settings.settings import Settings

    loose = {
        f"--{one.name}" for one in dataclasses.fields(Settings) if not dataclasses.is_dataclass(one.default_factory)
    }
    lines = []
    for command in sorted(name for name in app if not name.startswith("-")):
        # Arguments with children are the settings and their sections.
        names = [one.names for one in app[command].assemble_argument_collection() if not one.children]
        takes = ("--train.lr",) in names
        own = ["/".join(one) for one in names if not (takes and (one[0] in loose or "." in one[0]))]
        lines.append(f"tagseg {command} {' '.join(own)}{' + settings' if takes else ''}")
    return "\n".join(lines) + "\n"


def test_the_listing_is_what_there_is() -> None:
    listed = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    meant = "; if the change is meant, `python tests/test_public_api.py` rewrites it, and CHANGELOG.md names it"
    assert listed[0] == python_listing(), f"{PAGE.name} does not list what Python users find{meant}"
    assert listed[1] == command_listing(), f"{PAGE.name} does not list the commands{meant}"


def test_a_change_of_a_signature_is_seen() -> None:
    before, after = (ast.parse(f"def f(a: int, b: str = {value}) -> None: ...").body[0] for value in ("'x'", "'y'"))
    assert list(described("f", before)) == ["f(a: int, b: str='x') -> None"] != list(described("f", after))
    kind = ast.parse("class A(B):\n x: int = 1\n _y: int = 2\n def go(self, z: int) -> int: ...\n def _no(self): ...")
    assert list(described("A", kind.body[0])) == ["class A(B)", "    x: int = 1", "    go(z: int) -> int"]


def test_every_public_name_is_there() -> None:
    assert sorted(name for names in tagseg._HOMES.values() for name in names) == sorted(tagseg.__all__)
    for name in tagseg.__all__:
        assert (getattr(tagseg, name).__doc__ or "").strip(), f"{name} has no docstring"
    assert set(tagseg.__all__) <= set(dir(tagseg))
    with pytest.raises(AttributeError, match="module 'tagseg' has no attribute 'nothing'"):
        tagseg.nothing  # noqa: B018


def test_no_submodule_has_a_public_name() -> None:
    # Importing a submodule sets an attribute of the package, which would hide the public function.
    modules = {path.stem for path in SOURCE.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert "data" in modules and modules.isdisjoint(tagseg.__all__)


def test_importing_tagseg_imports_nothing_heavy() -> None:
    code = "import sys, tagseg; print(*sorted({'torch', 'numpy', 'timm', 'PIL', 'numba'} & set(sys.modules)))"
    environment = os.environ | {"PYTHONPATH": str(SOURCE.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_in_docstrings_are_so(module: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(module))
    assert not failed and tried


if __name__ == "__main__":
    listings = iter((python_listing(), command_listing()))
    page = BLOCK.sub(lambda _: f"```text\n{next(listings)}```", PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(page, encoding="utf-8")
