"""Update existing masks after a person has reviewed them."""

import logging

from tagseg.data.prepare import Prepared
from tagseg.masks.make import make_masks
from tagseg.masks.mask_files import mask_file
from tagseg.run.folder import Run
from tagseg.run.taught import mask_digests
from tagseg.system.changes import pending
from tagseg.system.progress import Track, silent

log = logging.getLogger(__name__)

REVIEWED = "reviewed"
"""The field of a stage's note in the manifest that has the decisions it took into account: masks and segment."""


def update_masks(prepared: Prepared, run: Run, track: Track = silent) -> tuple[str, ...]:
    """Make all masks again whose decision has changed since they were made, including those of self-training, and
    return the ids of their images.

    The masks and their checksums in the manifest change together. A partly trained segmentation network is discarded,
    because it was learning from the old masks; a finished one is left to the caller.

    Raises:
        RunError: when the stage masks has not finished, or a mask cannot be made.
    """
    run.require("masks")
    now, changed = mask_digests(run), _changed(prepared, run)
    if not changed:
        return ()
    log.info("%d masks were reviewed after they were made: making them again as decided", len(changed))
    segmented = run.done("segment")
    rounds = range(1, run.settings().segment.rounds if segmented else 1)
    with run.changing() as (own, draft):
        if not segmented:
            draft.discard("segment")
        for source in (own, *map(own.round, rounds)):
            make_masks(prepared, source, track, again=frozenset(changed))
            files = (mask_file(folder, name) for folder in (source.masks, source.decided_masks) for name in changed)
            draft.amend("masks" if source is own else "segment", [run.name_of(file) for file in files])
        draft.amend("masks", (), {REVIEWED: now})
    return changed


def are_outdated(prepared: Prepared, run: Run) -> bool:
    """Tell whether `update_masks` would make masks again, or a killed command left a change of the run to be finished.

    Raises:
        RunError: when the stage masks has not finished.
    """
    run.require("masks")
    return pending(run.root) is not None or bool(_changed(prepared, run))


def _changed(prepared: Prepared, run: Run) -> tuple[str, ...]:
    now, then = mask_digests(run), run.manifest().stages["masks"].reviewed
    return tuple(sample.id for sample in prepared.dataset.split("train") if now.get(sample.id) != then.get(sample.id))


def unlearned(run: Run) -> int:
    """Return the number of images whose decision has changed since the segmentation network learned from their masks; 0
    without a network."""
    if not run.done("segment"):
        return 0
    now, then = mask_digests(run), run.manifest().stages["segment"].reviewed
    return sum(now.get(name) != then.get(name) for name in now.keys() | then.keys())
