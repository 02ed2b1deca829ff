"""Texts are plain present-day English: expressions that read like a translation stay out of the files listed here."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

AVOIDED = {
    r"\banew\b": "again",
    r"\bis no (file|folder|image|mask|map|number|class|setting|run|text|list|table|tar|archive|python|fault)s?\b": "is not a",
    r"\bcannot be had\b": "is not available",
    r"\bcan be had\b": "is available",
    r"\bhow it is had\b": "how to get it",
    r"\ban? (image|class|tag|run|seed|line|file|mask|map|row|stage|epoch|step|batch|array|process|GPU|core|second) each\b": (
        "one per ..."
    ),
    r"\ba (line|row|file|map|mask|tag|column|process|name|process|share|window) an? "
    r"(image|class|tag|run|line|row|stage|core|score|GPU|label|seed)\b": "one ... per ...",
    r"\bbehind (the|its|their|every|each|a|an|that|it|what|whichever) "
    r"(last |finished |next )*(step|epoch|run|stage|batch|line|image|shard|network|masks?|training|finished)\b": "after",
    r"\bgo(es)? on (behind|where|with|from)\b": "resumes",
    r"\btaken up (again|where)\b": "resumes",
    r"\bbeside one another\b": "next to each other",
    r"\bso many, that\b": "so many that",
    r"\bcome(s)? to nothing\b": "fails",
    r"\b(is|are) at work\b": "runs, works",
    r"\bas (they|it|he) (say|says|said)\b": "according to",
    r"\bthat (is|are) there already\b": "existing",
    r"\b(is|are) taken as said\b": "is assumed to be correct",
    r"\bnobody looked through\b": "unreviewed",
    r"\bsaid to be\b": "",
}
"""Regular expression -> what to write instead."""

CHECKED = ("README.md", "CHANGELOG.md", "docs/*.md", "docs/*.py", "examples/*.py", "benchmarks/**/*.py")
"""Where new text is held to this."""

RECORDED = {"docs/benchmarks.md", "docs/what_was_tried.md"}


def found(text: str) -> list[str]:
    """Return the avoided expressions of a text with their lines, also where one is broken by the end of a line."""
    flat = re.sub(r"\s*\n[ #]*", lambda gap: " " * len(gap[0]), text)
    hits = [(match, better) for pattern, better in AVOIDED.items() for match in re.finditer(pattern, flat, re.IGNORECASE)]
    lines = [text.count("\n", 0, match.start()) + 1 for match, _ in hits]
    return [f"{line}: {match[0]!r}; write {better!r}" for line, (match, better) in zip(lines, hits, strict=True)]


def files() -> list[Path]:
    """Return the files that are checked."""
    return sorted({path for pattern in CHECKED for path in ROOT.glob(pattern) if path.is_file()})


@pytest.mark.parametrize("path", files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_text_is_plain_english(path: Path) -> None:
    assert found(path.read_text(encoding="utf-8")) == []
