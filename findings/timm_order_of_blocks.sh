#!/usr/bin/env bash
# In some timm models a block gives channels last, or tokens, although the model gives channels first; nothing says so.
#
# Expected: one order of axes in a model, which `output_fmt` names where it is not channels first (as it does for Swin).
# What happens: SwinV2-CR, TinyViT and CAFormer have no `output_fmt` and give maps with channels first, while the output of
#   their attention blocks is (batch, height, width, channels), or (batch, cells, channels).
# Why it matters: who hooks a block to use its features takes the height for the channels. Every shape is legal, so nothing
#   fails; maps come out transposed and of the wrong size.
# Source: timm/models/swin_transformer_v2_cr.py, tiny_vit.py and metaformer.py (stages permute before and after their blocks).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet timm==1.0.31 torch==2.14.1 torchvision==0.29.1 numpy==2.4.6
"$work/venv/bin/python" - <<'PYTHON'
import timm
import torch

print("timm", timm.__version__, "torch", torch.__version__)
expected = {
    ("swin_tiny_patch4_window7_224", "layers.3.blocks.0"): ("NHWC", (1, 7, 7, 768), (1, 7, 7, 768)),
    ("swinv2_cr_tiny_ns_224", "stages.3.blocks.0"): (None, (1, 768, 7, 7), (1, 7, 7, 768)),
    ("tiny_vit_5m_224", "stages.3.blocks.0"): (None, (1, 320, 7, 7), (1, 7, 7, 320)),
    ("caformer_s18", "stages.3.blocks.0"): (None, (1, 512, 7, 7), (1, 49, 512)),
}
for (name, block), told in expected.items():
    model, seen = timm.create_model(name, num_classes=0).eval(), {}

    def keep(module, given, output, seen=seen):
        seen["block"] = tuple(output.shape)

    model.get_submodule(block).register_forward_hook(keep)
    with torch.no_grad():
        output = tuple(model.forward_features(torch.zeros(1, 3, 224, 224)).shape)
    found = getattr(model, "output_fmt", None), output, seen["block"]
    print(f"{name}: output_fmt {found[0]}, output {found[1]}, block {block} {found[2]}")
    assert found == told, "behaviour changed"
PYTHON
