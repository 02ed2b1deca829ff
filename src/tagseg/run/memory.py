"""Out-of-memory errors that name the settings to lower."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tagseg.errors import RunError
from tagseg.run.stages import Stage
from tagseg.settings.settings import Settings
from tagseg.system.process import lacks_shared_memory, ran_out

MEMORY: dict[Stage, tuple[str, ...]] = {
    "train": ("train.batch", "train.crop", "workers"),
    "localise": ("localise.max_side",),
    "masks": ("masks.max_side", "workers"),
    "segment": ("segment.batch", "segment.crop", "segment.max_side", "workers"),
    "evaluate": ("segment.max_side",),
    "report": ("report.examples",),
}
"""The settings that lower the memory of each stage."""

FROZEN_MEMORY = ("features.max_side", "features.channels")
"""Those of the stage train where the backbone is frozen: it makes no batches of crops."""


@contextlib.contextmanager
def memory_named(root: Path, stage: Stage, settings: Settings) -> Iterator[None]:
    """Turn an out-of-memory error of a stage into an error that names the settings to lower.

    Raises:
        RunError: when memory runs out in the block, or the system kills a process that reads images for it.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if "exited unexpectedly" in str(error):
            raise RunError(
                f"{root}: stage {stage}: a process that reads images ended; its own error is above. If it is about "
                'starting processes, put the calls of your script below `if __name__ == "__main__":`; workers = 0 '
                "reads images without other processes"
            ) from error
        if shared := lacks_shared_memory(error):
            raise RunError(
                f"{root}: stage {stage}: the shared memory of this machine or container (/dev/shm) is too small for "
                f"{settings.workers} processes that read images ({shared}); make it larger (docker run --shm-size=1g), "
                "or use --workers 0, and run the same command again"
            ) from error
        cause = ran_out(error)
        if not cause:
            raise
        values = settings.to_dict()
        names = FROZEN_MEMORY if stage == "train" and settings.train.method == "frozen" else MEMORY[stage]
        lower = ", ".join(f"--{name.replace('_', '-')} (now {_value(values, name)})" for name in names)
        raise RunError(
            f"{root}: stage {stage} ran out of memory ({cause}); lower {lower} and run the same command again "
            "(with --force if the stage has begun)"
        ) from error


def _value(values: dict[str, Any], name: str) -> Any:
    for part in name.split("."):
        values = values[part]
    return values
