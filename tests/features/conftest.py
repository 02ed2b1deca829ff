"""A few drawn photographs in two sizes, and tiny backbones."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tagseg.data.records import Sample
from tagseg.features import extract as module
from tagseg.features.cache import FeatureCache
from tagseg.networks.backbones import Backbone, build_backbone
from tagseg.settings.features import FeatureSettings
from tagseg.system.progress import silent


@pytest.fixture(autouse=True)
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let one thread compute: these images are tiny."""
    monkeypatch.setattr(module, "cores", lambda: 1)


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[Sample, ...], dict[str, tuple[int, int]]]:
    """Return seven samples, of 64 x 96 and 96 x 64 pixels in turn, and their sizes."""
    folder, random = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    samples, sizes = [], {}
    for number in range(7):
        size = (64, 96) if number % 2 else (96, 64)
        noise = random.integers(0, 255, (8, 8, 3), np.uint8)
        Image.fromarray(noise).resize(size[::-1]).save(folder / f"{number}.png")
        samples.append(Sample(str(number), folder / f"{number}.png", (1,)))
        sizes[str(number)] = size
    return tuple(samples), sizes


@pytest.fixture(scope="session")
def tiny_backbones() -> dict[str, Backbone]:
    """Return a convolutional network and a vision transformer with random weights."""
    return {name: build_backbone(name, "random", 16) for name in ("test_resnet", "test_vit")}


@pytest.fixture
def cached(
    photographs: tuple[tuple[Sample, ...], dict[str, tuple[int, int]]], tiny_backbones: dict[str, Backbone]
) -> Callable[..., FeatureCache]:
    """Return a function that caches the features of the photographs in a folder."""

    def make(folder: Path, name: str = "test_resnet", count: int = 7, **options: object) -> FeatureCache:
        samples, sizes = photographs
        given: dict[str, Any] = {"precision": "fp32", "max_side": 64, "channels": 8, **options}
        track = given.pop("track", silent)
        settings = FeatureSettings(**given)
        return module.extract(samples[:count], sizes, tiny_backbones[name], settings, folder, 1.0, track)

    return make
