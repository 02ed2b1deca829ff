import dataclasses

import pytest

from tagseg.settings.localise import LocaliseSettings
from tagseg.settings.settings import Settings
from tagseg.studies.ablation.arms import ARMS, Arm, arm_settings


@pytest.mark.parametrize("arm", ARMS)
def test_arms_differ_only_in_their_switches(arm: Arm, tiny: Settings) -> None:
    found = arm_settings(tiny, arm, 5)
    switches = {"cam": (False, False), "contrast": (True, False), "aggregation": (False, True), "both": (True, True)}
    assert (found.rca.contrast, found.rca.aggregation) == switches[arm] and found.seed == 5
    rca = dataclasses.replace(found.rca, contrast=tiny.rca.contrast, aggregation=tiny.rca.aggregation)
    assert dataclasses.replace(found, seed=tiny.seed, rca=rca) == tiny


def test_an_arm_that_the_settings_exclude_is_named(tiny: Settings) -> None:
    posterior = dataclasses.replace(tiny, localise=LocaliseSettings(kind="posterior"))
    assert arm_settings(posterior, "both", 0).localise.kind == "posterior"
    with pytest.raises(
        ValueError, match=r"arm cam: setting localise\.kind must be refined, coarse or auto unless .*, got 'posterior'"
    ):
        arm_settings(posterior, "cam", 0)
