import sys
from pathlib import Path

from labelme import utils
from labelme._label_file import read_label_file
from written import write

export, out = map(Path, sys.argv[1:])
names = (export / "labels.txt").read_text("utf-8").splitlines()[2:]
masks = {}
for file in export.rglob("*.json"):
    if file.name == "made_by_tagseg.json":
        continue
    found = read_label_file(str(file))
    picture = utils.img_data_to_arr(found.image_data)
    values = {"_background_": 0} | {name: i for i, name in enumerate(names, 1)}
    mask, _ = utils.shapes_to_label(picture.shape, found.shapes, values)
    masks[(file.parent / found.image_path).relative_to(export).as_posix()] = mask
write(out, "labelme", names, masks)
