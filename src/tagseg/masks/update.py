"""Masks that are there already are brought up to date with what a person has decided since."""

import logging

from tagseg.data.prepare import Prepared
from tagseg.masks.make import make_masks
from tagseg.masks.mask_files import mask_file
from tagseg.run.decisions import decision_digests
from tagseg.run.folder import Run
from tagseg.system.progress import Track, silent

log = logging.getLogger(__name__)

REVIEWED = "reviewed"
"""The field of a stage's note in the manifest that has the decisions it took into account: masks and segment."""


def update_masks(prepared: Prepared, run: Run, track: Track = silent) -> tuple[str, ...]:
    """Make the masks anew of which a decision has changed since they were made, those of self-training too.

    The manifest learns their checksums. Returns their images' ids. A segmentation network that has been trained in part
    is discarded, for it was learning from other masks; what to do with a finished one is up to the caller.

    Raises:
        RunError: when the stage masks has not finished, or a mask cannot be made.
    """
    run.require("masks")
    now, then = decision_digests(run), run.manifest().stages["masks"].reviewed
    changed = tuple(
        sample.id for sample in prepared.dataset.split("train") if now.get(sample.id) != then.get(sample.id)
    )
    if not changed:
        return ()
    log.info("%d masks were reviewed since they were made: made anew, as decided", len(changed))
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
    """Return of how many images the decision was another when the segmentation network learned from their masks; 0
    where there is no network."""
    if not run.done("segment"):
        return 0
    now, then = decision_digests(run), run.manifest().stages["segment"].reviewed
    return sum(now.get(name) != then.get(name) for name in now.keys() | then.keys())
