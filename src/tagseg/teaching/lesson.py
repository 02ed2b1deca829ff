"""A lesson: what there is to name in a run, what was answered, and what each answer changes in all images."""

from dataclasses import dataclass, field
from threading import RLock

import torch

from tagseg.data.prepare import Prepared, prepare
from tagseg.errors import RunError
from tagseg.features.cache import open_features
from tagseg.rca.network import RcaNetwork
from tagseg.rca.taught import TaughtEntries, no_entries, taught_entries
from tagseg.rca.train import load_network
from tagseg.run.folder import Run
from tagseg.run.taught import Answer, Meant, answers, record_answer, remove_answer
from tagseg.system.progress import Track, silent
from tagseg.teaching.apply import require_frozen
from tagseg.teaching.beliefs import Beliefs, Change, begin_beliefs, change_of_all, learn
from tagseg.teaching.cells import Cells, gather_cells
from tagseg.teaching.clusters import (
    Clusters,
    Question,
    close_cluster,
    find_clusters,
    places_of,
    questions,
    reopen_cluster,
    split_cluster,
)


@dataclass
class Lesson:
    """The state of a lesson.

    given: all answers, by number. learned: those that `beliefs` follow. entries: those of them that are entries of the
    bank, by number. waiting: the questions, best first; None before they were ranked. asked: all questions so far, by
    key. desk: held while answers are noted, for an instant. busy: held while all images are looked at, which takes
    longer.
    """

    run: Run
    prepared: Prepared
    network: RcaNetwork
    cells: Cells
    beliefs: Beliefs
    clusters: Clusters
    given: dict[int, Answer] = field(default_factory=dict)
    learned: dict[int, Answer] = field(default_factory=dict)
    entries: dict[int, TaughtEntries] = field(default_factory=dict)
    waiting: list[Question] | None = None
    asked: dict[str, Question] = field(default_factory=dict)
    desk: RLock = field(default_factory=RLock)
    busy: RLock = field(default_factory=RLock)

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes of the run; class id i is `classes[i - 1]`."""
        return self.prepared.dataset.classes

    @property
    def taught(self) -> TaughtEntries:
        """All taught entries."""
        found = list(self.entries.values())
        if not found:
            return no_entries(self.network.channels)
        numbers = tuple(number for one in found for number in one.numbers)
        features, labels = torch.cat([one.features for one in found]), torch.cat([one.labels for one in found])
        return TaughtEntries(features, labels, numbers)


@dataclass(frozen=True)
class Taught:
    """What an answer did: its number in the run's records, and how far all masks changed (maps, without dense CRF)."""

    number: int
    answer: Answer
    change: Change


def open_lesson(run: Run, track: Track = silent) -> Lesson:
    """Read the features of all tagged images, cluster them, and repeat the answers that the run already has.

    Raises:
        RunError: when the run was not made from frozen features, has no tagged image, or a file of it is damaged.
    """
    require_frozen(run)
    prepared = prepare(run, track)
    network, _ = load_network(run.network, torch.device("cpu"))
    network.taught = None  # answers count as the database has them now
    cells = gather_cells(run, network, open_features(run.features), prepared.dataset.split("train"), track)
    if not cells.samples:
        raise RunError(f"{run.root}: must have images with tags to be taught, found none")
    beliefs = begin_beliefs(network, cells, no_entries(network.channels))
    clusters = find_clusters(cells, len(prepared.dataset.classes), run.settings().seed, track=track)
    lesson = Lesson(run, prepared, network, cells, beliefs, clusters)
    catch_up(lesson)
    return lesson


def next_questions(lesson: Lesson, count: int = 1, tag: int = 0) -> list[Question]:
    """Return the clusters to name, the largest expected gain first; `tag` limits them to the images of one class."""
    if lesson.waiting is None:
        rank(lesson)
    with lesson.desk:
        waiting = [one for one in lesson.waiting or () if one.key in lesson.clusters.open]
        return [one for one in waiting if tag in (0, one.tag)][:count]


def rank(lesson: Lesson) -> None:
    """Order the questions by what the bank believes now."""
    with lesson.busy:
        ranked = questions(lesson.clusters, lesson.beliefs, lesson.desk)
        with lesson.desk:
            lesson.waiting = ranked
            lesson.asked.update((one.key, one) for one in ranked)


def name_cluster(lesson: Lesson, key: str, meaning: Meant, class_id: int = 0) -> Taught:
    """Store what a cluster shows, learn from it, and say what changed.

    Args:
        lesson: updated in place.
        key: the cluster's, as in `Question`.
        meaning: `class`, `background`, `mixed` (its parts become questions) or `skip`.
        class_id: the class, if the meaning is one.

    Raises:
        RunError: when there is no such open question, perhaps because it was answered elsewhere.
        ValueError: when the class id is not one of the run's.
    """
    number = note_name(lesson, key, meaning, class_id)
    return Taught(number, lesson.given[number], learn_noted(lesson))


