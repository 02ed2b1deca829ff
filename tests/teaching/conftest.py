"""A tiny run from frozen features, fitted once per session, and copies of it."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from tagseg.pipeline import fit_until
from tagseg.run.folder import Run
from tagseg.settings.crf import CrfSettings
from tagseg.settings.data import DataSettings
from tagseg.settings.features import FeatureSettings
from tagseg.settings.presets import preset
from tagseg.settings.train import TrainSettings

FAST = preset("fast")
SETTINGS = dataclasses.replace(
    FAST,
    device="cpu",
    workers=0,
    data=DataSettings(min_images=2),
    crf=CrfSettings(steps=1),
    features=FeatureSettings(scales=(1.0, 2.0), max_side=64, channels=8),
    rca=dataclasses.replace(FAST.rca, rounds=2, prototypes=2, background_prototypes=3),
    train=TrainSettings(backbone="test_resnet", weights="random", stride=8, method="frozen"),
)


@pytest.fixture(scope="session")
def fitted(discs: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run of nine images of red and blue discs whose masks are made from frozen features."""
    return fit_until(discs, tmp_path_factory.mktemp("taught") / "run", "masks", SETTINGS)


@pytest.fixture
def run(fitted: Run, tmp_path: Path) -> Run:
    """Return a copy of the run that a test may teach."""
    return Run(Path(shutil.copytree(fitted.root, tmp_path / "run")))
