"""The runs of an ablation: an arm's settings, its pseudo-masks scored, and what of them a folder holds."""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tagseg.data.images import load_mask
from tagseg.data.prepare import Prepared
from tagseg.evaluate.evaluate import scored_samples
from tagseg.evaluate.iou import confusion, iou
from tagseg.masks.localise import localise
from tagseg.masks.make import mask_image, mask_sample
from tagseg.masks.map_files import map_file, read_maps
from tagseg.run.folder import Run
from tagseg.run.open import SECTIONS
from tagseg.settings.settings import Settings, map_kind
from tagseg.studies.ablation.table import ARMS, BACKGROUND_CUTS, Ablation, Arm, ArmScore
from tagseg.system.files import write_atomically
from tagseg.system.progress import Track, silent
from tagseg.system.untrusted import check_shape, read_json

SCORE_FILE = "ablation_score.json"
"""Where a run folder keeps its figures."""

_SCORE = {"arm": str, "seed": int, "rule": str, "miou": float, "iou": [(float, None)], "cuts": [float]}


def arm_settings(settings: Settings, arm: Arm, seed: int) -> Settings:
    """Return the settings of one run: those given with the arm's two switches and the seed.

    Raises:
        ValueError: when the arm cannot be made with them (posterior maps without aggregation).
    """
    rca = dataclasses.replace(
        settings.rca, contrast=arm in ("contrast", "both"), aggregation=arm in ("aggregation", "both")
    )
    try:
        return dataclasses.replace(settings, seed=seed, rca=rca)
    except ValueError as error:
        raise ValueError(f"arm {arm}: {error}") from error


def run_folder(folder: Path, arm: Arm, seed: int) -> Path:
    """Return where the run of an arm and a seed lies."""
    return folder / f"{arm}_{seed}"


def runs_in(folder: Path) -> list[tuple[Arm, int]]:
    """Return the arms and seeds that have a run folder in `folder`, finished or not."""
    seeds = {arm: [path.name.removeprefix(f"{arm}_") for path in folder.glob(f"{arm}_*")] for arm in ARMS}
    pairs = [(arm, seed) for arm in ARMS for seed in sorted(int(text) for text in seeds[arm] if text.isdecimal())]
    return [pair for pair in pairs if Run(run_folder(folder, *pair)).manifest_file.exists()]


def score_run(prepared: Prepared, run: Run, arm: Arm, track: Track = silent) -> ArmScore:
    """Score a trained run's pseudo-masks and keep the figures in the run folder.

    Only the images that are scored get maps, which a later `localise` keeps; their masks are never written. Maps at
    constant cuts are scored without a CRF.

    Raises:
        DataError: when a true mask has another size than its image, or unknown ids.
    """
    settings = run.settings()
    samples = scored_samples(prepared.dataset, "train")
    run.remove_leftovers("localise")
    localise(prepared.dataset, run, track, samples)
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
    about = {"made_with": _made_with(run, settings, prepared), "score": dataclasses.asdict(score)}
    write_atomically(run.root / SCORE_FILE, json.dumps(about, indent=1, ensure_ascii=False))
    run.note("ablation")
    return score


def read_score(run: Run, settings: Settings, prepared: Prepared) -> ArmScore | None:
    """Return a run's figures; None unless they are those of `settings`, of the run's present network and images."""
    try:
        about = read_json(run.root / SCORE_FILE)
        check_shape(about, {"made_with": dict, "score": _SCORE})
    except (OSError, ValueError):
        return None
    if not run.done("train") or about["made_with"] != _made_with(run, settings, prepared):
        return None
    score = {name: about["score"][name] for name in _SCORE}
    return ArmScore(**{**score, "iou": tuple(score["iou"]), "cuts": tuple(score["cuts"])})


def collect_scores(folder: Path, settings: Settings, prepared: Prepared, asked: Iterable[tuple[Arm, int]]) -> Ablation:
    """Return the figures of all finished runs in `folder` that differ from `settings` in arm and seed alone.

    What else lies there, such as an arm that another process is at work on, is named as missing, for the seeds asked.
    """
    asked = list(asked)
    seeds = sorted({seed for _, seed in asked})
    arms = {arm for arm, _ in asked}
    scores = []
    for arm, seed in runs_in(folder):
        run = Run(run_folder(folder, arm, seed))
        score = read_score(run, arm_settings(settings, arm, seed), prepared)
        scores += [score] if score else []
        arms |= {arm} if seed in seeds else set()
    finished = {(score.arm, score.seed) for score in scores}
    wanted = [(arm, seed) for arm in ARMS if arm in arms for seed in seeds]
    missing = tuple(run_folder(folder, *pair).name for pair in wanted if pair not in finished)
    classes = ("background", *prepared.dataset.classes)
    images = len(scored_samples(prepared.dataset, "train"))
    return Ablation(folder, classes, images, tuple(scores), missing, _shared(settings))


def mask_rule_text(settings: Settings) -> str:
    """Return in words which map a run takes and where it is cut."""
    kind, rule = map_kind(settings.localise, settings.rca), settings.mask_rule()
    # Without aggregation nothing refines the coarse map.
    kind = "coarse" if kind == "refined" and not settings.rca.aggregation else kind
    cut = {
        "rest": "background by what is left",
        "threshold": f"cut at {rule.threshold:g}",
        "otsu": "Otsu's cut",
        "power": f"background power {rule.power:g}",
    }
    crf = ", dense CRF" if settings.crf.steps else ""
    return f"{kind} map, {cut[rule.background]}{', saliency' if rule.saliency else ''}{crf}"


def _made_with(run: Run, settings: Settings, prepared: Prepared) -> dict[str, Any]:
    return {
        "settings": _sections(settings),
        "rule": mask_rule_text(settings),
        "data": str(prepared.dataset.root),
        "classes": list(prepared.dataset.classes),
        "images": [sample.id for sample in scored_samples(prepared.dataset, "train")],
        "network": run.manifest().stages["train"].files["network/network.safetensors"],
    }


def _sections(settings: Settings) -> dict[str, Any]:
    plain = settings.to_dict()
    return {name: plain[name] for stage in ("train", "localise", "masks") for name in SECTIONS[stage]}


def _shared(settings: Settings) -> dict[str, Any]:
    shared = _sections(settings)
    del shared["seed"], shared["rca"]["contrast"], shared["rca"]["aggregation"]
    return shared
