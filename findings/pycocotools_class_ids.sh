#!/usr/bin/env bash
# pycocotools encodes a mask that holds two class ids into a mask nobody drew.
#
# Expected: `mask.encode` treats every non-zero pixel as foreground, as NumPy and OpenCV do (it does so for 0/255),
#   or refuses values other than 0 and 1.
# What happens: the encoder starts a new run wherever the VALUE changes, and the decoder reads the runs as background,
#   foreground, background, ... A column 0 1 2 0 becomes: foreground, then background where the 2 was, and then
#   foreground where the mask is empty. No error and no warning.
# Why it matters: a label mask with neighbouring classes (a cat on a sofa) passed straight to `encode` gives
#   plausible run lengths that are wrong. Encode `mask == class_id`, one class at a time.
# Source: pycocotools/common/maskApi.c, rleEncode ("if (p != M[j])"); its documentation says "binary masks".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet pycocotools==2.0.11 numpy==2.4.6
"$work/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

import numpy as np
from pycocotools import mask as rle

print("pycocotools", version("pycocotools"), "numpy", np.__version__)


def there_and_back(mask):
    return rle.decode(rle.encode(np.asfortranarray(mask)))


ids = np.array([[0], [1], [1], [2], [2], [0], [0]], np.uint8)
back = there_and_back(ids)
print("class ids   ", ids.ravel().tolist())
print("decoded     ", back.ravel().tolist())
assert np.array_equal(there_and_back((ids > 0).astype(np.uint8)), ids > 0), "binary masks survive"
assert np.array_equal(there_and_back((ids > 0).astype(np.uint8) * 255), ids > 0), "0 and 255 survive"
assert back.ravel().tolist() == [0, 1, 1, 0, 0, 1, 1], "behaviour changed"
PYTHON
