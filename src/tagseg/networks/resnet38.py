"""ResNet-38, a wide and shallow residual network (Wu, Shen and van den Hengel, arXiv 1611.10080), dilated; not in timm.

EPS and many weakly supervised methods build on it. Modules are named as in the converted ImageNet weights that are in
common use, so these load once they are a .safetensors file (see docs/reproduce.md).
"""

from collections.abc import Iterator

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

RESNET38 = "resnet38"

BLOCKS = (("b2", 3, (2, 2)), ("b3", 3, (4, 4)), ("b4", 6, (8, 8)), ("b5", 3, (8, 16)), ("b6", 1, (8, 16, 32)),
          ("b7", 1, (16, 32, 64)))  # fmt: skip
"""B2 to B7 of the paper's model A: name, units, channels of a unit's convolutions in multiples of 64. With the first
convolution and the classifier, which is left out here, they make 38 layers."""

DROPOUT = {"b6": 0.3, "b7": 0.5}
"""Share of activations that are dropped before the later convolutions of the widest blocks."""


class Unit(nn.Module):
    """A residual unit that activates first: two 3x3 convolutions, or 1x1, 3x3, 1x1 where it has three.

    Where the shape changes the shortcut is a 1x1 convolution of the activated input, else the input itself. `dilation`
    is that of the 3x3 convolutions before and after the unit's stride, which the first convolution has.
    """

    def __init__(
        self, given: int, channels: tuple[int, ...], stride: int, dilation: tuple[int, int], dropout: float = 0.0
    ) -> None:
        super().__init__()
        ends = ("a", "b1", "b2")[: len(channels)]
        self.ends = ends
        before = given
        for i, (end, after) in enumerate(zip(ends, channels, strict=True)):
            kernel = 1 if len(channels) == 3 and end != "b1" else 3
            reach = dilation[min(i, 1)] if kernel == 3 else 1
            self.add_module(f"bn_branch2{end}", nn.BatchNorm2d(before))
            convolution = nn.Conv2d(
                before, after, kernel, 1 if i else stride, reach * (kernel // 2), dilation=reach, bias=False
            )
            self.add_module(f"conv_branch2{end}", convolution)
            before = after
        changes = stride > 1 or given != before
        self.conv_branch1 = nn.Conv2d(given, before, 1, stride, bias=False) if changes else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, given: Float[Tensor, "b d h w"]) -> Float[Tensor, "b e y x"]:
        """Return the unit's features."""
        found = activated = F.relu(self.get_submodule("bn_branch2a")(given))
        for end in self.ends:
            if end != "a":
                found = self.dropout(F.relu(self.get_submodule(f"bn_branch2{end}")(found)))
            found = self.get_submodule(f"conv_branch2{end}")(found)
        shortcut: Tensor = given if self.conv_branch1 is None else self.conv_branch1(activated)
        return shortcut + found


class ResNet38(nn.Module):
    """ResNet-38 without its classifier, with the interface of a timm model. Its features have 64 `width` channels.

    Blocks beyond `stride` (8, 16 or 32) image pixels per cell are dilated: they see what they would see with strides,
    in more places.
    """

    def __init__(self, stride: int = 8, width: int = 64) -> None:
        super().__init__()
        self.pretrained_cfg = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}  # ImageNet's
        self.conv1a = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.feature_info = []
        self.order: list[str] = []
        given, reached, dilation = width, 1, 1
        for block, units, multiples in BLOCKS:
            channels = tuple(multiple * width for multiple in multiples)
            # The last block has no stride of its own.
            moves = block != "b7" and reached < stride
            after = dilation if moves or block == "b7" else 2 * dilation
            reached *= 2 if moves else 1
            for i, name in enumerate(_names(block, units)):
                # What had the stride still sees the cells before it: only what follows is dilated further.
                reach = (after if i else dilation, after)
                unit = Unit(given, channels, 2 if moves and not i else 1, reach, DROPOUT.get(block, 0.0))
                self.add_module(name, unit)
                self.order.append(name)
                given = channels[-1]
            dilation = after
            self.feature_info.append({"num_chs": given, "reduction": reached, "module": self.order[-1]})
        self.bn7 = nn.BatchNorm2d(given)

    def forward_features(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b d h w"]:
        """Return the feature map of normalised images."""
        found: Tensor = self.conv1a(images)
        for name in self.order:
            found = self.get_submodule(name)(found)
        return F.relu(self.bn7(found))

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b d h w"]:
        """Return the feature map of normalised images."""
        return self.forward_features(images)


def _names(block: str, units: int) -> Iterator[str]:
    yield block
    yield from (f"{block}_{i}" for i in range(1, units))
