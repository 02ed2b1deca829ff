"""A worker process of masks/workers.py: images in by standard input, answers out by standard output."""

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


def serve(run: Run, employer: int) -> None:
    """Answer lines of JSON, `[id, image file, tags, saliency file or null, [height, width]]`, until there are no more,
    or the process `employer` has ended: nothing is written that nobody waits for.

    An answer says whether the masks are `blank`, and this process's `peak_mb`; or it is an `error`.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what a library prints must not come between the answers
    settings = run.settings()
    for line in sys.stdin:
        if os.getppid() != employer:
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
    # The main process was killed: the masks are written, nobody is left to be told.
    run = Run(Path(sys.argv[1]))
    try:
        with share_lock(run.root):
            serve(run, int(sys.argv[2]))
    except BrokenPipeError:
        os._exit(0)
