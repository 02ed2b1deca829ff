"""Imports point one way: a layer imports only from layers above it in the table of docs/architecture.md."""

import ast
import importlib.util
import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
MOST_ROOT_MODULES = 6


@pytest.fixture(scope="module")
def checks() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "benchmarks/structure/checks.py"))


@pytest.fixture(scope="module")
def graph(checks: dict[str, Any]) -> dict[str, frozenset[str]]:
    found: dict[str, frozenset[str]] = checks["imports"]()
    return found


def package(folder: Path, **files: str) -> Path:
    """Write a package `tagseg` with the given modules; `data__read` is data/read.py."""
    (folder / "tagseg").mkdir()
    (folder / "tagseg/__init__.py").touch()
    for name, text in files.items():
        file = folder / "tagseg" / f"{name.replace('__', '/')}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    return folder


def test_the_documented_layers_are_the_folders_and_modules_of_the_package(checks: dict[str, Any]) -> None:
    documented = checks["documented_layers"]()
    assert len(documented) == len(set(documented))
    assert set(documented) == checks["actual_layers"]()


def test_no_layer_imports_from_a_later_one(checks: dict[str, Any], graph: dict[str, frozenset[str]]) -> None:
    assert sum(map(len, graph.values())) > 500
    assert checks["backward_imports"](graph, checks["documented_layers"]()) == []


def test_no_modules_import_one_another(checks: dict[str, Any], graph: dict[str, frozenset[str]]) -> None:
    assert checks["cycles"](graph) == []


def test_few_modules_are_at_the_package_root() -> None:
    modules = sorted(path.name for path in (ROOT / "src/tagseg").glob("*.py"))
    assert len(modules) <= MOST_ROOT_MODULES, modules


def test_every_kind_of_import_is_found(checks: dict[str, Any], tmp_path: Path) -> None:
    source = package(
        tmp_path,
        errors="import os",
        data__read="from tagseg.errors import DataError",
        data__write="from . import read\nfrom ..errors import DataError",
        rca__train="def f():\n    from tagseg.data import read, missing\n",
        rca__bank="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import tagseg.data.read as r\n",
    )
    found = checks["imports"](source)
    assert found["tagseg.errors"] == frozenset()
    assert found["tagseg.data.read"] == {"tagseg.errors"}
    assert found["tagseg.data.write"] == {"tagseg.data.read", "tagseg.errors"}
    assert found["tagseg.rca.train"] == {"tagseg.data.read"}
    assert found["tagseg.rca.bank"] == {"tagseg.data.read"}


def test_backward_imports_and_cycles_are_found(checks: dict[str, Any], tmp_path: Path) -> None:
    source = package(
        tmp_path,
        errors="",
        data__read="def f():\n    import tagseg.rca.train\n",
        data__write="import tagseg",
        rca__train="from tagseg.rca import bank",
        rca__bank="from tagseg.data import read",
        rca__regions="from tagseg.rca import bank",
    )
    found = checks["imports"](source)
    assert checks["backward_imports"](found, ["errors", "data", "rca"]) == [
        ("tagseg.data.read", "tagseg.rca.train"),
        ("tagseg.data.write", "tagseg"),
    ]
    assert checks["cycles"](found) == [["tagseg.data.read", "tagseg.rca.bank", "tagseg.rca.train"]]
    assert checks["actual_layers"](source) == {"errors", "data", "rca"}


COMMANDS = {
    *("ablate", "atlas", "bench", "calibrate", "evaluate", "export", "export_model", "fit", "inspect", "localise"),
    *("predict", "push", "report", "review", "teach", "train"),
}
"""Functions of the command line that bear the name of the function that they call."""


def test_a_public_name_is_defined_in_one_module_only() -> None:
    defined: dict[str, set[str]] = {}
    for path in sorted((ROOT / "src/tagseg").rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [node.name] if isinstance(node, ast.FunctionDef | ast.ClassDef) else []
            if isinstance(node, ast.Assign) and not _is_type_variable(node.value):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            for name in names:
                if not name.startswith("_") and name != "log":
                    defined.setdefault(name, set()).add(str(path.relative_to(ROOT / "src/tagseg")))
    assert len(defined) > 500
    twice = {name: files for name, files in defined.items() if len(files) > 1}
    assert {name: files for name, files in twice.items() if name not in COMMANDS} == {}
    assert all(any(file.startswith("cli/") for file in twice[name]) for name in COMMANDS)


def _is_type_variable(value: ast.expr) -> bool:
    return isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "TypeVar"


@pytest.mark.parametrize("folder", ["benchmarks", "examples"])
def test_what_scripts_import_from_the_project_is_there(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They run for hours, or rarely: a name that was moved away would be noticed late."""
    monkeypatch.syspath_prepend(str(ROOT))
    missing = []
    for file in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("tagseg", "benchmarks"):
                module = importlib.import_module(str(node.module))
                names = [one.name for one in node.names if not hasattr(module, one.name)]
                missing += [
                    f"{file.relative_to(ROOT)}: {node.module}.{name}"
                    for name in names
                    if importlib.util.find_spec(f"{node.module}.{name}") is None
                ]
    assert not missing
