import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from tagseg.data.data_file import DataFile, ImageRow
from tagseg.errors import RunError
from tagseg.evaluate import verdict as module
from tagseg.evaluate.verdict import ClassVerdict, class_verdicts, verdict_table
from tagseg.masks.mask_files import mask_file, write_mask
from tagseg.run.folder import Run


@pytest.fixture
def verdicts(masked_run: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[ClassVerdict]]:
    """Return a function that judges a run of classes a, b and c, given the tags and the mask ids of its images."""

    def judge(*images: tuple[tuple[int, ...], list[int]]) -> list[ClassVerdict]:
        rows = tuple(ImageRow(str(i), tags, "train", f"{i}.png", (1, 4), False) for i, (tags, _) in enumerate(images))
        data = DataFile("folder", ("a", "b", "c"), (), (), rows)
        monkeypatch.setattr(module, "read_data_file", lambda run: data)
        for i, (_, ids) in enumerate(images):
            write_mask(mask_file(masked_run.masks, str(i)), np.array([(ids + [0] * 4)[:4]], np.uint8))
        return class_verdicts(masked_run)

    return judge


def test_a_class_that_no_mask_shows_is_said_with_what_to_do(verdicts: Callable[..., list[ClassVerdict]]) -> None:
    found = verdicts(*[((1,), [1])] * 25, *[((2,), [255])] * 25, *[((3,), [3])] * 3)
    assert [(one.name, one.images, one.shown) for one in found] == [("a", 25, 25), ("b", 25, 0), ("c", 3, 3)]
    assert found[0].advice == ""
    assert found[1].advice.startswith("no mask shows it: add images, or check its tags")
    assert found[2].advice.startswith("few images")


def test_classes_that_always_share_their_images_are_named(verdicts: Callable[..., list[ClassVerdict]]) -> None:
    found = verdicts(*[((1, 2), [1])] * 30, *[((3,), [3])] * 30)
    assert found[1].advice == "no mask shows it: always together with a: add images of one without the other"
    assert found[0].advice == "always together with b: add images of one without the other"
    assert found[2].advice == ""


def test_a_foreign_class_in_a_mask_does_not_count(verdicts: Callable[..., list[ClassVerdict]]) -> None:
    assert [one.shown for one in verdicts(((1,), [1, 2]), ((2,), [1]))] == [1, 0, 0]


def test_a_missing_mask_is_an_error_that_names_it(verdicts: Callable[..., list[ClassVerdict]], masked_run: Run) -> None:
    verdicts(((1,), [1]), ((2,), [2]))
    mask_file(masked_run.masks, "1").unlink()
    with pytest.raises(RunError, match=r"1\.png: must be the mask of a training image"):
        class_verdicts(masked_run)


def test_the_table_has_a_row_per_class_and_escapes_names() -> None:
    one = ClassVerdict("a|b", 5, 4, None, 0.515, "")
    table = verdict_table([one, dataclasses.replace(one, name="c", regions=7, expected=None, advice="look")])
    assert table.splitlines()[2:] == ["| a\\|b | 5 | 4 | - | 52 | nothing |", "| c | 5 | 4 | 7 | - | look |"]
