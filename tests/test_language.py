"""Texts are plain present-day English: expressions that read like a translation stay out of the files listed here."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

THING = (
    "(image|class|tag|run|seed|line|file|mask|map|row|column|name|label|stage|epoch|step|batch|array|process|window|share|"
    "score|GPU|core|second)"
)

AVOIDED = {
    r"\banew\b": "again",
    rf"(?<!there\s)\b(is|are) no ({THING[1:-1]}|folder|number|setting|text|list|table|archive|fault)s?\b": "is not a",
    r"\bcannot be had\b": "is not available",
    r"\bhow it is had\b": "how to get it",
    rf"\ban? {THING} each\b": "one per ...",
    rf"\ban? {THING} an? {THING}\b": "one ... per ...",
    rf"\bbehind (the|its|every|each|an?|that) ((last|finished|next) )*({THING[1:-1]}|shard|training|masks)\b": "after",
    r"\bgo(es)? on (behind|where|with|from)\b": "resumes",
    r"\btaken up (again|where)\b": "resumes",
    r"\bbeside one another\b": "next to each other",
    r"\bso many, that\b": "so many that",
    r"\bcomes? to nothing\b": "fails",
    r"\b(is|are) at work\b": "runs, works",
    r"\bas (they|it|he) (say|says|said)\b": "according to",
    r"\bthat (is|are) there already\b": "existing",
    r"\bare taken as said\b": "are assumed to be correct",
    r"\bnobody looked through\b": "unreviewed",
    r"\bSo many lines\b": "Number of lines",
}
"""Regular expression -> what to write instead."""

SPACE = r"(?:[ \t]+|[ \t]*\n[ \t]*(?:#[ \t]*)?)"
"""What a space in a pattern stands for: blanks or the end of a line, but not an empty line."""

CHECKED = (
    "README.md",
    "CHANGELOG.md",
    "docs/*.md",
    "docs/*.py",
    "examples/*.py",
    "benchmarks/**/*.py",
    "src/tagseg/**/*.py",
)
"""Where these expressions are not allowed."""


def found(text: str) -> list[str]:
    """Return the avoided expressions of a text, each with its line and what to write instead."""
    hits = []
    for pattern, better in AVOIDED.items():
        for match in re.finditer(pattern.replace(" ", SPACE), text, re.IGNORECASE):
            line = text.count("\n", 0, match.start()) + 1
            hits.append(f"{line}: {' '.join(match[0].split())!r}; write {better!r}")
    return hits


def test_avoided_expressions_are_found_across_lines() -> None:
    assert found("It is made\n    # anew, by hand.\n") == ["2: 'anew'; write 'again'"]
    assert found("One row\nper image.\n    A row\n    an image.") == ["3: 'A row an image'; write 'one ... per ...'"]
    assert found("## A run\n\nEach file") == found("where there is no class") == []
    assert found("# It goes\n    # on where it stopped") == ["1: 'goes # on where'; write 'resumes'"]


def files() -> list[Path]:
    """Return the files that are checked."""
    return sorted({path for pattern in CHECKED for path in ROOT.glob(pattern) if path.is_file()})


def test_every_kind_of_file_is_checked() -> None:
    assert [pattern for pattern in CHECKED if not list(ROOT.glob(pattern))] == []


@pytest.mark.parametrize("path", files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_text_is_plain_english(path: Path) -> None:
    assert found(path.read_text(encoding="utf-8")) == []
