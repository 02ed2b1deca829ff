from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from PIL import Image
from torch.utils.data import TensorDataset

from tagseg.data.records import VOID, Sample
from tagseg.training.loading import (
    MaskImages,
    Shuffled,
    TagImages,
    colour_jitter,
    epoch_seed,
    loader,
    to_bytes,
    to_tensor,
)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Five noisy pictures of 40 x 30 pixels."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for i in range(5):
        Image.fromarray(generator.integers(0, 256, (30, 40, 3), np.uint8)).save(folder / f"{i}.png")
    tags = [(1,), (2,), (1, 3), (), (3,)]
    return [Sample(str(i), folder / f"{i}.png", tags[i]) for i in range(5)]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Path]]:
    """Masks of random ids 0..4, and pictures whose red is 40 times the id."""
    folder = tmp_path_factory.mktemp("pairs")
    generator = np.random.default_rng(0)
    for i in range(3):
        mask = generator.integers(0, 5, (30, 40), np.uint8)
        Image.fromarray(mask).save(folder / f"mask{i}.png")
        Image.fromarray(np.stack([mask * 40, mask * 0, mask * 0 + 9], 2)).save(folder / f"image{i}.png")
    return [(folder / f"image{i}.png", folder / f"mask{i}.png") for i in range(3)]


def tag_images(samples: list[Sample], seed: int = 0, jitter: float = 0.3) -> TagImages:
    return TagImages(samples, 3, 24, (0.3, 1.0), jitter, 100.0, seed)


def mask_images(
    pairs: list[tuple[Path, Path]], crop: int = 16, scale: tuple[float, float] = (1.0, 1.0), side: int = 512
) -> MaskImages:
    return MaskImages(pairs, crop, scale, side, 0.0, 100.0, 0)


def test_tags_become_many_hot(samples: list[Sample]) -> None:
    data = tag_images(samples)
    assert len(data) == 5
    assert [data[i].tags.tolist() for i in range(5)] == [[1, 0, 0], [0, 1, 0], [1, 0, 1], [0, 0, 0], [0, 0, 1]]


def test_crops_are_floats_from_0_to_1(samples: list[Sample]) -> None:
    image = tag_images(samples)[0].picture
    assert image.shape == (3, 24, 24) and image.dtype == torch.float32
    assert image.min() >= 0 and 0.5 < image.max() <= 1


def test_augmentation_depends_on_seed_and_image_alone(samples: list[Sample]) -> None:
    data, again = tag_images(samples), tag_images(samples)
    before = torch.random.get_rng_state()
    forwards = [data[i][0] for i in range(5)]
    assert torch.equal(torch.random.get_rng_state(), before)  # and what others draw does not change
    torch.rand(3)
    backwards = [again[i][0] for i in reversed(range(5))]
    assert all(torch.equal(one, two) for one, two in zip(forwards, reversed(backwards), strict=True))
    assert not any(torch.equal(tag_images(samples, seed=1)[i][0], forwards[i]) for i in range(5))


def test_two_copies_of_an_image_are_augmented_apart(samples: list[Sample]) -> None:
    data = tag_images([samples[0], samples[0]])
    assert not torch.equal(data[0][0], data[1][0])


def test_workers_give_the_same_batches(samples: list[Sample]) -> None:
    batches = {n: list(loader(tag_images(samples), 2, n, 7)) for n in (0, 2)}
    assert len(batches[0]) == len(batches[2]) == 2
    for crop, other in zip(batches[0], batches[2], strict=True):
        assert all(torch.equal(one, two) for one, two in zip(crop, other, strict=True))


def test_no_colour_change_at_strength_zero(samples: list[Sample]) -> None:
    assert colour_jitter(0.0) == [] and len(colour_jitter(0.2)) == 1
    grey = Image.new("RGB", (20, 20), (128, 128, 128))
    file = samples[0].image.parent / "grey.png"
    grey.save(file)
    plain = tag_images([Sample("grey", file, (1,))], jitter=0.0)[0][0]
    torch.testing.assert_close(plain, torch.full((3, 24, 24), 128 / 255))
    assert not torch.allclose(tag_images([Sample("grey", file, (1,))])[0][0], plain)


@settings(max_examples=30)
@given(length=st.integers(1, 20), batch=st.integers(1, 6), seed=st.integers(0, 99))
def test_a_last_batch_of_one_is_dropped_and_nothing_else(length: int, batch: int, seed: int) -> None:
    data = TensorDataset(torch.arange(length), torch.arange(length))
    batches = [numbers.tolist() for numbers, _ in loader(data, batch, 0, seed)]
    seen = [number for numbers in batches for number in numbers]
    assert len(set(seen)) == len(seen)
    lonely = batch > 1 and length > batch and length % batch == 1
    assert len(seen) == length - lonely
    assert all(len(numbers) == batch for numbers in batches[:-1])
    assert len(batches[-1]) > 1 or batch == 1 or length == 1


