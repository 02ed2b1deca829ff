import json
import sys
from pathlib import Path

import datasets
import numpy as np
from written import write

export, out = map(Path, sys.argv[1:])
data = datasets.load_dataset(str(export), cache_dir=str(out / "cache"))["train"]
rows = [json.loads(line) for line in (export / "train/metadata.jsonl").read_text("utf-8").splitlines()]
named = json.loads((export / "train/masks/classes.json").read_text("utf-8"))
# The first pixel of an image is its number.
masks = {
    rows[row["image"].getpixel((0, 0))[0]]["file_name"].removeprefix("images/"): np.asarray(row["mask"]) for row in data
}
write(out, "datasets", [named[key] for key in sorted(named, key=int) if key not in ("0", "255")], masks)
