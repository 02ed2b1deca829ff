#!/usr/bin/env bash
# crfseg's Gaussian kernel has no weight on the row and the column of a pixel: its nearest neighbours say nothing.
#
# Expected: a pixel hears most from its direct neighbours and nothing from itself, as in the dense CRF of Kraehenbuehl
#   and Koltun (2011).
# What happens: the kernel is made from one kernel per direction, and each of them has a zero in its middle. Their
#   product is zero not only at the pixel itself, but along its whole row and column. Pixels left, right, above and below
#   have no weight, those across the corner the largest one.
# Why it matters: it is the only kernel of this package. A line of one pixel, level or upright, hears nothing from the
#   rest of the line and all of what surrounds it, and is smoothed away.
# Source: crfseg/model.py, create_gaussian_kernel1d (`zero_center`).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet crfseg==1.0.0 torch==2.13.0 numpy==2.4.6 tqdm==4.67.1
cd "$work"
venv/bin/python - <<'PYTHON'
from importlib.metadata import version

import torch
from crfseg import CRF

print("crfseg", version("crfseg"), "torch", version("torch"))
# One iteration: one pixel is surely of class 1, all others are undecided. What a pixel hears is the weight of the sure one.
crf = CRF(n_spatial_dims=2, filter_size=7, n_iter=1, requires_grad=False, smoothness_theta=2.0)
logits = torch.zeros(1, 2, 9, 9)
logits[0, 1, 4, 4] = 50.0
heard = crf(logits)[0].detach()
heard = heard[1] - heard[0]  # difference of the logarithms
near = heard[3:6, 3:6].clone()
near[1, 1] = 0
print("weights of the nearest eight:", near.numpy().round(3).tolist())
cross = [near[0, 1], near[1, 0], near[1, 2], near[2, 1]]
corners = [near[0, 0], near[0, 2], near[2, 0], near[2, 2]]
assert all(abs(float(one)) < 1e-6 for one in cross), "behaviour changed"
assert all(float(one) > 0.1 for one in corners), "the corners have no weight either"
PYTHON