def test_shuffled_is_a_permutation_of_the_seed() -> None:
    assert sorted(Shuffled(50, 3)) == list(range(50)) and len(Shuffled(50, 3)) == 50
    assert list(Shuffled(50, 3)) == list(Shuffled(50, 3)) != list(Shuffled(50, 4))


def test_seeds_of_epochs_are_in_range_and_differ() -> None:
    drawn = [epoch_seed(seed, epoch) for seed in (0, 1, 2, 10**9) for epoch in range(100)]
    assert len(set(drawn)) == len(drawn)
    assert min(drawn) >= 0 and max(drawn) < 2**31
    assert epoch_seed(1, 2) == 9_176_471 + 15_838 + 12_345


def test_pictures_become_tensors_by_hand() -> None:
    image = Image.fromarray(np.array([[[255, 0, 51], [0, 102, 0]]], np.uint8))
    assert to_bytes(image).tolist() == [[[255, 0]], [[0, 102]], [[51, 0]]]
    torch.testing.assert_close(to_tensor(image), torch.tensor([[[1.0, 0.0]], [[0.0, 0.4]], [[0.2, 0.0]]]))


def test_masks_stay_on_their_picture(pairs: list[tuple[Path, Path]]) -> None:
    for index in range(3):
        picture, mask = mask_images(pairs)[index]
        assert picture.shape == (3, 16, 16) and picture.dtype == torch.float32
        assert mask.shape == (16, 16) and mask.dtype == torch.int64
        assert torch.equal((picture[0] * 255).round().long(), mask * 40)


def test_small_pictures_are_padded_with_void(pairs: list[tuple[Path, Path]]) -> None:
    picture, mask = mask_images(pairs, crop=48)[0]
    void = mask == VOID
    assert (~void).sum() <= 30 * 40 and void.any() and (~void).any()
    assert torch.equal((picture[0] * 255).round().long()[~void], mask[~void] * 40)
    torch.testing.assert_close(picture[:, void], torch.full_like(picture[:, void], 127 / 255))


def test_scaling_keeps_ids_and_reduces_to_the_longest_side(pairs: list[tuple[Path, Path]]) -> None:
    _, mask = mask_images(pairs, crop=48, scale=(0.5, 0.5))[0]
    assert int((mask != VOID).sum()) == 20 * 15
    assert set(mask[mask != VOID].tolist()) <= set(range(5))
    _, mask = mask_images(pairs, crop=48, side=20)[0]
    assert int((mask != VOID).sum()) == 20 * 15
    _, mask = mask_images(pairs, crop=16, scale=(0.01, 0.01))[0]  # never smaller than a pixel
    assert int((mask != VOID).sum()) == 1


def test_mask_augmentation_depends_on_seed_and_image_alone(pairs: list[tuple[Path, Path]]) -> None:
    data = mask_images(pairs, scale=(0.5, 1.5))
    before = torch.random.get_rng_state()
    (one, mask), (two, again) = data[1], data[1]
    assert torch.equal(one, two) and torch.equal(mask, again)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_crop_says_where_it_comes_from(samples: list[Sample]) -> None:
    data = tag_images(samples, seed=1, jitter=0.0)
    mirrored = set()
    for i in range(5):
        crop = data[i]
        assert crop.sample == i and crop.saliency.numel() == 0
        top, left, height, width = (crop.box * torch.tensor([30, 40, 30, 40])).round().int().tolist()
        assert 0 <= top < top + height <= 30 and 0 <= left < left + width <= 40
        image = Image.open(samples[i].image).crop((left, top, left + width, top + height))
        again = to_tensor(image.resize((24, 24), Image.Resampling.BILINEAR))
        mirrored.add(bool(crop.mirrored))
        assert torch.equal(again.flip(-1) if crop.mirrored else again, crop.picture)
    assert mirrored == {False, True}


def test_saliency_follows_its_picture(samples: list[Sample], tmp_path: Path) -> None:
    grey = []
    for sample in samples:
        values = np.random.default_rng(7).integers(0, 256, (30, 40), np.uint8)
        Image.fromarray(values).save(tmp_path / f"{sample.id}-saliency.png")
        Image.fromarray(np.stack([values] * 3, 2)).save(tmp_path / f"{sample.id}.png")
        image = tmp_path / f"{sample.id}.png"
        grey.append(Sample(sample.id, image, sample.tags, saliency=tmp_path / f"{sample.id}-saliency.png"))
    data = TagImages(grey, 3, 24, (0.3, 1.0), 0.0, 100.0, 1, saliency=True)
    for i in range(5):
        assert data[i].saliency.shape == (24, 24)
        assert torch.equal(data[i].saliency, data[i].picture[0])
    (first, *_) = loader(data, 3, 0, 0)
    assert first.saliency.shape == (3, 24, 24) and first.box.shape == (3, 4) and first.mirrored.dtype == torch.bool
