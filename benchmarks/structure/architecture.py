"""How the package is built: modules, directions of imports, cycles, the longest file, type errors.

    python -m benchmarks.structure.architecture
    python -m benchmarks.structure.architecture --test-seconds 900 700 --test-cpu-seconds 1500 1200

The seconds of `make test`, before and after a change on the same machine, are measured by whoever makes the change.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness import record
from benchmarks.structure import checks

TITLES = {
    "modules": "modules",
    "root_modules": "modules at the package root (at most 6)",
    "layers": "layers",
    "imports": "imports within the package",
    "backward_imports": "imports from a later layer",
    "cycles": "groups of modules that import one another",
    "longest_file": "longest file",
    "longest_file_lines": "lines of the longest file",
    "files_above_300_lines": "files with more than 300 lines",
    "functions_above_50_lines": "functions with more than 50 lines",
    "mypy_errors_src": "strict mypy errors in the package",
    "mypy_errors_docs": "strict mypy errors in the Python blocks of README and docs",
    "test_seconds_before": "seconds of `make test` before",
    "test_seconds_after": "seconds of `make test` after",
    "test_cpu_seconds_before": "CPU seconds of `make test` before",
    "test_cpu_seconds_after": "CPU seconds of `make test` after",
}


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag in ("--test-seconds", "--test-cpu-seconds"):
        parser.add_argument(flag, nargs=2, type=float, metavar=("BEFORE", "AFTER"), help="measured by you")
    options = parser.parse_args()
    figures = measured()
    for name in ("test_seconds", "test_cpu_seconds"):
        if given := getattr(options, name):
            figures |= {f"{name}_before": given[0], f"{name}_after": given[1]}
    texts = {name: f"`{value}`" if isinstance(value, str) else f"{value:,}" for name, value in figures.items()}
    rows = [f"| {TITLES[name]} | {text} |" for name, text in texts.items()]
    print(record("architecture", [], figures, "\n".join(["| | |", "|---|---:|", *rows])).read_text(encoding="utf-8"))


def measured() -> dict[str, Any]:
    """Return the figures of the source code as it is."""
    graph, layers = checks.imports(), checks.documented_layers()
    package = checks.SOURCE / checks.PACKAGE
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in package.rglob("*.py")}
    longest = max(lines, key=lambda path: lines[path])
    with tempfile.TemporaryDirectory() as folder:
        page_errors = checks.type_errors_of_pages(Path(folder))
    return {
        "modules": len(lines),
        "root_modules": len(list(package.glob("*.py"))),
        "layers": len(layers),
        "imports": sum(map(len, graph.values())),
        "backward_imports": len(checks.backward_imports(graph, layers)),
        "cycles": len(checks.cycles(graph)),
        "longest_file": longest.relative_to(package).as_posix(),
        "longest_file_lines": lines[longest],
        "files_above_300_lines": sum(count > 300 for count in lines.values()),
        "functions_above_50_lines": sum(checks.long_functions(path, 50) for path in lines),
        "mypy_errors_src": len(checks.type_errors()),
        "mypy_errors_docs": len(page_errors),
    }


if __name__ == "__main__":
    main()
