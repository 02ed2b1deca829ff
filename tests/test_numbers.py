"""Data sets and settings at the edge of what makes sense: a run works and leaves sound files, or says what is wrong."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tagseg.data.images import read_mask_file
from tagseg.errors import DataError, RunError
from tagseg.evaluate.quality import read_quality
from tagseg.evaluate.verdict import class_verdicts
from tagseg.masks.mask_files import mask_file, read_classes
from tagseg.pipeline import fit, fit_until
from tagseg.run.folder import Run
from tagseg.settings.settings import Settings

Pixels = np.ndarray


@pytest.fixture(scope="module")
def settings(tiny: Settings) -> Settings:
    segment = {"epochs": 1, "batch": 4, "crop": 32, "max_side": 64, "predict_scales": (1.0,), "rounds": 1}
    return dataclasses.replace(
        tiny,
        data=dataclasses.replace(tiny.data, min_images=1),
        train=dataclasses.replace(tiny.train, epochs=1),
        segment=dataclasses.replace(tiny.segment, **segment),
        report=dataclasses.replace(tiny.report, examples=2),
    )


def frozen(settings: Settings) -> Settings:
    """Return the settings with which the backbone does not learn."""
    values = settings.to_dict()
    values["train"] = {**values["train"], "method": "frozen", "stride": 8}
    values["features"] |= {"scales": [1.0], "max_side": 64, "channels": 8}
    values["rca"] |= {"posterior": "nearest", "background_prototypes": 2, "rounds": 1}
    values["localise"] |= {"kind": "posterior"}
    return Settings.from_dict(values)


def photo(seed: int, colour: str = "", height: int = 40, width: int = 48) -> Pixels:
    """Return grey noise, with a red or blue square."""
    pixels = np.random.default_rng(seed).integers(90, 160, (height, width, 3), np.uint8)
    if colour:
        pixels[8:30, 8:30] = {"red": (255, 0, 0), "blue": (0, 0, 255)}[colour]
    return pixels


def write(data: Path, photos: list[tuple[Pixels, str]]) -> Path:
    """Write photographs with their tags."""
    (data / "images").mkdir(parents=True)
    for i, (pixels, _) in enumerate(photos):
        Image.fromarray(pixels).save(data / f"images/{i}.png")
    (data / "tags.csv").write_text("image,tags\n" + "".join(f"{i}.png,{tag}\n" for i, (_, tag) in enumerate(photos)))
    return data


COLOURS = ("red", "blue")

CASES: dict[str, Callable[[], list[tuple[Pixels, str]]]] = {
    "one class": lambda: [(photo(i, "red"), "red") for i in range(5)],
    "one image": lambda: [(photo(0, "red"), "red")],
    "two images": lambda: [(photo(i, COLOURS[i]), COLOURS[i]) for i in range(2)],
    "identical images": lambda: [(photo(0, "red"), COLOURS[i % 2]) for i in range(4)],
    "black images": lambda: [(0 * photo(0), COLOURS[i % 2]) for i in range(4)],
    "1 x 5,000 pixels": lambda: [(photo(i, height=1, width=5000), COLOURS[i % 2]) for i in range(2)],
    "5,000 x 1 pixels": lambda: [(photo(i, height=5000, width=1), COLOURS[i % 2]) for i in range(2)],
}


def check(run: Run, photos: list[tuple[Pixels, str]]) -> None:
    """Check that all that a run leaves makes sense."""
    names = sorted({tag for _, tag in photos})
    for i, (pixels, tag) in enumerate(photos):
        allowed = {0, 255, names.index(tag) + 1}
        for folder in (run.masks, run.decided_masks, run.final().masks):
            mask = read_mask_file(mask_file(folder, str(i)))
            assert mask.shape == pixels.shape[:2] and set(np.unique(mask).tolist()) <= allowed
    for folder in (run.network, run.segmenter):
        assert all(bool(torch.isfinite(value).all()) for value in load_file(folder / "network.safetensors").values())
    found = read_quality(run)
    assert len(found) == len(photos) and all(0 <= one.score <= 1 for one in found.values())
    assert [one.name for one in class_verdicts(run)] == names and run.done("report")


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("one class", "finetuned"),
        ("one image", "frozen"),
        ("two images", "finetuned"),
        ("identical images", "frozen"),
        ("black images", "finetuned"),
        ("1 x 5,000 pixels", "finetuned"),
        ("5,000 x 1 pixels", "finetuned"),
    ],
)
def test_a_run_leaves_sound_files(name: str, method: str, settings: Settings, tmp_path: Path) -> None:
    photos = CASES[name]()
    run = Run(tmp_path / "run")
    fit(write(tmp_path / "data", photos), run.root, frozen(settings) if method == "frozen" else settings)
    check(run, photos)


def test_batches_may_be_larger_than_the_data_set(settings: Settings, tmp_path: Path) -> None:
    photos = CASES["two images"]()
    train, segment = (dataclasses.replace(part, batch=64) for part in (settings.train, settings.segment))
    run = Run(tmp_path / "run")
    fit(write(tmp_path / "data", photos), run.root, dataclasses.replace(settings, train=train, segment=segment))
    check(run, photos)


def test_a_class_without_a_region_is_named(settings: Settings, tmp_path: Path) -> None:
    photos = [(photo(i, COLOURS[i % 2]), COLOURS[i % 2]) for i in range(4)]
    rca = dataclasses.replace(settings.rca, confidence=0.99)
    run = Run(tmp_path / "run")
    fit(write(tmp_path / "data", photos), run.root, dataclasses.replace(settings, rca=rca))
    check(run, photos)
    assert [one.regions for one in class_verdicts(run)] == [0, 0]


def test_254_classes_have_masks_and_255_are_refused(settings: Settings, tmp_path: Path) -> None:
    names = [f"c{i:03}" for i in range(255)]
    photos = [(photo(i), ";".join(names[i:254:16])) for i in range(16)]
    run = fit_until(write(tmp_path / "data", photos), tmp_path / "run", "masks", settings)
    assert read_classes(run.masks / "classes.json")[254] == "c253"
    for i in (0, 13):
        tags = set(range(1 + i, 255, 16))
        assert set(np.unique(read_mask_file(mask_file(run.decided_masks, str(i)))).tolist()) <= {0, 255} | tags
    said = "255 classes, expected at most 254, because a pixel of a mask is one byte; merge some with --data.rename"
    with pytest.raises(DataError, match=said):
        fit_until(write(tmp_path / "more", [(photo(0), ";".join(names))]), tmp_path / "other", "train", settings)


@pytest.mark.parametrize(("part", "folder"), [("train", "network"), ("segment", "segmenter")])
def test_an_exploding_training_stops_at_the_first_loss_that_is_not_a_number(
    part: str, folder: str, settings: Settings, tmp_path: Path
) -> None:
    photos = [(photo(i, "red"), "red") for i in range(8)]
    values = settings.to_dict()
    values[part]["lr"] = 1e30
    said = rf"{folder}: the loss became (nan|inf) at step 2 of epoch 1; lower --{part}\.lr \(its rate was .*e\+29 there"
    with pytest.raises(RunError, match=said):
        fit(write(tmp_path / "data", photos), tmp_path / "run", Settings.from_dict(values))


def test_too_few_images_are_refused_with_what_to_do(settings: Settings, tmp_path: Path) -> None:
    data = dataclasses.replace(settings.data, min_images=5)
    said = "too few training images: red has 1, expected at least 5 of each class (setting data.min-images); add photo"
    with pytest.raises(DataError, match=re.escape(said)):
        fit(write(tmp_path / "data", CASES["one image"]()), tmp_path / "run", dataclasses.replace(settings, data=data))


def test_true_masks_that_changed_are_scored_again(settings: Settings, tmp_path: Path) -> None:
    photos = [(photo(i, "red"), "red") for i in range(4)]
    data, run = write(tmp_path / "data", photos), Run(tmp_path / "run")
    truth = np.zeros((40, 48), np.uint8)
    truth[8:30, 8:30] = 1
    (data / "masks").mkdir()
    Image.fromarray(truth).save(data / "masks/0.png")
    first = fit(data, run.root, settings)
    assert fit(data, run.root).evaluation == first.evaluation  # type: ignore[union-attr]
    Image.fromarray(1 - truth).save(data / "masks/0.png")
    again = fit(data, run.root)
    assert again.evaluation != first.evaluation  # type: ignore[union-attr]
    Image.fromarray(truth).save(data / "masks/1.png")
    scores = fit(data, run.root).evaluation.pseudo_masks  # type: ignore[union-attr]
    assert scores is not None and scores.images == 2
