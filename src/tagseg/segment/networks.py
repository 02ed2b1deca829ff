"""Segmentation networks: DeepLabV3+ of segmentation-models-pytorch on any timm encoder with an output stride."""

import segmentation_models_pytorch as smp
import timm
import torch
from jaxtyping import Float
from torch import Tensor, nn

from tagseg.rca.backbone import RANDOM, TIMM, freeze, freeze_batch_norm, no_weights, weight_options


class Segmenter(nn.Module):
    """A DeepLabV3+ that takes RGB in 0..1 and returns class scores at image size; id 0 is background."""

    mean: Float[Tensor, "1 3 1 1"]
    std: Float[Tensor, "1 3 1 1"]

    def __init__(self, encoder: str, ids: int, stride: int, weights: str, freezing: tuple[int, bool]) -> None:
        super().__init__()
        if not timm.is_model(encoder):
            raise ValueError(f"encoder {encoder!r}: timm has no such model; choose another --segment.encoder")
        options = weight_options(encoder, weights)
        pretrained = True if options.pop("pretrained") else None
        try:
            self.net = smp.DeepLabV3Plus(
                f"tu-{encoder}", encoder_weights=pretrained, encoder_output_stride=stride, classes=ids, **options
            )
        except (RuntimeError, OSError) as error:
            if weights != TIMM:
                raise
            raise no_weights(encoder, error) from error
        except (AssertionError, TypeError, NotImplementedError, ValueError) as error:
            raise ValueError(
                f"encoder {encoder}: cannot have output stride {stride}; choose another --segment.encoder"
            ) from error
        config = timm.get_pretrained_cfg(encoder)
        assert config is not None  # or the model could not have been built
        self.register_buffer("mean", torch.tensor(config.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(1, 3, 1, 1), persistent=False)
        up_to_stride, self.frozen_norms = freezing
        freeze(self.net.encoder.model, self.net.encoder.model.feature_info.info, up_to_stride)

    def train(self, mode: bool = True) -> "Segmenter":
        """Switch to training; frozen batch norms of the encoder stay in evaluation."""
        super().train(mode)
        if self.frozen_norms:
            freeze_batch_norm(self.net.encoder)
        return self

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b ids H W"]:
        """Return scores per id (before softmax); H and W are multiples of 16."""
        scores: Tensor = self.net((images - self.mean) / self.std)
        return scores

    def fitting_size(self, height: float, width: float) -> tuple[int, int]:
        """Return the image size nearest to `height` x `width` pixels that the network takes: multiples of 16."""
        h, w = (max(round(side / 16), 2) * 16 for side in (height, width))
        return h, w

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that come with start weights."""
        return list(self.net.encoder.parameters())

    def new_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the decoder and the last layer."""
        return [*self.net.decoder.parameters(), *self.net.segmentation_head.parameters()]


def empty_segmenter(encoder: str, ids: int, stride: int) -> Segmenter:
    """Return a segmenter whose weights are about to be loaded."""
    return Segmenter(encoder, ids, stride, RANDOM, (0, True))
