"""What README.md says about the project is so."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "src/tagseg/"


def fenced(text: str) -> list[str]:
    """Return the contents of the fenced code blocks."""
    return re.findall(r"^[ ]*```[^\n]*\n(.*?)^[ ]*```[ ]*$", text, re.MULTILINE | re.DOTALL)


def commands(text: str, program: str) -> set[str]:
    """Return the words that follow `program` at the start of a line of a code block, or of an inline piece of code."""
    pieces = [line for block in fenced(text) for line in block.splitlines()]
    pieces += re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)
    pattern = re.compile(rf"\s*(?:\$ )?(?:\S+=\S* )*(?:\S*/)?{program} +([a-z][a-z-]*)\b")
    return {match[1] for piece in pieces for part in re.split(r"&&|;", piece) if (match := pattern.match(part))}


def package_tree(text: str) -> dict[str, str]:
    """Return path below the repository -> description, from the code block that draws the package.

    Depth is read from where a name starts, after spaces or box-drawing characters; a name that ends in / is a folder.
    """
    (block,) = (block for block in fenced(text) if re.search(rf"^{re.escape(PACKAGE)}", block, re.MULTILINE))
    lines = block[block.index(PACKAGE) :].splitlines()
    entries: dict[str, str] = {}
    parents: list[tuple[int, str]] = [(-1, PACKAGE)]
    for line in lines[1:]:
        match = re.match(r"[\s│├└─|`+-]*", line)
        assert match is not None
        depth = match.end()
        if depth == 0:
            break
        if depth == len(line):
            continue
        name, _, description = line[depth:].partition(" ")
        while depth <= parents[-1][0]:
            parents.pop()
        path = parents[-1][1] + name
        if name.endswith("/"):
            parents.append((depth, path))
        entries[path] = description.strip(" #\t")
    return entries


def local_links(text: str) -> set[str]:
    """Return the targets of links and pictures that lie in the repository, without their anchors."""
    prose = re.sub(r"^[ ]*```.*?^[ ]*```[ ]*$", "", text, flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(\s*<?([^)\s>]+)", prose) + re.findall(r"\b(?:src|href|srcset)=[\"']([^\"']+)", prose)
    targets += re.findall(r"^\[[^\]]+\]:\s*(\S+)", prose, re.MULTILINE)
    return {target.partition("#")[0] for target in targets if not re.match(r"[a-z]+:|#|//", target)}


@pytest.fixture(scope="module")
def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_make_target_exists(readme: str) -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = commands(readme, "make")
    assert {"demo", "test"} <= named
    assert named <= targets


def test_every_command_exists(readme: str) -> None:
    environment = os.environ | {"COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run(
        [sys.executable, "-m", "tagseg", "--help"], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    known = set(re.findall(r"^\W*([a-z][a-z-]*)(?=\s)", done.stdout, re.MULTILINE))
    named = commands(readme, "tagseg")
    assert {"fit", "predict"} <= named
    assert named <= known


def test_the_package_tree_is_the_package(readme: str) -> None:
    tree = package_tree(readme)
    modules = {
        path.relative_to(ROOT).as_posix() for path in (ROOT / PACKAGE).rglob("*.py") if path.name != "__init__.py"
    }
    assert {path for path in tree if path.endswith(".py") and not path.endswith("__init__.py")} == modules
    assert [path for path in tree if not (ROOT / path).exists()] == []
    assert [path for path, description in tree.items() if path.endswith(".py") and not description] == []


def test_every_local_link_and_picture_exists(readme: str) -> None:
    assert [target for target in sorted(local_links(readme)) if not (ROOT / target).exists()] == []


@pytest.mark.parametrize(
    "drawing",
    [
        "src/tagseg/\n  cli.py     commands\n  data/      readers\n    voc.py   the devkit\n  run.py     the file",
        "src/tagseg/\n├── cli.py # commands\n├── data/ # readers\n│   └── voc.py  # the devkit\n└── run.py  # the file",
    ],
    ids=["spaces", "boxes"],
)
def test_package_trees_are_read_as_drawn(drawing: str) -> None:
    assert package_tree(f"Text\n\n```sh\nmake demo\n```\n\n```\n{drawing}\ntests/  mirror it\n```\n") == {
        "src/tagseg/cli.py": "commands",
        "src/tagseg/data/": "readers",
        "src/tagseg/data/voc.py": "the devkit",
        "src/tagseg/run.py": "the file",
    }


def test_commands_and_links_are_found() -> None:
    text = (
        "Run `make demo`, see [map](docs/map.md#top), [site](https://example.org) and ![p](a.png).\n\n"
        "```sh\n$ .venv/bin/tagseg fit DATA --out RUN && tagseg predict RUN NEW\nPYTHON=python3.12 make test\n"
        "tagseg --help\necho make nothing  # [x](none.md)\n```\n"
    )
    assert commands(text, "make") == {"demo", "test"}
    assert commands(text, "tagseg") == {"fit", "predict"}
    assert local_links(text) == {"docs/map.md", "a.png"}
