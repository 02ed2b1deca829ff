"""`tagseg.teach`: teach a run in Python, with a function that answers, a file of answers, or both."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from tagseg.run.folder import Run
from tagseg.run.lock import hold_lock
from tagseg.run.taught import Meant, answers, import_answers
from tagseg.system.progress import Track, silent
from tagseg.teaching.apply import apply_answers
from tagseg.teaching.clusters import Question, members_of
from tagseg.teaching.lesson import Lesson, Taught, catch_up, name_cluster, next_questions, open_lesson

CLUSTER_CROPS = 12
"""Images that show a cluster."""

WORDS: dict[str, Meant] = {"background": "background", "mixed": "mixed", "skip": "skip"}
"""Names of a cluster besides the classes."""


@dataclass(frozen=True)
class ClusterView:
    """A cluster of similar cells that waits for a name.

    key: what it is called. tag: the class in whose images it was found. images, cells: how many it touches. gain: what
    an answer is expected to change (see `questions`). expected: names that the bank would give its cells, with their
    share (0..1). regions: for up to 12 images the file and the cluster's cells in it, a map of h by w cells over the
    whole image.
    """

    key: str
    tag: str
    images: int
    cells: int
    gain: float
    expected: tuple[tuple[str, float], ...]
    regions: tuple[tuple[Path, Bool[np.ndarray, "_ _"]], ...]


@dataclass(frozen=True)
class Lessons:
    """What was taught: every answer with what it changed, the number of answers the run has now, and the ids of the
    images whose masks were made again."""

    answers: tuple[Taught, ...]
    total: int
    masks: tuple[str, ...]


def teach(
    run: str | Path,
    name: Callable[[ClusterView], str | None] | None = None,
    most: int = 60,
    answers_file: str | Path | None = None,
    apply: bool = True,
    track: Track = silent,
) -> Lessons:
    """Name clusters of similar cells: each name goes into the memory bank, and all masks follow from cached features.

    Answers are stored in the run folder as they are given. A later `fit` honours them, also one that trains again.

    Args:
        run: a run made with `--quality fast` or `balanced`, trained at least.
        name: is shown the cluster with the largest expected gain and returns the name of a class, `background`, `mixed`
            (it is split), `skip`, or None to end the lesson. None: ask nothing.
        most: how many clusters it is shown at most.
        answers_file: a JSON file that `tagseg teach --export` wrote; its answers are added first.
        apply: make maps and masks again at the end. Otherwise the next `fit` does.
        track: how to report progress.

    Raises:
        RunError: when the run was not made from frozen features, another process is writing to it, a file is damaged,
            or the answers are about other images.
        ValueError: when `name` returns something else.
    """
    opened, given, made = Run(Path(run)), list[Taught](), tuple[str, ...]()
    with hold_lock(opened.root):
        lesson = open_lesson(opened, track)
        if answers_file is not None:
            samples = lesson.prepared.dataset.split("train")
            import_answers(opened, Path(answers_file), [sample.id for sample in samples], lesson.classes)
            catch_up(lesson)
        while name is not None and len(given) < most:
            found = next_questions(lesson)
            said = name(view_of(lesson, found[0])) if found else None
            if said is None:
                break
            meaning, class_id = understood(said, lesson.classes)
            given.append(name_cluster(lesson, found[0].key, meaning, class_id))
        if apply:
            made = apply_answers(lesson.prepared, opened, track)
    return Lessons(tuple(given), len(answers(opened)), made)


def understood(said: str, classes: tuple[str, ...]) -> tuple[Meant, int]:
    """Return what a name of a cluster means, and the class id (0 if it is not a class).

    Raises:
        ValueError: when it is neither a class nor one of `WORDS`.
    """
    if said in classes:
        return "class", classes.index(said) + 1
    if said in WORDS:
        return WORDS[said], 0
    names = ", ".join(classes)
    raise ValueError(f"a cluster's name must be a class ({names}), background, mixed or skip, found {said!r}")


def view_of(lesson: Lesson, question: Question, crops: int = CLUSTER_CROPS) -> ClusterView:
    """Return what a person sees of a question."""
    names = ("background", *lesson.classes)
    regions = tuple(
        (lesson.cells.samples[place].image, shape) for place, shape in shapes_of(lesson, question.key)[:crops]
    )
    expected = tuple((names[entry], share) for entry, share in question.expected)
    tag = lesson.classes[question.tag - 1]
    return ClusterView(question.key, tag, question.images, question.cells, question.gain, expected, regions)


def shapes_of(lesson: Lesson, key: str) -> list[tuple[int, Bool[np.ndarray, "_ _"]]]:
    """Return the images of a cluster by position, with most of its cells first, and which cells are its."""
    found = []
    for place, own in members_of(lesson.clusters, key):
        shape = np.zeros(lesson.cells.size(place), bool)
        shape.ravel()[own.numpy()] = True
        found.append((place, shape))
    return found
