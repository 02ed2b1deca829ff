"""What all tests share: checked shapes, fixed seeds, no network, and the optional real data."""

import os
import random
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import numpy as np
import pytest
import torch
from jaxtyping import install_import_hook

if TYPE_CHECKING:
    from tagseg.settings import Settings

# Hugging Face's client reads this when it is imported, child processes inherit it: no test reaches for the network.
os.environ["HF_HUB_OFFLINE"] = "1"

# Tensors in tests are tiny: more threads only get in one another's way.
torch.set_num_threads(1)

# From here on the types and shapes in tagseg's signatures are checked at every call.
install_import_hook("tagseg", "beartype.beartype")

hypothesis.settings.register_profile("tagseg", deadline=None, derandomize=True)
hypothesis.settings.load_profile("tagseg")


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Start every test from the same random state."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder `shared` beside the checkout, with optional real `data` and `weights`."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "data").is_dir():
        pytest.skip(f"no real data: {folder / 'data'} does not exist")
    return folder


@pytest.fixture(scope="session")
def discs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of nine training images of red and blue discs; the first four have true masks."""
    from PIL import Image, ImageDraw

    data = tmp_path_factory.mktemp("discs") / "data"
    for folder in ("images", "masks"):
        (data / folder).mkdir(parents=True)
    rows = ["image,tags"]
    for i in range(9):
        grey = np.random.default_rng(i).integers(90, 160, (48, 64, 3), np.uint8)
        image, mask = Image.fromarray(grey), Image.new("L", (64, 48))
        tags = (("red",), ("blue",), ("red", "blue"))[i % 3]
        for number, name in enumerate(tags):
            disc = (4 + 28 * number, 8 + i, 28 + 28 * number, 32 + i)
            ImageDraw.Draw(image).ellipse(disc, fill=name)
            ImageDraw.Draw(mask).ellipse(disc, fill={"blue": 1, "red": 2}[name])
        image.save(data / "images" / f"{i}.png")
        if i < 4:
            mask.save(data / "masks" / f"{i}.png")
        rows.append(f"{i}.png,{' '.join(tags)}")
    (data / "tags.csv").write_text("\n".join(rows) + "\n")
    return data


@pytest.fixture(scope="session")
def tiny() -> "Settings":
    """Return settings with which a training on a few small images takes a second."""
    from tagseg.settings import Settings

    train = {"backbone": "test_resnet", "weights": "random", "freeze_stride": 0, "neck": 16, "epochs": 2, "batch": 4}
    return Settings.from_dict(
        {
            "device": "cpu",
            "workers": 0,
            "data": {"min_images": 2},
            "train": {**train, "crop": 33},
            "rca": {"slots": 8, "prototypes": 2, "confidence": 0.0},
            "localise": {"scales": [1.0], "max_side": 64},
        }
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked gpu where there is no CUDA device."""
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
