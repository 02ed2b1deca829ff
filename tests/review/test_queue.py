import json

import pytest

from tagseg.errors import RunError
from tagseg.review.queue import choose_page, count_verdicts, read_queue
from tagseg.run.decisions import Decision, record_decision
from tagseg.run.manifest import StageNote

from .conftest import SETTINGS, build_run, record_of, write_data


def names(queue, page):
    return [queue.entries[place].sample.id for place in page.places]


def test_the_worst_come_first_and_images_without_a_score_last_in_the_datas_order(tmp_path):
    run = build_run(tmp_path, names=("b", "c", "a", "d", "e"), scores={"d": 0.2, "c": 0.1, "gone": 0.0})
    queue = read_queue(run)
    assert [(entry.sample.id, entry.score) for entry in queue.entries] == [
        ("c", 0.1), ("d", 0.2), ("b", None), ("a", None), ("e", None),
    ]  # fmt: skip
    assert queue.entries[0].classes == {1: 0.1, 2: 0.05}
    assert queue.places["a"] == 3 and queue.source == queue.run == run


def test_without_scores_the_datas_order_counts_and_validation_images_are_left_out(run):
    run.quality_file.unlink()
    data = json.loads(run.data_file.read_text())
    data["samples"][1]["split"] = "val"
    run.data_file.write_text(json.dumps(data))
    assert list(read_queue(run).places) == ["img0", "img2", "img3"]


def test_damaged_scores_are_refused_by_line(run):
    lines = run.quality_file.read_text().splitlines(keepends=True)
    run.quality_file.write_text("".join([*lines[:2], '{"id": "img1", "score": "x"}\n', *lines[2:]]))
    with pytest.raises(RunError, match=r"quality\.jsonl: line 3 is damaged"):
        read_queue(run)


def test_the_masks_of_the_last_round_are_reviewed_once_it_is_done(run):
    last = run.round(2)
    last.root.mkdir(parents=True)
    text = SETTINGS.to_toml().replace("rounds = 1", "rounds = 3")
    run.settings_file.write_text(text)
    last.settings_file.write_text(text.replace('background = "threshold"', 'background = "rest"'))
    last.manifest_file.write_text(json.dumps({"data": str(run.data_root()), "stages": {}}))
    assert read_queue(run).source == run
    run.store(run.manifest().with_stage("segment", StageNote()))
    queue = read_queue(run)
    assert queue.source == last and queue.settings.masks.background == "rest" and queue.run == run


def test_runs_without_masks_are_refused(run):
    run.settings_file.write_text(SETTINGS.to_toml().replace('labels = ""', 'labels = "drawn"'))
    with pytest.raises(RunError, match="learns from the masks in drawn; it made none to review"):
        read_queue(run)
    run.settings_file.write_text(SETTINGS.to_toml())
    run.manifest_file.write_text(json.dumps({"data": str(run.root), "stages": {}}))
    with pytest.raises(RunError, match="stage masks has not finished"):
        read_queue(run)


@pytest.fixture
def long(run):
    """Ten images, the odd ones tagged with a second class, two of them decided."""
    run.quality_file.unlink()
    write_data(run, [record_of(f"i{i}", run.root / "none.png", (1, 2) if i % 2 else (1,)) for i in range(10)])
    return read_queue(run), {"i0": Decision("rejected"), "i5": Decision("flagged"), "elsewhere": Decision("flagged")}


@pytest.mark.parametrize(
    ("asked", "expected", "first", "total"),
    [
        (("all", 0, 3), "i0 i1 i2", 0, 10),
        (("open", 0, 3), "i1 i2 i3", 0, 8),
        (("open", 2, 3), "i1 i3 i7", 0, 4),
        (("open", 2, 3, 2), "i3 i7 i9", 1, 4),
        (("open", 0, 3, 5), "i6 i7 i8", 4, 8),
        (("all", 0, 3, 0, 5), "i2 i3 i4", 2, 10),
        (("all", 0, 3, 0, 2), "i0 i1", 0, 10),
        (("all", 0, 3, 9), "i9", 9, 10),
        (("all", 0, 3, 10), "", 10, 10),
        (("flagged", 0, 3), "i5", 0, 1),
        (("rejected", 2, 3), "", 0, 0),
    ],
)
def test_pages_join_without_gaps(long, asked, expected, first, total):
    queue, decided = long
    page = choose_page(queue, decided, *asked)
    assert (" ".join(names(queue, page)), page.first, page.total) == (expected, first, total)


def test_verdicts_are_counted(long, run):
    queue, decided = long
    assert count_verdicts(queue, decided) == {"open": 8, "accepted": 0, "rejected": 1, "flagged": 1, "all": 10}
    record_decision(run, "i1", Decision("open", (1,)))
    assert count_verdicts(queue, decided)["open"] == 8, "a class that is off is no verdict"
