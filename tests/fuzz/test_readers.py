"""Every reader of a file that a stranger may have made, fed with spoiled ones: it reads them, or names the file.

A few hundred cases each; benchmarks/reliability/fuzz.py has 100,000.
"""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tagseg.data.images import image_size, read_image, read_mask_file
from tagseg.data.prepare import prepare
from tagseg.data.read import read_dataset
from tagseg.data.true_masks import load_mask
from tagseg.evaluate.gain import calibration_images
from tagseg.evaluate.scores import Evaluation, Scores, read_evaluation
from tagseg.importing.meaning import read_label_map, read_mask_by
from tagseg.prediction.lines import read_predictions
from tagseg.run.folder import Run
from tagseg.run.history import read_history
from tagseg.run.open import open_run
from tagseg.segment.labels import class_values
from tagseg.settings.data import DataSettings
from tagseg.settings.settings import Settings
from tagseg.training.checkpoint import load_tensors, save_tensors

LENIENT = DataSettings(min_images=1, max_megapixels=1.0)
SIZE = 12, 10

NAMES = (
    "../outside.png",
    "/etc/passwd",
    "link.png",
    "far/b.png",
    "pipe.png",
    "zero.png",
    "C:\\x.png",
    "a\0.png",
    "x" * 300,
)
PIECES = (
    *NAMES,
    "1e999",
    "9" * 5000,
    "[" * 3000,
    '{"a":' * 3000,
    "a." * 3000,
    "NaN",
    "-1",
    "null",
    "\\ud800",
    '"',
    ",",
    "\n",
)

few = settings(max_examples=200, suppress_health_check=list(HealthCheck))


@st.composite
def spoiled(draw: st.DrawFn, valid: bytes) -> bytes:
    """Draw a valid file with some places replaced, a piece of any text put in, or its end cut off."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        end = min(len(data), at + draw(st.sampled_from((0, 1, 4, 30))))
        piece = draw(st.binary(max_size=8) | st.sampled_from(PIECES).map(str.encode))
        data[at:end] = piece
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.integers(0, 9)) == 0 else data)


def encoded(mode: str = "RGB", kind: str = "PNG") -> bytes:
    packed = io.BytesIO()
    Image.fromarray(np.arange(120, dtype=np.uint8).reshape(SIZE) % 3).convert(mode).save(packed, kind)
    return packed.getvalue()


def fed(file: Path, data: bytes, read: Callable[[], object], *names: str) -> None:
    """Feed a reader; a refusal must name the file (or one of `names`), nothing else may be raised."""
    file.write_bytes(data)
    try:
        read()
    except ValueError as error:
        assert any(name in str(error) for name in names or (str(file),)), f"{type(error)} names no file: {error}"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of images, with links out of it, a pipe and a device beside them."""
    top = tmp_path_factory.mktemp("fuzz")
    (top / "outside").mkdir()
    folder = top / "photos"
    (folder / "sub").mkdir(parents=True)
    for file in (folder / "a.png", folder / "b.png", folder / "sub/c.png", top / "outside.png", top / "outside/b.png"):
        file.write_bytes(encoded())
    for name, meant in (("link.png", top / "outside.png"), ("far", top / "outside"), ("zero.png", Path("/dev/zero"))):
        (folder / name).symlink_to(meant)
    os.mkfifo(folder / "pipe.png")
    return folder


def read_all(folder: Path) -> None:
    dataset = read_dataset(folder, LENIENT)
    for sample in dataset.samples:
        assert sample.image.resolve().is_relative_to(folder.resolve())
        assert not Path(sample.id).is_absolute() and ".." not in Path(sample.id).parts
        if sample.mask is not None:
            load_mask(sample, dataset, SIZE)


