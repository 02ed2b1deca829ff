#!/usr/bin/env bash
# segmentation-models-pytorch's soft cross-entropy takes the mean over void pixels too.
#
# Expected: with ignore_index the loss is the mean over the pixels that have a label, as in torch.nn.functional.cross_entropy.
# What happens: ignored pixels add 0 to the sum and 1 to the count. Where three quarters of the pixels are void, the loss, and
#   with it every gradient, is a quarter.
# Why it matters: the more void a batch has, the less it teaches. Masks with a void border or unsure regions train at a lower
#   learning rate than the one that was set, which differs from batch to batch, and a loss curve falls when void grows.
# Source: segmentation_models_pytorch/losses/_functional.py, label_smoothed_nll_loss (masked_fill with 0, then mean).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.14.1 torchvision==0.29.1 numpy==2.4.6 segmentation-models-pytorch==0.6.0
"$work/venv/bin/python" - <<'PYTHON'
import segmentation_models_pytorch as smp
import torch
from segmentation_models_pytorch.losses import SoftCrossEntropyLoss

print("segmentation-models-pytorch", smp.__version__, "torch", torch.__version__)
torch.manual_seed(0)
scores, labels = torch.randn(1, 3, 8, 8), torch.randint(0, 3, (1, 8, 8))
for rows in (0, 4, 6):
    void = labels.clone()
    void[:, :rows] = 255
    theirs = SoftCrossEntropyLoss(ignore_index=255, smooth_factor=0.0)(scores, void).item()
    mean = torch.nn.functional.cross_entropy(scores, void, ignore_index=255).item()
    print(f"{rows} of 8 rows void: SoftCrossEntropyLoss {theirs:.3f}, mean over labelled pixels {mean:.3f}, ratio {theirs / mean:.2f}")
    assert abs(theirs / mean - (8 - rows) / 8) < 1e-3, "behaviour changed"
PYTHON
