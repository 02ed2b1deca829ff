"""How many processes were launched together, and which one this is: what `accelerate launch` and `torchrun` say."""

import os


def launched() -> tuple[int, int]:
    """Return this process's number, from 0, and how many were launched together: (0, 1) when it runs by itself."""
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys():
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