TAG_FILES = {
    "tags.csv": b"image,tags,split\na.png,cat dog,train\nb.png,dog,train\nsub/c.png,cat,val\n",
    "metadata.jsonl": b'{"file_name": "a.png", "tags": ["cat", "dog"]}\n{"file_name": "b.png", "label": "dog"}\n',
    "instances_train.json": json.dumps({
        "images": [{"id": 1, "file_name": "a.png", "height": 12, "width": 10}],
        "categories": [{"id": 3, "name": "cat"}],
        "annotations": [
            {"image_id": 1, "category_id": 3, "segmentation": [[1, 1, 5, 1, 5, 5]]},
            {"image_id": 1, "category_id": 3, "segmentation": {"size": [12, 10], "counts": [20, 100]}, "iscrowd": 1},
        ],
    }).encode(),
}  # fmt: skip


@pytest.mark.parametrize("name", list(TAG_FILES))
def test_tag_files(name: str, photos: Path) -> None:
    @few
    @given(spoiled(TAG_FILES[name]))
    def feed(data: bytes) -> None:
        fed(photos / name, data, lambda: read_all(photos), str(photos))

    feed()
    (photos / name).unlink()


@pytest.mark.parametrize("name", NAMES[:7])
@pytest.mark.parametrize("layout", ["tags.csv", "metadata.jsonl", "instances_train.json"])
def test_names_never_lead_out_of_the_data_folder(name: str, layout: str, photos: Path) -> None:
    valid = TAG_FILES[layout]
    hostile = name if layout == "tags.csv" else json.dumps(name)[1:-1]
    (photos / layout).write_bytes(valid.replace(b"a.png", hostile.encode(), 1))
    with pytest.raises(ValueError, match=layout.replace(".", r"\.")):
        read_all(photos)
    (photos / layout).unlink()


def test_a_tag_file_that_is_a_device_or_a_pipe_is_not_read(photos: Path) -> None:
    (photos / "annotations").mkdir()
    file = photos / "annotations/instances_train.json"
    for make in (lambda: file.symlink_to("/dev/zero"), lambda: os.mkfifo(file)):
        make()
        with pytest.raises(ValueError, match=r"instances_train\.json: .*not a regular file"):
            read_all(photos)
        file.unlink()
    file.parent.rmdir()


@pytest.mark.parametrize("tags", ['"\\ud800"', '["cat", {"a": [1]}]', '[["cat"]]', '{"a": "b"}'])
def test_tags_that_are_no_text_are_refused(tags: str, photos: Path) -> None:
    (photos / "metadata.jsonl").write_text(f'{{"file_name": "a.png", "tags": {tags}}}\n')
    with pytest.raises(
        ValueError, match=r"expected the name of an image and its tags|expected 1 to 1000 characters of valid Unicode"
    ):
        read_all(photos)
    (photos / "metadata.jsonl").unlink()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM"])
def test_images(kind: str, tmp_path: Path) -> None:
    file = tmp_path / f"picture.{kind.lower()}"

    @few
    @given(spoiled(encoded(kind=kind)))
    def feed(data: bytes) -> None:
        fed(file, data, lambda: image_size(file, 1.0))
        fed(file, data, lambda: read_image(file, 1.0))

    feed()


def test_masks(tmp_path: Path) -> None:
    file, labels = tmp_path / "mask.png", tmp_path / "labelmap.txt"
    labels.write_text("background:0,0,0::\ncat:1,1,1::\n")

    @few
    @given(spoiled(encoded("P")) | spoiled(encoded("L")))
    def feed(data: bytes) -> None:
        fed(file, data, lambda: read_mask_file(file, SIZE))
        fed(file, data, lambda: read_mask_by(file, read_label_map(labels, ("cat",)), SIZE))

    feed()


