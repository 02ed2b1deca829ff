"""Environments of the tools that open our exports, one each: their dependencies exclude one another, and ours.

`python tests/foreign/environments.py` builds those that are missing in build/foreign (or TAGSEG_FOREIGN), each with the
newest version.
"""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
FOLDER = Path(os.environ.get("TAGSEG_FOREIGN", HERE.parents[1] / "build" / "foreign"))
TOOLS: dict[str, list[str]] = tomllib.loads((HERE / "tools.toml").read_text())


def python_of(tool: str) -> Path:
    """Return the interpreter of a tool's environment, which may not exist."""
    return FOLDER / tool / "bin" / "python"


def build(tool: str) -> None:
    """Build a tool's environment with the newest versions."""
    uv = Path(sys.executable).with_name("uv")
    subprocess.run([uv, "venv", "--quiet", "--clear", FOLDER / tool], check=True)
    subprocess.run([uv, "pip", "install", "--quiet", "--python", python_of(tool), *TOOLS[tool]], check=True)


def read_with(tool: str, reader: str, export: Path, out: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Let a script of readers/ open an export in a tool's environment.

    It writes `found.json` (the tool's version, its class names) and `masks.npz` (by image, the number of the class name
    from 1) to `out`.
    """
    out.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python_of(tool), HERE / "readers" / f"{reader}.py", export, out],
        capture_output=True, text=True, timeout=300, cwd=out, env=environment | {"YOLO_CONFIG_DIR": str(out)},
    )  # fmt: skip
    if done.returncode:
        raise AssertionError(f"{tool} does not read {export}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    with np.load(out / "masks.npz") as stored:
        return json.loads((out / "found.json").read_text()), dict(stored)


if __name__ == "__main__":
    for name in sys.argv[1:] or TOOLS:
        if not python_of(name).exists():
            print(f"{name}: {', '.join(TOOLS[name])}")  # noqa: T201
            build(name)
