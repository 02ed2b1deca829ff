import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tagseg.checkpoint import save_tensors
from tagseg.data.images import read_mask_file
from tagseg.data.records import DataError
from tagseg.masks.palette import class_colours
from tagseg.run import Run, RunError, open_run
from tagseg.segment.networks import empty_segmenter
from tagseg.segment.predict import Predictor, find_images, load, overlay, predict
from tagseg.settings import Settings


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run whose segmentation network was drawn at random."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("predict")
    run = open_run(root / "run", root, Settings())
    about = {"classes": ["background", "cat", "Bär"], "encoder": "test_resnet", "stride": 16}
    about |= {"predict_scales": [1.0], "predict_flip": True, "max_side": 64}
    with run.stage("segment"):
        save_tensors(run.segmenter / "network.safetensors", empty_segmenter("test_resnet", 3, 16).state_dict(), about)
    return run


def noise(path: Path, size: tuple[int, int] = (40, 30), **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(0, 256, (size[1] // 4 + 1, size[0] // 4 + 1, 3), np.uint8)
    Image.fromarray(pixels).resize(size).save(path, **options)
    return path


def written(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_with_subfolders_and_odd_names(run: Run, tmp_path: Path) -> None:
    photos, out = tmp_path / "my photos", tmp_path / "masks"
    for name in ("a b.jpg", "sub/Größe ü.PNG", "sub/deep/日本.webp", "same.jpg", "same.png", "x.y.jpg"):
        noise(photos / name)
    (photos / "notes.txt").write_text("no image")
    result = predict(run.root, photos, out, device="cpu")
    names = {"a b", "sub/Größe ü", "sub/deep/日本", "same.jpg", "same.png", "x.y"}
    assert set(result.ids) == names and result.skipped == () and result.folder == out
    assert written(out) == {f"{name}.png" for name in names} | {"classes.json"}
    for name in names:
        assert read_mask_file(out / f"{name}.png", (30, 40)).max() <= 2
    with Image.open(out / "a b.png") as picture:
        assert picture.mode == "P"
    assert json.loads((out / "classes.json").read_text(encoding="utf-8")) == {
        "0": "background", "1": "cat", "2": "Bär", "255": "void",
    }  # fmt: skip


def test_a_file_a_pattern_and_a_list(run: Run, tmp_path: Path) -> None:
    one, two = noise(tmp_path / "in/one.png"), noise(tmp_path / "in/two.jpg")
    (tmp_path / "in/readme.md").write_text("")
    assert predict(run.root, one, tmp_path / "a", device="cpu").ids == ("one",)
    assert predict(run.root, str(tmp_path / "in/*"), tmp_path / "b", device="cpu").ids == ("one", "two")
    assert predict(run.root, [two, str(one)], tmp_path / "c", device="cpu").ids == ("two", "one")
    # The same file named twice is one image; a folder whose name looks like a pattern is a folder.
    assert set(find_images([one, tmp_path / "in"])) == {"one", "two"}
    deep = noise(tmp_path / "in/more/deep/three.png")
    assert find_images([str(tmp_path / "i*/**/*.png")]) == {"one": one, "three": deep}
    odd = noise(tmp_path / "in [2]/x.png")
    assert find_images([odd]) == find_images([odd.parent]) == {"x": odd}


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("nothing.jpg", r"nothing\.jpg: no such image, folder or pattern"),
        ("*.bmp", r"\*\.bmp: no such image, folder or pattern"),
        ("empty", r"empty: holds no images \(\.jpg, "),
        ("*.md", r"\*\.md: holds no images"),
    ],
)
def test_nothing_to_predict_is_named(
    wanted: str, message: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.md").write_text("")
    with pytest.raises(DataError, match=message):
        predict(run.root, wanted, tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


def test_two_images_whose_masks_would_have_one_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"their masks would have the same name; predict them apart"):
        find_images([noise(tmp_path / "a/1.png"), noise(tmp_path / "b/1.png")])


def test_masks_that_exist_need_force(run: Run, tmp_path: Path) -> None:
    image, out = noise(tmp_path / "a.jpg"), tmp_path / "out"
    predict(run.root, image, out, device="cpu")
    (out / "a.png").write_bytes(b"mine")
    noise(tmp_path / "b.jpg")
    with pytest.raises(DataError, match=r"a\.png: exists \(1 masks do\); choose another --out or --force"):
        predict(run.root, tmp_path / "*.jpg", out, device="cpu")
    assert (out / "a.png").read_bytes() == b"mine" and not (out / "b.png").exists()
    predict(run.root, tmp_path / "*.jpg", out, device="cpu", force=True)
    assert read_mask_file(out / "a.png").shape == (30, 40) and (out / "b.png").exists()


def test_masks_do_not_overwrite_the_images_they_lie_beside(run: Run, tmp_path: Path) -> None:
    image = noise(tmp_path / "a.png")
    before = image.read_bytes()
    with pytest.raises(DataError, match="exists"):
        predict(run.root, tmp_path, tmp_path, device="cpu")
    assert image.read_bytes() == before


def test_broken_images_are_skipped_and_listed(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    noise(tmp_path / "in/good.jpg")
    broken = tmp_path / "in/broken.jpg"
    broken.write_bytes(noise(tmp_path / "whole.jpg", (400, 300)).read_bytes()[:2000])
    noise(tmp_path / "in/large.png", (500, 400))
    with caplog.at_level(logging.WARNING, "tagseg"):
        result = predict(run.root, tmp_path / "in", tmp_path / "out", device="cpu", max_megapixels=0.15)
    assert result.ids == ("good",) and written(tmp_path / "out") == {"good.png", "classes.json"}
    (first, damage), (second, size) = result.skipped
    assert first == str(broken) and "damaged" in damage and second.endswith("large.png") and "too large" in size
    assert caplog.text.count("skipped: ") == 2


def test_when_every_image_is_broken_that_is_an_error(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"none of the 1 images could be read; first: .*a\.jpg"):
        predict(run.root, tmp_path / "a.jpg", tmp_path / "out", device="cpu")


def test_a_photo_taken_upright_has_an_upright_mask(run: Run, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = noise(tmp_path / "in/turned.jpg", (40, 30), exif=exif)
    predict(run.root, image, tmp_path / "out", overlays=True, device="cpu")
    assert read_mask_file(tmp_path / "out/turned.png").shape == (40, 30)
    with Image.open(tmp_path / "out/turned.overlay.jpg") as picture:
        assert picture.size == (30, 40) and picture.mode == "RGB"


@pytest.mark.parametrize("size", [(300, 170), (1, 1), (1, 500), (7, 5)])
def test_masks_have_the_images_size(size: tuple[int, int], run: Run) -> None:
    predictor = load(run.root, "cpu")
    mask = predictor(Image.new("RGB", size, "red"))
    assert mask.shape == size[::-1] and mask.dtype == np.uint8 and mask.max() <= 2


def test_large_images_are_reduced_before_the_network_sees_them(run: Run) -> None:
    predictor = load(run.root, "cpu")
    seen = []
    predictor.network.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[2:])))
    predictor(Image.new("RGB", (256, 128)))
    predictor(Image.new("RGB", (48, 32)))
    assert set(seen) == {(32, 64), (32, 48)}


def test_a_mask_is_the_likeliest_id(run: Run) -> None:
    predictor = load(run.root, "cpu")
    last = predictor.network.net.segmentation_head[0]
    torch.nn.init.zeros_(last.weight)
    for likeliest in range(3):
        last.bias.data = torch.nn.functional.one_hot(torch.tensor(likeliest), 3).float()
        assert (predictor(Image.new("RGB", (50, 40))) == likeliest).all()


def test_a_run_without_segmenter(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a run folder"):
        predict(tmp_path, tmp_path, tmp_path / "out")
    run = open_run(tmp_path / "run", tmp_path, Settings())
    with pytest.raises(RunError, match="stage segment has not finished"):
        predict(run.root, tmp_path, tmp_path / "out")


def test_a_damaged_network_is_named(run: Run, tmp_path: Path) -> None:
    other = open_run(tmp_path / "run", tmp_path, Settings())
    with other.stage("segment"):
        other.segmenter.mkdir()
        (other.segmenter / "network.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(RunError, match=r"segmenter/network\.safetensors: missing or damaged"):
        load(other.root, "cpu")


def test_overlay_colours_all_but_the_background() -> None:
    image = Image.new("RGB", (3, 1), (100, 100, 100))
    shown = np.asarray(overlay(image, np.array([[0, 1, 2]], np.uint8), opacity=0.5)).tolist()
    expected = [[100, 100, 100], *[[round(50 + c / 2) for c in class_colours(2)[i]] for i in (1, 2)]]
    assert shown == [expected]


def test_a_predictor_says_what_its_ids_mean(run: Run) -> None:
    predictor = load(run.root, "cpu")
    assert isinstance(predictor, Predictor) and predictor.classes == ("background", "cat", "Bär")
    assert not predictor.network.training and predictor.scales == (1.0,) and predictor.flip and predictor.max_side == 64
