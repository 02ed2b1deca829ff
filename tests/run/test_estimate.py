from dataclasses import replace

import pytest

from tagseg.features.plan import estimate_cache
from tagseg.run.estimate import features_bytes, machine_speed, stage_seconds
from tagseg.settings.features import FeatureSettings
from tagseg.settings.presets import preset
from tagseg.settings.segment import SegmentSettings
from tagseg.settings.settings import Settings
from tagseg.studies.demo import demo_settings

SIZES = {(240, 320): 100, (190, 288): 50, (1000, 800): 10}


def test_the_size_of_features_is_known_without_pytorch() -> None:
    settings = Settings()
    exact = estimate_cache(SIZES, settings.train, settings.features).size
    assert features_bytes(settings, SIZES) == pytest.approx(exact, rel=0.02)
    assert features_bytes(Settings(features=FeatureSettings(channels=64)), SIZES) is None


def test_a_better_quality_takes_longer_and_a_faster_machine_less() -> None:
    fast, balanced, best = (sum(stage_seconds(preset(q), SIZES, 2.0).values()) for q in ("fast", "balanced", "best"))
    assert 60 < fast < balanced < best < 7200
    assert sum(stage_seconds(preset("fast"), SIZES, 4.0).values()) == pytest.approx(fast / 2)
    assert machine_speed() > 0


def test_only_the_stages_of_a_run_count() -> None:
    assert list(stage_seconds(Settings(), SIZES, 2.0)) == [
        "train",
        "localise",
        "masks",
        "segment",
        "evaluate",
        "report",
    ]


def test_trainings_cost_as_many_crops_as_they_take_and_more_if_these_are_larger() -> None:
    demo = stage_seconds(demo_settings(), {(128, 128): 280}, 1.0)
    twice = replace(demo_settings(), train=replace(demo_settings().train, epochs=2 * demo_settings().train.epochs))
    assert 20 < demo["train"] < 200 and 3 < demo["segment"] < 30
    assert stage_seconds(twice, {(128, 128): 280}, 1.0)["train"] == pytest.approx(2 * demo["train"])
    small, large = (
        stage_seconds(Settings(segment=SegmentSettings(rounds=1, crop=crop)), SIZES, 1.0)["segment"]
        for crop in (224, 448)
    )
    assert large == pytest.approx(4 * small)