def test_settings(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"

    @few
    @given(spoiled(Settings().to_toml().encode()) | st.text().map(str.encode))
    def feed(data: bytes) -> None:
        fed(file, data, lambda: Settings.from_toml(file))

    feed()


@pytest.mark.parametrize(
    "text",
    [
        "x = " + "[" * 100_000, "x = " + "{a=" * 5000, "seed = " + "9" * 5000, "seed = 0x" + "f" * 5000,
        ".".join("a" * 5000) + " = 1", "[" + ".".join("a" * 5000) + "]", "[train]\nlr = 0x" + "f" * 5000,
        "# " + "x" * (1 << 18), "seed = 99999999999999999999", "[train]\nlr = inf", "[train]\nlr = 1e999",
    ],
)  # fmt: skip
def test_absurd_settings_are_refused_at_once(text: str, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(ValueError, match=r"s\.toml: "):
        Settings.from_toml(tmp_path / "s.toml")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    top = tmp_path_factory.mktemp("runs")
    data = top / "photos"
    data.mkdir()
    for name in ("a.png", "b.png"):
        (data / name).write_bytes(encoded())
    (data / "tags.csv").write_bytes(b"image,tags\na.png,cat\nb.png,dog\n")
    run = open_run(top / "run", data, Settings.from_dict({"data": {"min_images": 1}}))
    prepare(run)
    scores = Scores(0.5, (0.9, None, 0.1), 2, "train", 0.1)
    with run.stage("evaluate"):
        evaluation = Evaluation(("background", "cat", "dog"), scores, scores)
        run.evaluation_file.write_text(json.dumps(msgspec.to_builtins(evaluation)))
    return run


@pytest.mark.parametrize("name", ["manifest.json", "data.json", "evaluation.json", "settings.toml"])
def test_files_of_a_run(name: str, run: Run) -> None:
    valid = (run.root / name).read_bytes()

    def read() -> None:
        if name != "manifest.json":  # it may name any other folder as that of the data
            prepare(run)
        calibration_images(run)
        read_evaluation(run).table()

    @settings(few, max_examples=100)
    @given(spoiled(valid))
    def feed(data: bytes) -> None:
        fed(run.root / name, data, read, str(run.root), str(run.root.parent))

    feed()
    (run.root / name).write_bytes(valid)
    read()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"classes": 3}', '{"classes": [], "broken": [[]], "samples": []}', "[" * 9999]
)
def test_a_damaged_data_json_is_named_with_the_way_out(content: str, run: Run) -> None:
    valid = run.data_file.read_bytes()
    run.data_file.write_text(content)
    with pytest.raises(
        ValueError, match=r"data\.json: damaged \(.*\); delete it .*: the images are read and checked again"
    ):
        prepare(run)
    run.data_file.unlink()
    prepare(run)
    assert run.data_file.read_bytes() == valid


LINES: dict[str, tuple[bytes, Callable[[Path, Run], object]]] = {
    "classes.json": (b'{"0": "background", "1": "cat", "255": "void"}',
                     lambda file, run: class_values(file, read_dataset(run.data_root(), LENIENT))),
    "history.jsonl": (b'{"epoch": 1, "loss": 0.5}\n', lambda file, _: read_history(file)),
    "predictions.jsonl": (b'{"image": "a.png", "mask": "a.png"}\n', lambda file, _: read_predictions(file)),
}  # fmt: skip


@pytest.mark.parametrize("name", list(LINES))
def test_small_json_files(name: str, run: Run, tmp_path: Path) -> None:
    valid, read = LINES[name]

    @few
    @given(spoiled(valid))
    def feed(data: bytes) -> None:
        fed(tmp_path / name, data, lambda: read(tmp_path / name, run))

    feed()


def test_checkpoints_are_whole_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "network.safetensors"
    tensors, about = (
        {"weight": torch.arange(6.0).view(2, 3), "count": torch.tensor(3)},
        {"classes": ["cat"], "stride": 16},
    )
    save_tensors(file, tensors, about)
    good = file.read_bytes()

    @few
    @given(spoiled(good))
    def feed(data: bytes) -> None:
        found = []
        fed(file, data, lambda: found.append(load_tensors(file)))
        for loaded, told in found:
            # What passes is what was saved, or has no checksum any more: then nothing it says can be known to be wrong.
            if b"sha256" in data:
                assert told == about and all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())

    feed()
