"""Write the pages that are generated: Benchmarks from benchmarks/results, the notebook from its cells.

    python docs/pages.py

A result that is not in SECTIONS goes into the last section. `make docs` runs this; a test compares.
"""

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
NOTEBOOK = ROOT / "examples" / "notebook.py"

SECTIONS = {
    "Accuracy": ("voc_animals", "domains", "rivals", "segmenter", "quality", "demo"),
    "Ablations": ("ablation_voc_animals", "ablation_voc_animals_crf", "masks"),
    "Cost of a step, memory, and their growth with classes": ("step_cost",),
    "Throughput and memory": ("predict", "crf", "passes", "mass_labelling", "mass_labelling_onnxruntime"),
    "Scaling with images": ("scale", "review"),
    "Reliability": ("faults", "scarcity", "mutations", "fuzz", "release"),
    "Other tools": ("interop",),
    "Code": ("architecture",),
}
REST = "Other results"

LEAD = """\
# Benchmarks

Every figure that tagseg reports, with the command that measured it, the machine, the seeds and the versions.
`python docs/pages.py` generates this page from `benchmarks/results`.

Seconds are from a machine with two cores on which other work often ran. For ratios the two sides took turns, which
hardly affects them. Commands are quoted as they were given: those of version 0.1 name `benchmarks/NAME.py`, which now
is a module in one of the folders of `benchmarks`. [Results](results.md) says how settings were chosen, and on which
images.
"""


def benchmarks_page() -> str:
    """Return the page of all results, each with how it was measured."""
    found = sorted(path.stem for path in RESULTS.glob("*.json"))
    placed = {name for names in SECTIONS.values() for name in names}
    sections = SECTIONS | {REST: tuple(name for name in found if name not in placed)}
    parts = [LEAD]
    for title, names in sections.items():
        there = [name for name in names if name in found]
        if there:
            parts += [f"## {title}\n", *map(result, there)]
    return "\n".join(parts)


def result(name: str) -> str:
    """Return one benchmark's table, and below it the command, machine, seeds and versions that its JSON holds."""
    about = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    table = (RESULTS / f"{name}.md").read_text("utf-8")
    body = table.removeprefix(f"# {name}\n").strip()
    paragraphs = body.split("\n\n")
    if paragraphs[-1].startswith(f"`{about['command']}` on "):  # the foot repeats the JSON
        paragraphs.pop()
    body = re.sub(r"^#", "###", "\n\n".join(paragraphs), flags=re.MULTILINE)
    body = re.sub(r"(!\[[^\]]*\]\()(?![./a-z]*:)", r"\1../benchmarks/results/", body)
    return f"### {name}\n\n{body}\n\n{_foot(about)}\n"


def _foot(about: dict[str, Any]) -> str:
    versions = ", ".join(f"{package} {number}" for package, number in about["versions"].items())
    seeds = {"seeds": ", ".join(map(str, about["seeds"]))} if about["seeds"] else {}
    rows = {"command": f"`{about['command']}`", "machine": about["machine"], **seeds, "versions": versions}
    return "\n".join(["| measured by | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())])


def notebook_page() -> str:
    """Return the notebook as Markdown: its text, and its code as blocks; nothing is run."""
    parts = []
    for head, body in cells(NOTEBOOK.read_text("utf-8")):
        if head == "[markdown]":
            parts.append("\n".join(line.removeprefix("#").removeprefix(" ") for line in body.splitlines()))
        else:
            parts.append(f"```python\n{body}\n```")
    return "\n\n".join(parts) + "\n"


def cells(text: str) -> list[tuple[str, str]]:
    """Return (the text after `# %%`, the lines below it) of every cell of a script in percent format."""
    found = re.split(r"^# %%(.*)\n", text, flags=re.MULTILINE)[1:]
    return [(head.strip(), body.strip("\n")) for head, body in zip(found[::2], found[1::2], strict=True)]


PAGES = {"benchmarks.md": benchmarks_page, "notebook.md": notebook_page}


def main() -> None:
    """Write the pages."""
    for name, page in PAGES.items():
        (ROOT / "docs" / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
