"""What the tests of predictions share: a run with a random network, images of several sizes, an interruption."""

import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tagseg.networks.segmenters import empty_segmenter
from tagseg.run.folder import Run
from tagseg.run.open import open_run
from tagseg.settings.settings import Settings
from tagseg.system.progress import Track
from tagseg.training.checkpoint import save_tensors


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run with a segmentation network of random weights."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("drawn")
    run = open_run(root / "run", root, Settings())
    about = {"classes": ["background", "cat", "Bär"], "encoder": "test_resnet", "stride": 16}
    about |= {"predict_scales": [1.0], "predict_flip": True, "max_side": 64}
    network = empty_segmenter("test_resnet", 3, 16)
    # Larger weights, so that masks have more than one value.
    network.state_dict()["net.segmentation_head.0.weight"].normal_(std=3.0)
    with run.stage("segment"):
        save_tensors(run.segmenter / "network.safetensors", network.state_dict(), about)
    return run


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return a folder of images of three sizes in turn, with odd names and a broken one, and a shard of two more."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "sub").mkdir()
    for i in range(40):
        size = ((40, 30), (30, 40), (90, 70))[i % 3]
        pixels = np.random.default_rng(i).integers(0, 256, (size[1] // 4 + 1, size[0] // 4 + 1, 3), np.uint8)
        Image.fromarray(pixels).resize(size).save(folder / ("sub" if i % 2 else "") / f"ü {i:02}.png")
    (folder / "ü 18.jpg").write_bytes(b"none")
    shard = tmp_path_factory.mktemp("shards") / "000.tar"
    with tarfile.open(shard, "w") as archive:
        archive.add(folder / "ü 00.png", "key/one.png")
        archive.add(folder / "sub/ü 01.png", "two.png")
    return [folder, shard]


@pytest.fixture
def interrupted() -> Callable[[int], Track]:
    """Return a function that makes a tracker which interrupts after a number of items."""

    def after(number: int) -> Track:
        def track(items, title, total):  # type: ignore[no-untyped-def]
            for place, item in enumerate(items):
                if place == number:
                    raise KeyboardInterrupt
                yield item

        return track

    return after
