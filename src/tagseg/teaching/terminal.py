"""The lesson as text: what a question says, and what a line typed in reply means."""

from tagseg.run.taught import Answer, Meant
from tagseg.teaching.clusters import Question
from tagseg.teaching.lesson import Lesson
from tagseg.teaching.teach import shapes_of, understood

SHOWN_IMAGES = 4

HELP = "a class or its number, b background, m mixed, s skip, u undo, q stop"
"""What may be typed."""

_LETTERS = {"b": "background", "m": "mixed", "s": "skip"}


def question_text(lesson: Lesson, question: Question) -> str:
    """Return what a question says, in two lines: what it touches and seems to be, and where its cells are."""
    names = ("background", *lesson.classes)
    likely = ", ".join(f"{names[entry]} {100 * share:.0f} %" for entry, share in question.expected)
    where = "; ".join(
        f"{lesson.cells.samples[place].id} {_position(shape.nonzero(), shape.shape)}"
        for place, shape in shapes_of(lesson, question.key)[:SHOWN_IMAGES]
    )
    tag = lesson.classes[question.tag - 1]
    return f"In images of {tag}: {question.cells} cells of {question.images} images, now {likely}\n  {where}"


def reply(line: str, lesson: Lesson) -> tuple[Meant, int]:
    """Return what a typed line names: a class (by name or number) or one of the words, and the class id.

    Raises:
        ValueError: when it names nothing.
    """
    text = line.strip()
    if text.isdecimal() and len(text) < 4 and 0 < int(text) <= len(lesson.classes):
        return "class", int(text)
    return understood(text if text in lesson.classes else _LETTERS.get(text, text), lesson.classes)


def summary(answer: Answer) -> str:
    """Return an answer in a few words.

    >>> from tagseg.run.taught import Places
    >>> summary(Answer(kind="cluster", meaning="background", tag="train", places=(Places("a", ((0.5, 0.5),)),)))
    'cluster in images of train: background'
    """
    what = answer.name or answer.meaning
    place = f"in images of {answer.tag}" if answer.kind == "cluster" else f"in {answer.image}"
    return f"{answer.kind} {place}: {what}"


def _position(found: tuple, shape: tuple[int, ...]) -> str:  # type: ignore[type-arg]
    """Return in words where cells are: their middle in percent from the left and the top."""
    y, x = ((cells.mean() + 0.5) / side for cells, side in zip(found, shape, strict=True))
    return f"({100 * x:.0f} % from the left, {100 * y:.0f} % from the top)"
