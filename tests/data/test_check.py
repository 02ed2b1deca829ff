import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tagseg.data.check import check_images, healthy, require_saliency
from tagseg.data.read import read_dataset
from tagseg.data.records import Dataset, Sample
from tagseg.errors import DataError
from tagseg.settings.data import DataSettings
from tagseg.system.progress import silent

SETTINGS = DataSettings(min_images=1)


def animals(root: Path, count: int) -> Dataset:
    """Write images cat/00, cat/01, ... of 16 x 8 pixels; EXIF turns 00 by 90 degrees."""
    (root / "cat").mkdir(parents=True)
    for number in range(count):
        Image.effect_noise((16, 8), 80).save(root / f"cat/{number:02}.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (16, 8)).save(root / "cat/00.jpg", exif=exif)
    return read_dataset(root, SETTINGS)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def test_sizes_are_those_of_the_upright_images(tmp_path: Path) -> None:
    seen = []

    def track(items, title, total):
        for item in items:
            seen.append((title, total))
            yield item

    checked = check_images(animals(tmp_path, 3), SETTINGS, track)
    assert checked.sizes == {"cat/00": (16, 8), "cat/01": (8, 16), "cat/02": (8, 16)} and checked.broken == ()
    assert seen == [("check images", 3)] * 3


def test_a_few_broken_images_are_skipped_and_listed(tmp_path: Path) -> None:
    dataset = animals(tmp_path, 20)
    cut(tmp_path / "cat/07.jpg")
    checked = check_images(dataset, SETTINGS)
    assert [path for path, _ in checked.broken] == ["cat/07.jpg"]
    assert checked.broken[0][1].startswith("damaged image") and str(tmp_path) not in checked.broken[0][1]
    whole = healthy(dataset, checked, SETTINGS)
    assert [sample.id for sample in whole.samples] == [f"cat/{i:02}" for i in range(20) if i != 7]
    assert "1 images cannot be read and are skipped: cat/07.jpg: damaged image" in whole.notes[-1]


def test_too_many_broken_images_fail_and_ten_are_named(tmp_path: Path) -> None:
    dataset = animals(tmp_path, 20)
    for number in range(1, 13):
        cut(tmp_path / f"cat/{number:02}.jpg")
    checked = check_images(dataset, SETTINGS)
    with pytest.raises(DataError, match=r"12 of 20 training images cannot be read, expected at most 5%") as caught:
        healthy(dataset, checked, SETTINGS)
    assert "cat/10.jpg: damaged" in str(caught.value) and "cat/11.jpg" not in str(caught.value)
    assert str(caught.value).endswith("and 2 more")
    assert len(healthy(dataset, checked, DataSettings(min_images=8, max_broken=0.6)).samples) == 8
    with pytest.raises(DataError, match="too few training images: cat has 8, expected at least 9"):
        healthy(dataset, checked, DataSettings(min_images=9, max_broken=0.6))


def test_without_broken_images_the_data_set_is_unchanged(tmp_path: Path) -> None:
    dataset = animals(tmp_path, 2)
    assert healthy(dataset, check_images(dataset, SETTINGS, silent), SETTINGS) is dataset


def test_images_above_the_size_limit_count_as_broken(tmp_path: Path) -> None:
    checked = check_images(animals(tmp_path, 2), DataSettings(max_megapixels=1e-5))
    assert [reason.split(",")[0] for _, reason in checked.broken] == ["too large", "too large"]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((16, 8), np.uint8), r"masks/cat/01\.png: the mask has 8 x 16 pixels, expected 16 x 8"),
        (np.full((8, 16), 2, np.uint8), r"masks/cat/01\.png: unknown ids 2 in the mask"),
        (np.full((8, 16, 3), (1, 2, 3), np.uint8), r"masks/cat/01\.png: unknown colours #010203 in the mask"),
    ],
)
def test_masks_must_fit_their_images(mask: np.ndarray, message: str, tmp_path: Path) -> None:
    (tmp_path / "masks/cat").mkdir(parents=True)
    Image.fromarray(np.ones((16, 8), np.uint8)).save(tmp_path / "masks/cat/00.png")
    dataset = animals(tmp_path, 2)
    assert len(check_images(dataset, SETTINGS).sizes) == 2
    Image.fromarray(mask).save(tmp_path / "masks/cat/01.png")
    with pytest.raises(DataError, match=message):
        check_images(read_dataset(tmp_path, SETTINGS), SETTINGS)


def with_saliency(root: Path, *saliency: Path | None) -> Dataset:
    samples = [Sample(f"a/{i}", root / f"a/{i}.jpg", (1,), saliency=path) for i, path in enumerate(saliency)]
    unasked = dataclasses.replace(samples[0], id="v", split="val", saliency=None)
    return Dataset(root, "folder", ("cat",), (*samples, unasked))


def test_a_missing_saliency_map_is_named_with_its_folder(tmp_path: Path) -> None:
    there = tmp_path / "there.png"
    require_saliency(with_saliency(tmp_path, there, there), DataSettings(), "maps = eps")
    some = with_saliency(tmp_path, there, None, None)
    with pytest.raises(DataError) as caught:
        require_saliency(some, DataSettings(), "maps = eps")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'a/1.jpg'}: no saliency map, expected a/1.png or .jpg in ")
    assert f" in {tmp_path / 'saliency'} (setting data.saliency)" in message and "2 of 3 have none" in message
    (tmp_path / "mine").mkdir()
    for given_folder, named in (("mine", tmp_path / "mine"), (str(tmp_path / "mine"), tmp_path / "mine")):
        with pytest.raises(DataError, match=f" in {named} "):
            require_saliency(some, DataSettings(saliency=given_folder), "maps = eps")
    with pytest.raises(DataError, match=" in elsewhere "):  # a folder beside the data
        require_saliency(some, DataSettings(saliency="elsewhere"), "masks.saliency")


def test_copies_of_a_photograph_are_named_with_their_tags(tmp_path: Path) -> None:
    for i in range(4):
        file = tmp_path / ("cat", "dog")[i % 2] / f"{i}.png"
        file.parent.mkdir(exist_ok=True)
        Image.new("RGB", (10, 8), (90 * (i == 3), 0, 0)).save(file)
    settings = DataSettings(min_images=2)
    (warning,) = check_images(read_dataset(tmp_path, settings), settings).warnings
    assert warning.startswith(
        "2 of 4 images are copies of others, 1 of them with other tags (dog/1.png is cat/0.png); remove them"
    )
