#!/usr/bin/env bash
# sharp (Node.js) keeps a palette mask's colours and renumbers its class ids.
#
# Expected: a palette PNG (as VOC's masks are) that is re-encoded with `palette: true` keeps its indices, as with
#   Pillow: the file looks the same, and the index is the class id. Without the option it stays a palette file.
# What happens: libvips decodes the palette to RGB. Without the option the result is an RGB file, and a reader that
#   expects ids finds three channels of colours. With `palette: true` a new palette is made, in another order: the
#   mask looks the same in every viewer, and background, classes and void (255) have changed places.
# Why it matters: resizing or optimising masks in a web pipeline or an image optimiser. No viewer shows the damage; a
#   trainer reads class 2 for background and has no void left. Compare ids, never pictures, after such a step.
# Source: sharp's documentation of png() ("palette: quantise to a palette-based image with alpha transparency").
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet pillow==12.3.0 numpy==2.4.6
cd "$work"
npm init --yes >/dev/null
npm install --silent --no-audit --no-fund sharp@0.35.5
cat > mask.py <<'PYTHON'
import numpy as np
from PIL import Image

ids = np.repeat(np.array([0, 0, 1, 1, 3, 3, 0, 255], np.uint8)[:, None], 8, axis=1)
mask = Image.fromarray(ids)
colours = [0] * 768
colours[3:6], colours[9:12], colours[765:] = [128, 0, 0], [128, 128, 0], [224, 224, 192]  # VOC's colours of 1, 3, 255
mask.putpalette(colours)
mask.save("mask.png")
PYTHON
venv/bin/python mask.py
node -e '
const sharp = require("sharp");
console.log("sharp", sharp.versions.sharp, "libvips", sharp.versions.vips);
sharp("mask.png").toFile("plain.png")
  .then(() => sharp("mask.png").png({palette: true}).toFile("palette.png"))
  .catch((error) => { console.error(error); process.exit(1); });
'
venv/bin/python - <<'PYTHON'
import numpy as np
from PIL import Image

mask, plain, palette = (Image.open(f"{name}.png") for name in ("mask", "plain", "palette"))
before, after = np.asarray(mask)[:, 0].tolist(), np.asarray(palette)[:, 0].tolist()
print("ids before", before, "| after palette: true", after, "| without it the mode is", plain.mode)
same_look = np.array_equal(np.asarray(mask.convert("RGB")), np.asarray(palette.convert("RGB")))
assert plain.mode == "RGB", "behaviour without the option changed"
assert palette.mode == "P" and same_look, "the colours changed"
assert before != after and 255 not in after and after[0] != 0, "behaviour changed"
PYTHON
