"""How the package is built: its layers, who imports whom, and whether the Python blocks of the pages type-check.

It imports only the standard library, because tests/test_architecture.py and benchmarks.structure.architecture load it.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src"
PACKAGE = "tagseg"
FACADE = (PACKAGE, f"{PACKAGE}.__main__")
"""Modules above all layers: they import from anywhere, and no module of the package imports them."""

Imports = Mapping[str, frozenset[str]]
"""Module -> the modules of the package that it imports, wherever the import stands in the file."""


def documented_layers(page: Path = ROOT / "docs/architecture.md") -> list[str]:
    """Return the names of the layers from the table in docs/architecture.md, the lowest first.

    A row begins with `name/` for a folder or `name.py` for a module of the package root.
    """
    table = page.read_text(encoding="utf-8").partition("\n## Layers\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| `(\w+)(?:/|\.py)` \|", table, re.MULTILINE)


def actual_layers(source: Path = SOURCE) -> set[str]:
    """Return the names of all folders and modules at the package root that must be a layer."""
    names = {path.stem for path in (source / PACKAGE).glob("*.py")} - {"__init__", "__main__"}
    return names | {path.parent.name for path in (source / PACKAGE).glob("*/*.py")}


def imports(source: Path = SOURCE) -> dict[str, frozenset[str]]:
    """Return which modules of the package each of its modules imports, lazy and TYPE_CHECKING imports included."""
    files = {_module(path.relative_to(source)): path for path in sorted((source / PACKAGE).rglob("*.py"))}
    return {
        name: frozenset(_targets(ast.parse(path.read_text(encoding="utf-8")), name, path, set(files)) - {name})
        for name, path in files.items()
    }


def _module(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def _targets(tree: ast.Module, module: str, path: Path, modules: set[str]) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = module if path.name == "__init__.py" else module.rpartition(".")[0]
            up = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*up, *([node.module] if node.module else [])])
            # `from tagseg.data import read` imports a module; `from tagseg.data.read import x` a name of one.
            found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in modules else base for alias in node.names}
    return found & modules


def layer(module: str) -> str:
    """Return the layer of a module: the folder or module below the package root."""
    return module.split(".")[1] if "." in module else module


def backward_imports(graph: Imports, layers: list[str]) -> list[tuple[str, str]]:
    """Return the imports (importer, imported) of a module that is in a later layer, or of the package itself."""
    rank = {name: place for place, name in enumerate(layers)}
    return [
        (module, target)
        for module, targets in graph.items()
        if module not in FACADE
        for target in sorted(targets)
        if target in FACADE or rank[layer(target)] > rank[layer(module)]
    ]


def cycles(graph: Imports) -> list[list[str]]:
    """Return the groups of two or more modules that import one another, directly or through others."""
    reached = {module: _reachable(graph, module) for module in graph}
    groups = {
        tuple(sorted(other for other in reached[module] if module in reached[other]))
        for module in graph
        if module in reached[module]
    }
    return sorted(map(list, groups))


def _reachable(graph: Imports, start: str) -> set[str]:
    seen: set[str] = set()
    todo = list(graph[start])
    while todo:
        module = todo.pop()
        if module not in seen:
            seen.add(module)
            todo.extend(graph[module])
    return seen


def long_functions(path: Path, lines: int) -> int:
    """Return the number of functions in a file that have more than `lines` lines, from `def` to their end."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return sum((node.end_lineno or node.lineno) - node.lineno + 1 > lines for node in functions)


def pages() -> list[Path]:
    """Return README.md and the pages of docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def python_blocks(text: str) -> Iterator[str]:
    """Yield the Python code blocks of a page, in order."""
    for match in re.finditer(r"^```python\n(.*?)^```[ ]*$", text, re.MULTILINE | re.DOTALL):
        yield match[1]


def type_errors_of_pages(folder: Path) -> list[str]:
    """Check the Python blocks of all pages by `mypy --strict` and return its error lines.

    The blocks of a page are one module, as a reader runs them; the modules are written to `folder`.
    """
    modules = []
    for page in pages():
        blocks = list(python_blocks(page.read_text(encoding="utf-8")))
        if blocks:
            modules.append(folder / f"page_{page.stem.lower()}.py")
            modules[-1].write_text("\n".join(blocks), encoding="utf-8")
    return type_errors(*map(str, modules))


def type_errors(*files: str) -> list[str]:
    """Return the error lines of `mypy` with the project's strict settings, for the package or for `files`."""
    command = [sys.executable, "-m", "mypy", "--no-color-output", "--no-error-summary", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    errors = [line for line in lines if ": error:" in line]
    if done.returncode > 1 or (done.returncode == 1 and not errors):
        raise RuntimeError(f"mypy failed: {done.stdout}{done.stderr}")
    return errors
