import dataclasses
import shutil
from pathlib import Path
from typing import Literal, get_args, get_type_hints

import numpy as np
import pytest

from tagseg.data.prepare import Prepared, prepare
from tagseg.data.true_masks import load_mask
from tagseg.evaluate.evaluate import score_pseudo_masks
from tagseg.masks.map_files import map_file, write_maps
from tagseg.pipeline import fit_until
from tagseg.run.folder import Run
from tagseg.run.manifest import StageNote
from tagseg.run.open import open_run
from tagseg.settings.crf import CrfSettings
from tagseg.settings.masks import MaskSettings
from tagseg.settings.rca import RcaSettings
from tagseg.settings.report import ReportSettings
from tagseg.settings.settings import Settings
from tagseg.studies.ablation.ablate import collect_scores
from tagseg.studies.ablation.arms import arm_settings, runs_in
from tagseg.studies.ablation.scores import SCORE_FILE, mask_rule_text, read_score, score_run


@pytest.fixture(scope="module")
def original(discs: Path, tiny: Settings, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return the scored run of arm both, seed 3."""
    root = tmp_path_factory.mktemp("arms") / "both_3"
    fit_until(discs, root, "train", arm_settings(tiny, "both", 3))
    score_run(prepare(Run(root)), Run(root), "both")
    return Run(root)


@pytest.fixture
def run(original: Run, tmp_path: Path) -> Run:
    """Return a copy of the scored run that a test may change."""
    return Run(shutil.copytree(original.root, tmp_path / "both_3"))


def test_only_scored_images_get_maps_and_no_stage_counts_as_done(original: Run) -> None:
    assert sorted(path.name for path in original.maps.iterdir()) == ["0.npz", "1.npz", "2.npz", "3.npz"]
    assert tuple(original.manifest().stages) == ("train",)
    assert not original.masks.exists() and not original.decided_masks.exists()


def test_the_score_is_that_of_the_written_masks(run: Run, discs: Path) -> None:
    prepared = prepare(run)
    before = {path.name: path.stat().st_mtime_ns for path in run.maps.iterdir()}
    # The run can continue to masks like any other, and keeps its maps.
    fit_until(discs, run.root, "masks")
    assert {path.name for path in run.maps.iterdir()} == {f"{i}.npz" for i in range(9)}
    assert all((run.maps / name).stat().st_mtime_ns == time for name, time in before.items())
    expected, found = score_pseudo_masks(prepared, run), read_score(run, run.settings(), prepared)
    assert expected is not None and found is not None and expected.images == 4
    assert (found.miou, found.iou) == (expected.miou, expected.iou)


def test_a_score_by_hand(run: Run) -> None:
    """Maps as large as the images: 0.4 on the truth, 0.8 on the truth's lower half, 1 in one pixel."""
    prepared, settings = prepare(run), dataclasses.replace(run.settings(), crf=CrfSettings(0))
    run.settings_file.write_text(settings.to_toml())
    hits, sums = ({cut: np.zeros(3) for cut in (0.1, 0.5, 0.9)} for _ in range(2))
    for sample in prepared.dataset.split("train")[:4]:
        truth = load_mask(sample, prepared.dataset)
        maps = np.stack([np.where(truth == tag, 0.4, 0.0) for tag in sample.tags])
        maps[:, 24:] = np.where(maps[:, 24:] > 0, 0.8, 0.0)
        maps[:, 0, 0] = 1.0
        write_maps(map_file(run, sample.id), maps, sample.tags)
        for cut in hits:
            seen = np.zeros_like(truth)
            for tag, values in reversed(list(zip(sample.tags, maps, strict=True))):  # the first tag wins a draw
                seen[values > cut] = tag
            for i in range(3):
                hits[cut][i] += ((seen == i) & (truth == i)).sum()
                sums[cut][i] += ((seen == i) | (truth == i)).sum()
    score = score_run(prepared, run, "both")
    assert settings.mask_rule().background == "rest"
    assert score.iou == pytest.approx(
        hits[0.5] / sums[0.5]
    )  # background is 0.6 where the map is 0.4, and 0.2 where it is 0.8
    for place, cut in ((0, 0.1), (4, 0.5), (8, 0.9)):
        assert score.cuts[place] == pytest.approx((hits[cut] / sums[cut]).mean())
    assert score.cuts[0] > 0.99 > score.cuts[4] > score.cuts[8]


def test_a_score_survives_its_file(original: Run) -> None:
    found = read_score(original, original.settings(), prepare(original))
    assert found is not None and (found.arm, found.seed, len(found.cuts), len(found.iou)) == ("both", 3, 9, 3)
    assert found.rule == "posterior map, background by what is left, dense CRF"


def test_a_score_is_void_when_settings_images_or_network_change(run: Run) -> None:
    settings, prepared = run.settings(), prepare(run)
    for section, change in (("masks", {"threshold": 0.6}), ("localise", {"flip": False}), ("train", {"epochs": 3})):
        other = dataclasses.replace(settings, **{section: dataclasses.replace(getattr(settings, section), **change)})
        assert read_score(run, other, prepared) is None, section
    assert read_score(run, dataclasses.replace(settings, seed=4), prepared) is None
    # Settings that no mask depends on may change.
    assert read_score(run, dataclasses.replace(settings, workers=1, report=ReportSettings(title="x")), prepared)
    fewer = Prepared(dataclasses.replace(prepared.dataset, samples=prepared.dataset.samples[1:]), prepared.sizes)
    assert read_score(run, settings, fewer) is None
    run.store(run.manifest().with_stage("train", StageNote(files={"network/network.safetensors": "another"})))
    assert read_score(run, settings, prepared) is None


def test_a_damaged_or_missing_score_is_none(run: Run) -> None:
    prepared = prepare(run)
    assert read_score(run, run.settings(), prepared) is not None
    for text in ('{"made_with"', "{}"):
        (run.root / SCORE_FILE).write_text(text)
        assert read_score(run, run.settings(), prepared) is None, text
    run.discard("train")
    assert read_score(run, run.settings(), prepared) is None


def test_the_runs_in_a_folder(run: Run, discs: Path, tiny: Settings) -> None:
    folder, prepared = run.root.parent, prepare(run)
    for name in ("cam_4", "cam_3"):
        open_run(folder / name, discs, arm_settings(tiny, "cam", int(name[-1])))
    for name in ("cam_x", "both_", "other_3", "contrast_3"):
        (folder / name).mkdir()
    assert runs_in(folder) == [("cam", 3), ("cam", 4), ("both", 3)]
    found = collect_scores(folder, tiny, prepared, [("both", 3)])
    assert [(score.arm, score.seed) for score in found.scores] == [("both", 3)]
    # An arm that another process has begun is missing for the seeds asked for, whatever other seeds it has.
    assert found.missing == ("cam_3",) and found.arms == ("both",)
    assert collect_scores(folder, tiny, prepared, [("both", 3), ("both", 4)]).missing == ("cam_3", "cam_4", "both_4")
    assert found.classes == ("background", "blue", "red") and found.images == 4
    assert "seed" not in found.settings and set(tiny.to_dict()["rca"]) - set(found.settings["rca"]) == {
        "contrast", "aggregation",
    }  # fmt: skip


def test_runs_of_other_settings_are_left_out(run: Run, tiny: Settings) -> None:
    other = dataclasses.replace(tiny, masks=MaskSettings(threshold=0.6))
    found = collect_scores(run.root.parent, other, prepare(run), [("both", 3)])
    assert found.scores == () and found.missing == ("both_3",)


@pytest.mark.parametrize("rule", get_args(get_type_hints(MaskSettings)["background"]))
def test_each_rule_has_words(rule: Literal["auto", "rest", "otsu", "threshold", "power"]) -> None:
    words = {"rest": "background by what is left", "otsu": "Otsu's cut", "threshold": "cut at 0.5"}
    words |= {"power": "background power 2", "auto": "background by what is left"}
    masks = MaskSettings(background=rule)
    assert mask_rule_text(Settings(masks=masks)) == f"posterior map, {words[rule]}, dense CRF"
    assert mask_rule_text(Settings(masks=masks, crf=CrfSettings(0))) == f"posterior map, {words[rule]}"
    salient = dataclasses.replace(masks, saliency=True)
    assert mask_rule_text(Settings(masks=salient)) == f"posterior map, {words[rule]}, saliency, dense CRF"


def test_without_aggregation_the_map_is_the_coarse_one() -> None:
    assert mask_rule_text(Settings(rca=RcaSettings(aggregation=False))) == "coarse map, Otsu's cut, dense CRF"
    assert mask_rule_text(Settings(rca=RcaSettings(background=False))) == "refined map, Otsu's cut, dense CRF"
