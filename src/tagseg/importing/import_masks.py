"""Import masks that were corrected in another tool, as a folder that the segmentation network can learn from."""

import dataclasses
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tagseg.data.prepare import prepare
from tagseg.data.records import VOID
from tagseg.data.true_masks import load_mask
from tagseg.errors import DataError
from tagseg.export.folder import whole_folder
from tagseg.importing.lost import Lost, count_lost
from tagseg.importing.match import match
from tagseg.importing.source import opened, read_source
from tagseg.masks.mask_files import mask_file, write_classes, write_mask
from tagseg.run.folder import Run
from tagseg.system.progress import Track, silent

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Imported:
    """What `import_masks` wrote: the folder, and the numbers of corrected masks and of the run's own masks in it."""

    folder: Path
    corrected: int
    own: int


def import_masks(
    corrected: str | Path,
    run: str | Path,
    out: str | Path,
    with_pseudo: bool = False,
    force: bool = False,
    track: Track = silent,
) -> Imported:
    """Write corrected masks of a run's training images to `out` as class ids, for `tagseg segment --labels`.

    Args:
        corrected: what the tool exported, as a ZIP file, a folder or a file: COCO JSON (every image in it counts as
            corrected; one without annotations shows no class), Label Studio's JSON (its submitted tasks), CVAT's
            annotations.xml, LabelMe's JSON files, or PNGs named like the images, also in a VOC devkit. classes.json,
            labelmap.txt or LabelMe's class_names.txt beside PNGs give the meaning of their values and colours; without
            these, values mean the same as in the data set's own masks.
        run: the run that the images belong to.
        out: a new folder; it appears once everything is written.
        with_pseudo: add the run's own pseudo-masks for the other training images.
        force: replace an existing import.
        track: how to report progress.

    Raises:
        DataError: when a file is damaged, no mask belongs to a training image, two belong to the same one, a size or a
            class is wrong, it is unclear what the pixels mean, no mask shows a class, or most show none of the tags.
    """
    source, owner = Path(corrected), Run(Path(run))
    prepared = prepare(owner, track)
    if with_pseudo:
        owner.require("masks")
    about = {"import": str(source.resolve()), "run": str(owner.root.resolve()), "with_pseudo": with_pseudo}
    with opened(source) as place, whole_folder(Path(out), about, force) as temporary:
        matched = match(source, read_source(place, source, prepared.dataset), prepared)
        if empty := sum(one.empty for _, one in matched):
            log.warning("%s: images without annotations: %d; their masks are all background", source, empty)
        write_classes(temporary, prepared.dataset.classes)
        shows_class, untagged, foreign, lost = False, list[str](), list[str](), Lost()
        own = dataclasses.replace(prepared.dataset, mask_ids=None)
        drawn_from = owner.final().decided_masks if owner.done("masks") else None
        for sample, one in track(matched, "import", len(matched)):
            mask = one.draw(sample, prepared.sizes[sample.id])
            shown = set(np.unique(mask).tolist()) - {0, VOID}
            shows_class = shows_class or bool(shown)
            untagged += [sample.id] if shown - set(sample.tags) else []
            foreign += [sample.id] if shown and not shown & set(sample.tags) and not one.named else []
            write_mask(mask_file(temporary, sample.id), mask)
            if drawn_from and (before := mask_file(drawn_from, sample.id)).exists():
                labelled = dataclasses.replace(sample, mask=before)
                lost += count_lost(load_mask(labelled, own, prepared.sizes[sample.id]), mask)
        if not shows_class:
            raise DataError(
                f"{source}: none of its {len(matched)} masks shows a class, all pixels are background or void (255); "
                "expected at least one annotated image. If 255 is a class, say which in a classes.json beside the masks"
            )
        if len(foreign) > max(1, len(matched) / 2):
            ids = json.dumps({"0": "background", **dict(enumerate(prepared.dataset.classes, 1))}, ensure_ascii=False)
            raise DataError(
                f"{source}: {len(foreign)} of {len(matched)} masks show none of their images' tags, the first is "
                f"{foreign[0]}: the values seem to mean other classes than {ids}. Write what they mean into a "
                "classes.json of this form beside the masks"
            )
        if untagged:
            log.warning(
                "%s: masks that show classes their images are not tagged with: %d of %d, the first is %s; check that "
                "no classes are mixed up", source, len(untagged), len(matched), untagged[0],
            )  # fmt: skip
        if text := lost.text():
            log.warning(
                "%s: compared with the run's own masks, %s; the tool seems to keep outlines only. Choose an export of "
                "it that holds masks (docs/labelling.md), unless this was drawn", source, text,
            )  # fmt: skip
        done = {sample.id for sample, _ in matched}
        rest = [sample for sample in prepared.dataset.split("train") if with_pseudo and sample.id not in done]
        for sample in track(rest, "add pseudo-masks", len(rest)) if rest else ():
            labelled = dataclasses.replace(sample, mask=mask_file(owner.final().masks, sample.id))
            write_mask(mask_file(temporary, sample.id), load_mask(labelled, own, prepared.sizes[sample.id]))
    return Imported(Path(out), len(done), len(rest))
