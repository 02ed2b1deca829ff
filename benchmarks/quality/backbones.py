"""Which timm backbones work: 36 models of different families, built with random weights.

    python -m benchmarks.quality.backbones

For each: the strides it can have, the order of its output, the layers that the cache of features takes, the
segmentation network that `auto` chooses, and what bfloat16 does on this machine: the mean cosine of its features with
those of float32, and its speed. What is refused is refused with one line, which is recorded.
"""

import logging
import time
from typing import Any

import torch
import torch.nn.functional as F
from benchmarks.harness import record

from tagseg.features.layers import choose_layers
from tagseg.networks.backbones import Backbone, build_backbone
from tagseg.networks.segmenters import Segmenter, choose_network

NAMES = (
    "mobilenetv2_100", "efficientnet_b0", "tf_efficientnet_b0", "mobilenetv3_small_100", "mobilenetv4_conv_small",
    "resnet18", "resnet18d", "resnetv2_50", "regnety_002", "nfnet_l0", "densenet121", "dla46_c", "hrnet_w18_small",
    "vgg11_bn", "inception_v4", "convnext_atto", "inception_next_atto", "edgenext_xx_small", "repvit_m1", "fastvit_t8",
    "mambaout_femto", "focalnet_tiny_srf", "poolformer_s12", "caformer_s18", "pvt_v2_b0", "davit_tiny",
    "efficientvit_b0", "tiny_vit_5m_224", "swin_tiny_patch4_window7_224", "swinv2_cr_tiny_ns_224", "mvitv2_tiny",
    "vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "vitamin_small_224", "xcit_nano_12_p16_224",
    "cait_xxs24_224",
)  # fmt: skip


def main() -> None:
    """Build every backbone and record what works."""
    logging.disable(logging.WARNING)
    figures: dict[str, Any] = {}
    for name in NAMES:
        figures[name] = look(name)
        print(name, figures[name], flush=True)
    head = "| backbone | pixels per cell | output | cached layers | network | bf16: cosine, speed |"
    rows = [head, "|---|---|---|---|---|---|", *(f"| `{name}` | {_row(one)} |" for name, one in figures.items())]
    print(record("backbones", [], figures, "\n".join(rows)))


def look(name: str) -> dict[str, Any]:
    """Return what works with a backbone, or why it is refused."""
    strides, reason = [], ""
    for stride in (8, 16, 32):
        try:
            backbone = build_backbone(name, "random", stride, "auto")
            strides.append(backbone.stride)
        except ValueError as error:
            reason = str(error)
    if not strides:
        return {"refused": reason}
    backbone = build_backbone(name, "random", 16 if 16 in strides else strides[0], "auto").eval()
    layers = [layer.name for layer in choose_layers(backbone, ("auto",))]
    found: dict[str, Any] = {"strides": sorted({*strides}), "output": backbone._orders["last"], "layers": layers}
    try:
        network = choose_network("auto", name, 16)
        Segmenter(name, 3, 16, "random", (0, True), network)
        found["network"] = network
    except ValueError as error:
        found["network"] = f"refused: {error}"
    return found | bfloat16(backbone)


@torch.no_grad()
def bfloat16(backbone: Backbone) -> dict[str, Any]:
    """Return the mean cosine of features in bfloat16 and in float32, and how much faster bfloat16 is."""
    image = torch.rand(1, 3, *backbone.fitting_size(256, 320), generator=torch.Generator().manual_seed(0))
    outputs, seconds = {}, {}
    for half in (False, True):
        try:
            for _ in range(3):
                started = time.process_time()
                with torch.autocast("cpu", torch.bfloat16, enabled=half):
                    outputs[half] = backbone(image).float()
                seconds[half] = min(seconds.get(half, 1e9), time.process_time() - started)
        except RuntimeError as error:
            return {"bf16": f"fails: {str(error).splitlines()[0][:100]}"}
    cosine = float(F.cosine_similarity(outputs[False], outputs[True], dim=1).mean())
    return {"bf16_cosine": round(cosine, 4), "bf16_speed": round(seconds[False] / seconds[True], 2)}


def _row(one: dict[str, Any]) -> str:
    if "refused" in one:
        return f"refused: {one['refused'].partition(': ')[2].partition('; tagseg')[0]} | | | |"
    half = one.get("bf16") or f"{one['bf16_cosine']}, {one['bf16_speed']} x"
    strides = ", ".join(map(str, one["strides"]))
    return " | ".join([strides, one["output"], ", ".join(one["layers"]), one["network"].partition("; choose")[0], half])


if __name__ == "__main__":
    main()
