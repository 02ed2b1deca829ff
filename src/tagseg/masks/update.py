"""Update existing masks after a person has reviewed them."""

import logging

from tagseg.data.prepare import Prepared
from tagseg.masks.make import make_masks
from tagseg.masks.mask_files import mask_file
from tagseg.run.folder import Run
from tagseg.run.taught import mask_digests
from tagseg.system.progress import Track, silent

log = logging.getLogger(__name__)

REVIEWED = "reviewed"
"""The field of a stage's note in the manifest that has the decisions it took into account: masks and segment."""


def update_masks(prepared: Prepared, run: Run, track: Track = silent) -> tuple[str, ...]:
    """Make all masks again whose decision has changed since they were made, including those of self-training, and
    return the ids of their images.

    The manifest gets their new checksums. A partly trained segmentation network is discarded, because it was learning
    from the old masks; a finished one is left to the caller.

    Raises:
        RunError: when the stage masks has not finished, or a mask cannot be made.
    """
    run.require("masks")
    now, then = mask_digests(run), run.manifest().stages["masks"].reviewed
    changed = tuple(
        sample.id for sample in prepared.dataset.split("train") if now.get(sample.id) != then.get(sample.id)
    )
    if not changed:
        return ()
    log.info("%d masks were reviewed after they were made: making them again as decided", len(changed))
    segmented = run.done("segment")
    if not segmented:
        run.discard("segment")
    rounds = range(1, run.settings().segment.rounds if segmented else 1)
    for source in (run, *(run.round(number) for number in rounds)):
        files = [mask_file(folder, name) for folder in (source.masks, source.decided_masks) for name in changed]
        for file in files:
            file.unlink(missing_ok=True)
        make_masks(prepared, source, track)
        run.amend("masks" if source is run else "segment", files)
    run.amend("masks", (), {REVIEWED: now})
    return changed


def unlearned(run: Run) -> int:
    """Return the number of images whose decision has changed since the segmentation network learned from their masks; 0
    without a network."""
    if not run.done("segment"):
        return 0
    now, then = mask_digests(run), run.manifest().stages["segment"].reviewed
    return sum(now.get(name) != then.get(name) for name in now.keys() | then.keys())
