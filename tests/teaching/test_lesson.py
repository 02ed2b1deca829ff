"""Lessons: what the bank believes, clusters, answers and their records, and masks that follow from them."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import tagseg
from tagseg.data.prepare import prepare
from tagseg.errors import RunError
from tagseg.features.cache import open_features
from tagseg.masks.map_files import map_file, read_maps
from tagseg.masks.mask_files import mask_file
from tagseg.pipeline import fit_until
from tagseg.rca.heads import cached_maps
from tagseg.rca.taught import TaughtEntries
from tagseg.rca.train import load_network
from tagseg.report.atlas import render_atlas
from tagseg.run.doctor import examine
from tagseg.run.folder import Run
from tagseg.run.taught import answers, record_answer, remove_answer
from tagseg.teaching.apply import apply_answers, is_applied
from tagseg.teaching.beliefs import believed, change_of_all
from tagseg.teaching.clusters import members_of, questions
from tagseg.teaching.lesson import Lesson, catch_up, name_cluster, next_questions, open_lesson, take_back

from .conftest import SETTINGS


@pytest.fixture
def lesson(run: Run) -> Lesson:
    return open_lesson(run)


def believed_now(lesson: Lesson) -> list[torch.Tensor]:
    return [one.clone() for one in lesson.beliefs.shares]


def same(one: list[torch.Tensor], two: list[torch.Tensor]) -> bool:
    """Tell whether shares are the same: in half precision, and products of other sizes round otherwise."""
    return all(torch.allclose(a.float(), b.float(), atol=2e-3) for a, b in zip(one, two, strict=True))


def test_beliefs_are_the_posteriors_of_the_network_with_and_without_taught_entries(lesson: Lesson, run: Run) -> None:
    cache, network = open_features(run.features), lesson.network
    network.rca = dataclasses.replace(network.rca, taught_weight=1.5)
    taught = TaughtEntries(lesson.cells.fine(0)[[3, 7]], torch.tensor([0, 1]), (1, 2))
    for entries in (lesson.taught, taught):
        network.taught = entries
        for place, sample in enumerate(lesson.cells.samples):
            expected = cached_maps(network, cache, sample, "posterior")
            found = believed(lesson.beliefs, place, entries)
            assert torch.allclose(found[1:], expected, atol=2e-2)
            assert torch.allclose(found.sum(0), torch.ones(found.shape[1:]), atol=1e-5)
    assert not torch.allclose(believed(lesson.beliefs, 0, taught), lesson.beliefs.shares[0].float(), atol=0.1)


def test_what_is_taught_again_and_again_does_not_take_other_cells(lesson: Lesson) -> None:
    once = TaughtEntries(lesson.cells.fine(0)[[3]], torch.tensor([0]), (1,))
    often = TaughtEntries(once.features.repeat(30, 1), torch.zeros(30, dtype=torch.long), tuple(range(30)))
    for place in range(len(lesson.cells.samples)):
        background = [believed(lesson.beliefs, place, one)[0] for one in (once, often)]
        assert (background[1] <= background[0] + 1e-6).all()


def test_every_cell_of_a_tags_images_is_in_one_cluster_and_the_best_question_comes_first(lesson: Lesson) -> None:
    for tag in (1, 2):
        own = [one for one in lesson.clusters.open.values() if one.tag == tag]
        images = [place for place, sample in enumerate(lesson.cells.samples) if tag in sample.tags]
        cells = sum(len(found) for one in own for _, found in members_of(lesson.clusters, one.key))
        assert cells == sum(len(lesson.cells.fine(place)) for place in images)
    asked = next_questions(lesson, 100)
    assert [one.gain for one in asked] == sorted((one.gain for one in asked), reverse=True)
    assert asked[0].gain > 0 and len({one.key for one in asked}) == len(asked)
    assert all(1 - sum(share for _, share in one.expected) < 0.05 for one in asked)
    assert {one.tag for one in next_questions(lesson, 100, tag=2)} == {2}
    again = open_lesson(lesson.run)
    assert [one.key for one in next_questions(again, 100)] == [one.key for one in asked]


def test_an_answer_changes_images_and_taking_it_back_restores_them(lesson: Lesson) -> None:
    before = believed_now(lesson)
    question = next_questions(lesson)[0]
    done = name_cluster(lesson, question.key, "background")
    assert done.change.images and 0 < done.change.share <= 1 and done.change.total == 9
    assert question.key not in {one.key for one in next_questions(lesson, 100)}
    for place, own in members_of(lesson.clusters, question.key)[:1]:
        assert (lesson.beliefs.shares[place].flatten(1)[0, own] > before[place].flatten(1)[0, own]).float().mean() > 0.5
    assert change_of_all(lesson.beliefs) == done.change
    with pytest.raises(RunError, match="answered in the meantime"):
        name_cluster(lesson, question.key, "class", 1)
    back = take_back(lesson, done.number)
    assert back.change.images == done.change.images and same(believed_now(lesson), before)
    assert not change_of_all(lesson.beliefs).images
    assert next_questions(lesson)[0].key == question.key
    with pytest.raises(RunError, match="none of this number"):
        take_back(lesson, done.number)


def test_a_mixed_cluster_is_split_and_whole_again_when_taken_back(lesson: Lesson) -> None:
    question = next_questions(lesson)[0]
    cells = sum(len(own) for _, own in members_of(lesson.clusters, question.key))
    done = name_cluster(lesson, question.key, "mixed")
    assert not done.change.images
    parts = [one for one in lesson.clusters.open.values() if one.parent]
    assert len(parts) > 1
    assert cells == sum(len(own) for one in parts for _, own in members_of(lesson.clusters, one.key))
    named = name_cluster(lesson, parts[0].key, "skip")
    again = open_lesson(lesson.run)
    assert again.clusters.open.keys() == lesson.clusters.open.keys()
    take_back(lesson, named.number)
    take_back(lesson, done.number)
    assert question.key in lesson.clusters.open and not any(one.parent for one in lesson.clusters.open.values())


def test_two_lessons_see_each_others_answers(lesson: Lesson) -> None:
    other = open_lesson(lesson.run)
    first, second = (one.key for one in next_questions(lesson, 2))
    name_cluster(lesson, first, "background")
    name_cluster(other, second, "class", 1)
    with pytest.raises(RunError, match="in the meantime"):
        name_cluster(other, first, "class", 2)
    catch_up(lesson)
    assert same(believed_now(lesson), believed_now(other)) and lesson.given == other.given == answers(lesson.run)


def read_all(run: Run) -> dict[str, bytes]:
    folders = (run.maps, run.masks, run.decided_masks)
    return {str(path): path.read_bytes() for folder in folders for path in sorted(folder.rglob("*.*g"))}


def test_masks_follow_the_answers_and_return_when_they_are_removed(lesson: Lesson, run: Run, discs: Path) -> None:
    before = read_all(run)
    done = [name_cluster(lesson, one.key, "background") for one in next_questions(lesson, 3)]
    assert not is_applied(run)
    fit_until(discs, run.root, "masks")
    assert is_applied(run) and read_all(run) != before and not examine(run.root).damage
    network, _ = load_network(run.network, torch.device("cpu"))
    assert network.taught is not None and network.taught.labels.tolist() == [0, 0, 0]
    for place, sample in enumerate(lesson.cells.samples):
        maps, _ = read_maps(map_file(run, sample.id))
        shares = lesson.beliefs.shares[place][1:].float()[None]
        pixels = network.backbone.enlarge(shares, (4 * maps.shape[1], 4 * maps.shape[2]))
        assert abs(maps.mean() / 255 - float(pixels.mean())) < 0.04
    for one in done:
        remove_answer(run, one.number)
    assert apply_answers(prepare(run), run) and read_all(run) == before and not examine(run.root).damage
    assert apply_answers(prepare(run), run) == ()


def test_a_killed_update_is_completed(lesson: Lesson, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for one in next_questions(lesson, 3):
        name_cluster(lesson, one.key, "background")
    prepared = prepare(run)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("tagseg.teaching.apply.make_masks", killed)
        apply_answers(prepared, run)
    assert not is_applied(run)
    apply_answers(prepared, run)
    assert not examine(run.root).damage
    assert all(mask_file(run.masks, sample.id).exists() for sample in prepared.dataset.samples)


def test_a_fit_from_the_start_learns_from_the_answers(lesson: Lesson, run: Run, discs: Path) -> None:
    name_cluster(lesson, next_questions(lesson)[0].key, "class", 2)
    run.discard("train")
    fit_until(discs, run.root, "localise")
    network, _ = load_network(run.network, torch.device("cpu"))
    assert network.taught is not None and network.taught.labels.tolist() == [2] and is_applied(run)
    assert torch.allclose(network.taught.features, lesson.taught.features, atol=1e-3)
    settings = SETTINGS.to_dict()
    settings["rca"]["taught_weight"] = 5.0
    with pytest.raises(RunError, match="taught_weight"):
        fit_until(discs, run.root, "localise", tagseg.Settings.from_dict(settings))


def test_the_atlas_marks_what_was_taught(lesson: Lesson, run: Run) -> None:
    name_cluster(lesson, next_questions(lesson)[0].key, "background")
    apply_answers(prepare(run), run)
    page = render_atlas(run, [], 4, "cpu")
    assert page.count("<b>taught</b></p>") == 1 and "answer 1, cluster in images of" in page
    run.taught_file.write_text("not a database")
    assert [one.file for one in examine(run.root).damage] == ["review/taught.sqlite"]


def test_a_run_that_was_trained_by_gradient_steps_says_what_to_do(run: Run) -> None:
    text = run.settings_file.read_text().replace('method = "frozen"', 'method = "finetuned"')
    run.settings_file.write_text(text)
    with pytest.raises(RunError, match="--quality fast"):
        open_lesson(run)


def test_python_asks_and_applies(run: Run, tmp_path: Path) -> None:
    seen: list[str] = []

    def name(view) -> str | None:  # type: ignore[no-untyped-def]
        seen.append(view.key)
        assert view.regions and all(shape.any() and path.exists() for path, shape in view.regions)
        return (view.tag, "mixed", "background", None)[len(seen) - 1]

    done = tagseg.teach(run.root, name)
    assert [one.answer.meaning for one in done.answers] == ["class", "mixed", "background"]
    assert len(seen) == 4 and done.total == 3 and is_applied(run)
    with pytest.raises(ValueError, match="must be a class"):
        tagseg.teach(run.root, lambda view: "nothing")
    record_answer(run, done.answers[0].answer.__class__(kind="brush", meaning="background", radius=0.1,
                                                         places=done.answers[0].answer.places[:1]))  # fmt: skip
    assert np.isfinite(questions(open_lesson(run).clusters, open_lesson(run).beliefs)[0].gain)
