"""A worker process of masks/workers.py: it reads images from standard input and writes answers to standard output."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from tagseg.data.records import Sample
from tagseg.masks.make import make_mask
from tagseg.run.folder import Run
from tagseg.run.lock import share_lock
from tagseg.system.process import peak_memory_mb


def serve_masks(run: Run, parent: int) -> None:
    """Answer lines of JSON, `[id, image file, tags, saliency file or null, [height, width]]`, until the input ends or
    the process `parent` has ended: no mask is written that nobody waits for.

    An answer contains `blank`, whether the masks have none of the tags, and `peak_mb`, the peak memory of this process;
    or it contains an `error`.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # output that a library prints must not mix with the answers
    settings = run.settings()
    for line in sys.stdin:
        if os.getppid() != parent:
            return
        sample_id, image, tags, saliency, (height, width) = json.loads(line)
        sample = Sample(sample_id, Path(image), tuple(tags), saliency=Path(saliency) if saliency else None)
        try:
            blank = make_mask(run, sample, (height, width), settings)
            answer: dict[str, Any] = {"blank": blank, "peak_mb": peak_memory_mb()}
        except (ValueError, OSError) as error:
            answer = {"error": str(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    root, parent, aside = sys.argv[1:]
    run = Run(Path(root), Path(aside) if aside else None)
    try:
        with share_lock(run.root):
            serve_masks(run, int(parent))
    except BrokenPipeError:  # the main process was killed: the masks are written, but nobody reads the answer
        os._exit(0)
