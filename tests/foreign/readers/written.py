"""What every reader writes: the tool's version, its class names, and the masks that it saw."""

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np


def write(out, package, classes, masks):
    """Write masks by the names of images; values are numbers of `classes`, from 1."""
    Path(out, "found.json").write_text(json.dumps({"version": version(package), "classes": list(classes)}))
    np.savez(Path(out, "masks.npz"), **{name: mask.astype(np.uint8) for name, mask in masks.items()})
