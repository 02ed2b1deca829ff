"""Judge masks that another tool or a person made, by what a run learned from the tags alone."""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from tagseg.data.images import read_image
from tagseg.data.prepare import Prepared, prepare
from tagseg.data.records import VOID, Sample
from tagseg.data.true_masks import load_mask
from tagseg.errors import DataError
from tagseg.evaluate.quality import ImageQuality
from tagseg.evaluate.ranking import Worst, worst_first
from tagseg.evaluate.suspects import Suspect, find_suspects
from tagseg.rca.train import load_network
from tagseg.review.judge import DECODERS, gather_evidence, judge_evidence, read_judge, tag_scores
from tagseg.run.folder import Run
from tagseg.segment.labels import class_values, samples_with_labels
from tagseg.system.progress import Track, map_ahead, silent
from tagseg.training.device import choose_device


@dataclass(frozen=True)
class JudgedMasks:
    """Foreign masks, judged by tags alone.

    worst: all of them, the least trustworthy first; a mask that cannot be compared has the score 0 and says why.
    suspects: tags that fit neither image nor mask, the most certain first. found: the quality of each image that could
    be compared, by its id. missing: images of the training set without a mask.
    """

    worst: list[Worst]
    suspects: list[Suspect]
    found: Mapping[str, ImageQuality]
    missing: tuple[str, ...]


def judge_masks(run: str | Path, labels: str | Path, track: Track = silent) -> JudgedMasks:
    """Judge the masks in a folder, which another tool or a person made, by the networks of a run.

    The run learned from tags, never from these masks. Masks are named like the training images (see
    `segment.labels`). A class that a mask shows though its image is not tagged with it counts as wrong.

    Args:
        run: a run folder with a segmentation network.
        labels: a folder of PNGs with class ids, 255 for void; a `classes.json` says which value is which class.
        track: reports progress.

    Raises:
        RunError: when the run has no segmentation network or no maps, or a file of it is damaged.
        DataError: when the folder has no mask of a training image, or names an unknown class.
    """
    opened, folder = Run(Path(run)), Path(labels)
    opened.require("segment")
    prepared = prepare(opened)
    samples = prepared.dataset.split("train")
    ours = samples_with_labels(samples, folder)
    ids = class_values(folder / "classes.json", prepared.dataset)
    meaning = dataclasses.replace(prepared, dataset=dataclasses.replace(prepared.dataset, mask_ids=ids))
    found, unusable = _judge(opened, meaning, ours, track)
    classes = prepared.dataset.classes
    notes = {sample.id: _note(classes, sample, found[sample.id]) for sample in ours if sample.id in found}
    ranked = [_noted(one, notes[one.id]) for one in worst_first(prepared.dataset, found)]
    broken = [Worst(name, 0.0, {}, why) for name, why in sorted(unusable.items())]
    missing = tuple(sample.id for sample in samples if sample.id not in found and sample.id not in unusable)
    return JudgedMasks([*broken, *ranked], find_suspects(prepared.dataset, found), found, missing)


def _judge(
    run: Run, meaning: Prepared, samples: list[Sample], track: Track
) -> tuple[dict[str, ImageQuality], dict[str, str]]:
    """Return the quality of each mask, and why others cannot be compared, by image id."""
    settings, source, predictor = run.settings(), run.final(), read_judge(run)
    network = load_network(run.network, choose_device(settings.device))[0] if run.done("train") else None
    rule = source.settings().mask_rule()

    def read(sample: Sample) -> tuple[Sample, Image.Image, UInt8[np.ndarray, "H W"] | str]:
        image = read_image(sample.image, settings.data.max_megapixels)
        try:
            mask = load_mask(sample, meaning.dataset, meaning.sizes[sample.id])
        except DataError as error:
            return sample, image, str(error)
        return sample, image, mask if (mask != VOID).any() else "every pixel is void (255)"

    found: dict[str, ImageQuality] = {}
    unusable: dict[str, str] = {}
    with contextlib.closing(map_ahead(samples, read, DECODERS)) as images:
        for sample, image, mask in track(images, "judge masks", len(samples)):
            if isinstance(mask, str):
                unusable[sample.id] = mask
                continue
            evidence = gather_evidence(predictor, source, rule, sample, image, (mask, mask))
            void = evidence.decided == VOID  # counts neither for nor against the mask
            shown = tuple(int(one) for one in np.unique(evidence.decided) if one not in (0, VOID, *sample.tags))
            evidence = evidence._replace(
                views=np.where(void, 0, evidence.views), maps=np.where(void, 0, evidence.maps), untagged=shown
            )
            scores = tag_scores(network, image, settings.localise) if network else None
            found[sample.id] = judge_evidence(evidence, scores)
    return found, unusable


def _note(classes: Sequence[str], sample: Sample, quality: ImageQuality) -> str:
    """Return which classes a mask shows that its image is not tagged with; empty if there are none."""
    others = [classes[class_id - 1] for class_id in quality.classes if class_id not in sample.tags]
    return "; ".join(f"{other} is not a tag of the image" for other in others)


def _noted(one: Worst, note: str) -> Worst:
    return dataclasses.replace(one, reason="; ".join(filter(None, (note, one.reason)))) if note else one
