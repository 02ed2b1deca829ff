"""Maps of torch-cam become a mask of one image, without a run folder.

pip install 'tagseg[examples]'
python examples/torch_cam.py photo.jpg mask.png
"""

import sys
from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torchcam.methods import LayerCAM
from torchvision.models import get_model, get_model_weights
from torchvision.transforms import v2

import tagseg

TABBY, GOLDEN_RETRIEVER = 281, 207


def find_mask(
    image: Image.Image, model: torch.nn.Module, layer: str, outputs: Mapping[int, int]
) -> UInt8[np.ndarray, "h w"]:
    """Return the mask of an image that shows the classes of `outputs`: class id -> output of the classifier."""
    see = v2.Compose(
        [
            v2.PILToTensor(),
            v2.Resize((224, 224), antialias=True),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    with LayerCAM(model.eval(), layer) as cam:
        scores = model(see(image)[None])
        maps = [cam(output, scores, retain_graph=True)[0][0] for output in outputs.values()]
    decided, _ = tagseg.mask_from_maps(np.array(image), torch.stack(maps).detach().numpy(), tuple(outputs))
    return decided


def main(photo: str, out: str) -> None:
    """Write the mask of a photo of a cat (1) and a dog (2)."""
    model = get_model("resnet50", weights=get_model_weights("resnet50").DEFAULT)
    mask = find_mask(Image.open(photo).convert("RGB"), model, "layer4", {1: TABBY, 2: GOLDEN_RETRIEVER})
    Image.fromarray(mask).save(out)
    shares = np.bincount(mask.ravel(), minlength=3)[:3] / mask.size
    print(f"cat {shares[1]:.0%}, dog {shares[2]:.0%}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
