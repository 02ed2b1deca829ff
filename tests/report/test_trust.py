import msgspec
import pytest

from tagseg.evaluate.quality import ClassQuality, ImageQuality, write_quality
from tagseg.rca.held_out import HeldOutTags, write_held_out
from tagseg.report.page import report
from tagseg.report.trust import distribution, is_falling
from tagseg.run.history import EpochRow


def judged(run, scores):
    """Give the training images of a run scores, and tags that were held out."""
    part = ClassQuality(score=0.2, maps=0.1, stable=0.9, unsure=0.0, area=0.2)
    rows = [ImageQuality(name, score, {1: part}, {1: 0.9, 2: 0.8}) for name, score in scores.items()]
    write_quality(
        run, [msgspec.structs.replace(row, classes={1: msgspec.structs.replace(part, score=row.score)}) for row in rows]
    )
    write_held_out(run.network, HeldOutTags(10, (4, 3), (3, 2), (0, 1)))
    return run


SCORES = {"img1": 0.93, "img2": 0.21, "img3": 0.87, "img4": 0.64}


def test_without_true_masks_the_page_says_how_good_the_masks_are(tmp_path, make_run, page_of):
    page = page_of(judged(make_run(tmp_path, truth=False), SCORES))
    text = " ".join(page.text.split())
    assert "The mean of 4 masks is 66 %" in text
    assert "finds 5 of 7 tags and 1 that are not there: 62 % of all these are right" in text
    assert (
        "21 % img2" in text
        and "maps and mask disagree about cat" in text
        and text.index("img2") < text.index("64 % img4")
    )
    assert "tags are likely wrong or missing" in text
    assert "Under-trained?" not in text


def test_a_loss_that_still_falls_is_called_under_trained(tmp_path, make_run, page_of):
    run = judged(make_run(tmp_path, truth=False), SCORES)
    lines = "".join(f'{{"epoch": {epoch}, "loss": {1 / epoch}}}\n' for epoch in range(1, 13))
    (run.segmenter / "history.jsonl").write_text(lines)
    text = " ".join(page_of(run).text.split())
    assert "The segmentation network is under-trained, its loss still fell at the end: more --segment.steps" in text


def rows(losses):
    return [EpochRow(epoch=epoch, loss=loss) for epoch, loss in enumerate(losses, 1)]


@pytest.mark.parametrize(
    ("losses", "falling"),
    [
        ([8.0, 7, 6, 5, 4, 3, 2, 1], True),
        ([8.0, 4, 2, 1.2, 1.1, 1.05, 1.02, 1.0], False),
        ([8.0, 7, 6, 5], False),
        ([1.0] * 8, False),
        ([1.0, 1, 1, 1, 1, 1, 2, 2], False),
        ([], False),
    ],
)
def test_a_loss_falls_if_its_last_quarter_is_lower_than_the_third(losses, falling):
    assert is_falling(rows([float(loss) for loss in losses])) is falling


def test_a_score_of_one_belongs_to_the_last_bar():
    bars = distribution([0.0, 0.05, 0.95, 1.0, 1.0])
    assert [bar.masks for bar in bars] == [2, 0, 0, 0, 0, 0, 0, 0, 0, 3]
    assert (bars[0].low, bars[0].high, bars[-1].high, bars[-1].share) == (0, 10, 100, 1.0)


def test_on_a_narrow_screen_nothing_is_cut(tmp_path, make_run, chromium):
    run = judged(make_run(tmp_path), SCORES)
    report(run)
    page = chromium.new_page(viewport={"width": 400, "height": 800})
    page.goto(run.report_file.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    cut = """[...document.querySelectorAll('section .scroll')].filter(one => one.scrollWidth > one.clientWidth + 1)
        .map(one => one.closest('section').id)"""
    assert page.evaluate(cut) == []
    page.close()