def note_name(lesson: Lesson, key: str, meaning: Meant, class_id: int = 0) -> int:
    """Store what a cluster shows and return the answer's number; `learn_noted` learns from it. Arguments and errors are
    those of `name_cluster`."""
    if meaning == "class" and not 0 < class_id <= len(lesson.classes):
        raise ValueError(f"class id must be 1 to {len(lesson.classes)}, found {class_id}")
    with lesson.desk:
        note_others(lesson)
        cluster = lesson.clusters.open.get(key)
        if cluster is None:
            raise RunError(f"{lesson.run.root}: the cluster must still be open; it was answered in the meantime")
        answer = Answer(
            kind="cluster",
            meaning=meaning,
            name=lesson.classes[class_id - 1] if meaning == "class" else "",
            tag=lesson.classes[cluster.tag - 1],
            question=key,
            places=places_of(lesson.clusters, key),
        )
        number = record_answer(lesson.run, answer)
        lesson.given[number] = answer
        _settle(lesson, answer)
        return number


def take_back(lesson: Lesson, number: int) -> Taught:
    """Remove an answer from the records and from what was learned, and say what changed.

    Raises:
        RunError: when there is no answer of this number.
    """
    answer = note_removal(lesson, number)
    return Taught(number, answer, learn_noted(lesson))


def note_removal(lesson: Lesson, number: int) -> Answer:
    """Remove an answer from the records and return it; `learn_noted` forgets it. Errors are those of `take_back`."""
    with lesson.desk:
        answer = remove_answer(lesson.run, number)
        if lesson.given.pop(number, None) is not None:
            _unsettle(lesson, answer)
        return answer


def note_others(lesson: Lesson) -> None:
    """Note the answers that another process or page added or took back in the meantime."""
    with lesson.desk:
        now = answers(lesson.run)
        for number in lesson.given.keys() - now.keys():
            _unsettle(lesson, lesson.given.pop(number))
        for number, answer in now.items():
            if number not in lesson.given:
                lesson.given[number] = answer
                _settle(lesson, answer)


def catch_up(lesson: Lesson) -> Change:
    """Learn from answers that another process or page added or took back in the meantime."""
    note_others(lesson)
    return learn_noted(lesson)


def learn_noted(lesson: Lesson) -> Change:
    """Bring the beliefs about all images up to date with the answers, and say what changed."""
    with lesson.busy:
        with lesson.desk:
            given = dict(lesson.given)
        touched: list[int] = []
        for number in lesson.learned.keys() - given.keys():
            removed = lesson.entries.pop(number, None)
            touched += [] if removed is None else removed.labels.tolist()
        new = {number: one for number, one in given.items() if number not in lesson.learned}
        for number, answer in new.items():
            one = _entries(lesson, number, answer)
            if len(one):
                lesson.entries[number] = one
                touched += one.labels.tolist()
        lesson.learned = given
        change = learn(lesson.beliefs, lesson.taught, touched)
        rank(lesson)
        return change


def news_of(lesson: Lesson, change: Change) -> str:
    """Return in words what the last answer changed, and all answers together."""
    with lesson.busy:
        return f"{change}. All answers together: {change_of_all(lesson.beliefs)}."


def answered(lesson: Lesson) -> list[tuple[int, Answer]]:
    """Return all answers with their numbers, the latest first."""
    with lesson.desk:
        return sorted(lesson.given.items(), reverse=True)


def _entries(lesson: Lesson, number: int, answer: Answer) -> TaughtEntries:
    cells = lesson.cells

    def features(name: str) -> torch.Tensor:
        place = cells.places[name]
        return cells.fine(place).T.reshape(-1, *cells.size(place))

    return taught_entries({number: answer}, lesson.classes, features, lesson.network.channels, list(cells.places))


def _settle(lesson: Lesson, answer: Answer) -> None:
    """Take the cluster that an answer names from the open ones, and open its parts if it is mixed."""
    if answer.question not in lesson.clusters.open:
        return
    if answer.meaning != "mixed":
        close_cluster(lesson.clusters, answer.question)
        return
    parts = {one.key for one in split_cluster(lesson.clusters, answer.question)}
    for other in lesson.given.values():
        if other.question in parts:  # named before their whole was taken back and split again
            _settle(lesson, other)


def _unsettle(lesson: Lesson, answer: Answer) -> None:
    known = {one.key for own in lesson.clusters.known.values() for one in own}
    if answer.question in known and answer.question not in lesson.clusters.gone:
        reopen_cluster(lesson.clusters, answer.question)
        if lesson.waiting is not None and answer.question in lesson.asked:
            lesson.waiting.insert(0, lesson.asked[answer.question])
