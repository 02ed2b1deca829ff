#!/usr/bin/env bash
# The DeepLabV3+ of segmentation-models-pytorch shows deep features up to 15 pixels beside the pixels that they look at.
#
# Expected: a cell of the encoder's last map is shown over the pixels that it sees, as far as a stride of 16 allows.
# What happens: every map is enlarged with its corners on the corners of the next one (align_corners), which is right for
#   images of 16 n + 1 pixels. The network takes only multiples of 16, where the last cell of a ResNet looks at pixel 16 (n - 1)
#   and is shown 15 pixels further to the right. The error grows evenly from 0 at the left and upper borders.
# Why it matters: deep and fine features of one pixel are of different places, by more than a cell of the fine map from the middle
#   of the image on; the network must learn a shift that depends on the position, which convolutions cannot.
# Source: segmentation_models_pytorch/decoders/deeplabv3/decoder.py and base/heads.py (nn.Upsample(align_corners=True)).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet segmentation-models-pytorch==0.6.0 torch==2.15.0
cd "$work"
venv/bin/python - <<'PYTHON'
from importlib.metadata import version

import segmentation_models_pytorch as smp
import torch

print("segmentation-models-pytorch", version("segmentation-models-pytorch"), "torch", version("torch"))
torch.manual_seed(0)
network = smp.DeepLabV3Plus("resnet18", encoder_weights=None, encoder_output_stride=16, classes=1).eval()
for module in network.modules():
    if isinstance(module, torch.nn.Conv2d):  # kernels equal to their mirror images: only the architecture counts
        module.weight.data = (module.weight.data + module.weight.data.flip(-1)) / 2
image = (0.5 + 0.001 * torch.rand(1, 3, 320, 320)).requires_grad_()
(gradient,) = torch.autograd.grad(network.encoder(image)[-1][0, :, 10, 10].sum(), image)
energy = gradient[0].square().sum((0, 1))
centre = float((energy * torch.arange(320)).sum() / energy.sum())
print(f"cell 10 of the last map sees pixels around column {centre:.1f}; 16 x 10 = 160")
assert abs(centre - 160) < 1, "the encoder changed"
# Features that say on which pixel they are centred, shown as the decoder and the head show them.
deep = (16.0 * torch.arange(20)).expand(1, 1, 20, 20)
shown = network.segmentation_head[1](network.decoder.up(deep))[0, 0, 0]
for column in (0, 80, 160, 240, 319):
    print(f"column {column} of the scores has the deep features of column {shown[column]:.1f}")
assert shown.shape == (320,) and abs(float(shown[319]) - 304) < 0.1 and abs(float(shown[160]) - 152.5) < 0.2
PYTHON
