"""Which pixels survive in other tools: holes, islands and single lines, through each tool and back.

    python -m benchmarks.interop.survival --environments DIR

DIR holds an environment per tool (`uv venv DIR/NAME`, `uv pip install NAME`, without a version: the newest one). A
script of tests/foreign/survival puts each shape through the tool by the ways that it offers, and the pixels that come
back are counted. Polygons and run-length codes are drawn by pycocotools. Tools that are not installed are recorded with
null.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.harness import ROOT, record
from pycocotools import mask as rle

TOOLS = ROOT / "tests/foreign/survival"
SIDE = 64


def main() -> None:
    """Put every shape through every tool that is installed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", type=Path, required=True)
    environments = parser.parse_args().environments
    shapes = drawn()
    figures: dict[str, Any] = {}
    for script in sorted(TOOLS.glob("by_*.py")):
        python = environments / tool_of(script) / "bin/python"
        figures[tool_of(script)] = survives(python, script, shapes) if python.exists() else None
        print(script.stem, figures[tool_of(script)], flush=True)
    sizes = {name: int(shape.sum()) for name, shape in shapes.items()}
    print(record("survival", [], {"pixels": sizes, "tools": figures}, table(sizes, figures)))


def tool_of(script: Path) -> str:
    """Return the name of the tool of a script, by_NAME.py."""
    return script.stem.removeprefix("by_").replace("_", "-")


def drawn() -> dict[str, np.ndarray]:
    """Return the shapes, 64 x 64: one class each."""
    empty = np.zeros((SIDE, SIDE), np.uint8)
    hole, island, corner, line, diagonal, dot = (empty.copy() for _ in range(6))
    hole[10:50, 10:50] = 1
    hole[20:40, 20:40] = 0
    island[hole > 0] = 1
    island[26:34, 26:34] = 1
    corner[8:24, 8:24], corner[24:40, 24:40] = 1, 1
    line[30, 5:60] = 1
    np.fill_diagonal(diagonal[5:60, 5:60], 1)
    dot[31, 17] = 1
    return {"hole": hole, "island in a hole": island, "corner": corner, "line": line, "diagonal": diagonal, "dot": dot}


def survives(python: Path, script: Path, shapes: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return a tool's version, and the wrong pixels of every shape by every way (a text if there is an error)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "shapes.npz", **shapes)
        done = subprocess.run(
            [python, script, folder / "shapes.npz", folder / "found.json"], capture_output=True, text=True, cwd=folder,
            timeout=600,
        )  # fmt: skip
        if done.returncode:
            return {"error": (done.stderr.strip() or done.stdout.strip()).splitlines()[-1][:200]}
        found = json.loads((folder / "found.json").read_text())
    ways = {
        way: {shape: wrong(come, shapes[shape]) for shape, come in results.items()}
        for way, results in found["ways"].items()
    }
    return {"version": found["version"], "ways": ways}


def wrong(come: Any, shape: np.ndarray) -> int | str:
    """Return how many pixels differ in what came back: rows of a mask, COCO segmentations, or the text of an error."""
    if isinstance(come, str):
        return come
    if come["kind"] == "mask":
        return int((np.array(come["mask"], np.uint8) != shape).sum())
    mask = np.zeros_like(shape)
    for one in come["segmentations"]:
        if isinstance(one, list):  # a polygon needs three points
            one = [polygon for polygon in one if len(polygon) >= 6]
            if not one:
                continue
        codes = rle.frPyObjects(one, *shape.shape) if isinstance(one, list) or isinstance(one["counts"], list) else one
        mask |= rle.decode(rle.merge(codes) if isinstance(codes, list) else codes)
    return int((mask != shape).sum())


def table(sizes: dict[str, int], figures: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    rows = [
        f"| tool, way | {' | '.join(f'{name} ({size})' for name, size in sizes.items())} |",
        "|---|" + "---:|" * len(sizes),
    ]
    for tool, told in figures.items():
        if told is None or "error" in told:
            rows.append(f"| {tool}: {'not installed' if told is None else told['error']} |" + " |" * len(sizes))
            continue
        for way, found in told["ways"].items():
            rows.append(f"| {tool} {told['version']}, {way} | {' | '.join(str(found[name]) for name in sizes)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
