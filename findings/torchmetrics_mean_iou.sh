#!/usr/bin/env bash
# The mean IoU of torchmetrics is the mean over images, and reports a class that is absent as -1.
#
# Expected: the mean IoU of segmentation papers (PASCAL VOC, Cityscapes): intersections and unions are summed over all images,
#   then divided, then averaged over classes; an absent class is not a number, or left out.
# What happens: torchmetrics.segmentation.MeanIoU divides image by image and averages the quotients. With per_class=True a class
#   that no image shows has -1, which an average over the result counts as a value. MulticlassJaccardIndex of the same package
#   pools pixels, and gives 0 to the absent class.
# Why it matters: three figures for the same masks, all called IoU. One small object that is missed costs as much as a large
#   one, and a data set without one of the classes has a negative IoU for it.
# Source: torchmetrics/segmentation/mean_iou.py and torchmetrics/functional/segmentation/mean_iou.py.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 torchmetrics==1.9.0
"$work/venv/bin/python" - <<'PYTHON'
import torch
import torchmetrics
from torchmetrics.classification import MulticlassJaccardIndex
from torchmetrics.segmentation import MeanIoU

print("torchmetrics", torchmetrics.__version__)
# Image 1: nine of ten object pixels found. Image 2: its only object pixel is missed. Class 2 is in neither.
truth, found = torch.zeros(2, 1, 20, dtype=torch.long), torch.zeros(2, 1, 20, dtype=torch.long)
truth[0, 0, :10], found[0, 0, :9] = 1, 1
truth[1, 0, 0] = 1
by_image = MeanIoU(num_classes=3, input_format="index", per_class=True)(found, truth)
pooled = MulticlassJaccardIndex(3, average=None)(found, truth)
print("MeanIoU per class", [round(x, 3) for x in by_image.tolist()])
print("MulticlassJaccardIndex per class", [round(x, 3) for x in pooled.tolist()])
assert abs(pooled[1] - 9 / 11) < 1e-6 and abs(by_image[1] - 0.45) < 1e-6, "behaviour changed"
assert by_image[2] == -1 and pooled[2] == 0, "behaviour changed"
PYTHON
