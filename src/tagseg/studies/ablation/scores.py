"""The score of an arm's pseudo-masks: computed once, then kept in the run folder."""

import dataclasses
from typing import Any, get_args

import msgspec
import numpy as np

from tagseg.data.prepare import Prepared
from tagseg.data.true_masks import load_mask
from tagseg.errors import RunError
from tagseg.evaluate.evaluate import scored_samples
from tagseg.evaluate.iou import confusion, iou
from tagseg.features.extract import make_features
from tagseg.masks.localise import localise
from tagseg.masks.make import mask_image, mask_sample
from tagseg.masks.map_files import map_file, read_maps
from tagseg.run.folder import Run
from tagseg.run.open import SECTIONS
from tagseg.settings.settings import Rival, Settings, map_kind
from tagseg.studies.ablation.arms import Arm
from tagseg.system.progress import Track, silent
from tagseg.system.records import Record, Share, read_record

BACKGROUND_CUTS = tuple(tenth / 10 for tenth in range(1, 10))
"""Constant cuts at which each arm is scored besides its own rule, to show how much the cut matters."""

SCORE_FILE = "ablation_score.json"
"""The file in a run folder that holds the score of its pseudo-masks."""


class ArmScore(msgspec.Struct, frozen=True):
    """The score of one run's pseudo-masks, 0 to 1.

    miou, iou: pooled mIoU and the IoU of each class id (None as in `Scores`), with the run's own mask rule. cuts: the
    mIoU at each of `BACKGROUND_CUTS`. rule: the mask rule in words.
    """

    arm: Arm
    seed: int
    rule: str
    miou: Share
    iou: tuple[Share | None, ...]
    cuts: tuple[Share, ...]


class MadeWith(msgspec.Struct, frozen=True):
    """What a score depends on: settings (of the stages up to the masks), mask rule in words, data folder, classes, ids
    of the scored images, and the network's checksum."""

    settings: dict[str, Any]
    rule: str
    data: str
    classes: tuple[str, ...]
    images: tuple[str, ...]
    network: str


class RunScore(Record, frozen=True):
    """ablation_score.json of a run: its score, and what it was made with."""

    made_with: MadeWith
    score: ArmScore


def score_run(prepared: Prepared, run: Run, arm: Arm, track: Track = silent) -> ArmScore:
    """Score a trained run's pseudo-masks and keep the score in the run folder.

    Only images with true masks get maps, which a later `localise` keeps; their pseudo-masks are not written. At
    constant cuts, maps are scored without a CRF.

    Raises:
        DataError: when a true mask differs in size from its image, or has unknown ids.
    """
    settings = run.settings()
    samples = scored_samples(prepared.dataset, "train")
    run.remove_leftovers("localise")
    cache = make_features(prepared, run, track) if settings.train.method == "frozen" else None
    localise(prepared.dataset, run, track, samples, cache=cache)
    rules = [
        dataclasses.replace(settings.mask_rule(), background="threshold", threshold=cut) for cut in BACKGROUND_CUTS
    ]
    ids = len(prepared.dataset.classes) + 1
    matrices = np.zeros((1 + len(rules), ids, ids), np.int64)
    for sample in track(samples, "score", len(samples)):
        size = prepared.sizes[sample.id]
        truth = load_mask(sample, prepared.dataset, size)
        matrices[0] += confusion(truth, mask_sample(run, sample, size, settings)[0], ids)
        maps, classes = read_maps(map_file(run, sample.id))
        for matrix, one in zip(matrices[1:], rules, strict=True):
            matrix += confusion(truth, mask_image(None, maps, classes, size, one)[0], ids)
    own, *others = (iou(matrix) for matrix in matrices)
    cuts = tuple(found.miou for found in others)
    score = ArmScore(arm, settings.seed, mask_rule_text(settings), own.miou, own.iou, cuts)
    with run.changing() as (_, draft):
        draft.write(SCORE_FILE, RunScore(_made_with(run, settings, prepared), score))
        draft.note("ablation")
    return score


def read_score(run: Run, settings: Settings, prepared: Prepared) -> ArmScore | None:
    """Return a run's score, or None unless it belongs to `settings` and the run's present network and images."""
    try:
        kept = read_record(run.root / SCORE_FILE, RunScore, "score the run again")
    except RunError:
        return None
    if not run.done("train") or kept.made_with != _made_with(run, settings, prepared):
        return None
    return kept.score


def mask_rule_text(settings: Settings) -> str:
    """Return in words which map a run uses and how it is cut."""
    kind, rule = map_kind(settings.localise, settings.rca), settings.mask_rule()
    name = settings.maps if settings.maps in get_args(Rival) else ""
    # Without aggregation nothing refines the coarse map.
    kind = "coarse" if kind == "refined" and not settings.rca.aggregation else kind
    cut = {
        "rest": "background by what is left",
        "threshold": f"cut at {rule.threshold:g}",
        "otsu": "Otsu's cut",
        "power": f"background power {rule.power:g}",
    }
    crf = ", dense CRF" if settings.crf.steps else ""
    return f"{name or kind} map, {cut[rule.background]}{', saliency' if rule.saliency else ''}{crf}"


def _made_with(run: Run, settings: Settings, prepared: Prepared) -> MadeWith:
    return MadeWith(
        settings_of_masks(settings),
        mask_rule_text(settings),
        str(prepared.dataset.root),
        prepared.dataset.classes,
        tuple(sample.id for sample in scored_samples(prepared.dataset, "train")),
        run.manifest().stages["train"].files.get("network/network.safetensors", ""),
    )


def settings_of_masks(settings: Settings) -> dict[str, Any]:
    """Return the settings that pseudo-masks depend on, as plain values."""
    plain = settings.to_dict()
    return {name: plain[name] for stage in ("train", "localise", "masks") for name in SECTIONS[stage]}
