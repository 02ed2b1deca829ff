"""What the segmentation network predicts for one image: a mask that notebooks show and that can be saved."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8
from markupsafe import escape
from PIL import Image

from tagseg.errors import WriteError
from tagseg.masks.mask_files import write_mask
from tagseg.masks.overlay import overlay
from tagseg.masks.palette import shown_colours

_SHOWN_SIDE = 640
"""Long side of the picture in a notebook, in pixels."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """The mask of an image; a notebook shows it over the image.

    image: RGB, upright. mask: class ids, 0 background, at the image's size. classes: id i is `classes[i]`. area,
    confidence: for every id its share of the pixels, and the network's mean probability of the id on them.

    NumPy takes a prediction for its mask: `numpy.asarray(prediction)`.
    """

    image: Image.Image
    mask: UInt8[np.ndarray, "h w"]
    classes: tuple[str, ...]
    area: tuple[float, ...]
    confidence: tuple[float, ...]

    def found(self) -> dict[str, float]:
        """Return the share of the pixels of every class in the mask except background, the largest first."""
        shares = {name: share for name, share in zip(self.classes[1:], self.area[1:], strict=True) if share > 0}
        return dict(sorted(shares.items(), key=lambda item: -item[1]))

    def overlay(self, opacity: float = 0.55) -> Image.Image:
        """Return the image with the colours of the mask painted over everything but the background."""
        return overlay(self.image, self.mask, opacity)

    def save(self, path: str | Path, force: bool = False) -> Path:
        """Write the mask as a palette PNG, whose values are class ids, and return its path.

        Raises:
            WriteError: when the name does not end in .png, or the file exists and `force` is not given.
        """
        file = Path(path)
        if file.suffix.lower() != ".png":
            raise WriteError(f"{file}: a mask must be a PNG to keep its ids; expected a name that ends in .png")
        if file.exists() and not force:
            raise WriteError(f"{file}: exists; choose another name or force=True")
        write_mask(file, self.mask)
        return file

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Shaped[np.ndarray, "h w"]:
        return np.array(self.mask, dtype, copy=copy)

    def _repr_html_(self) -> str:
        picture = self.overlay()
        picture.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE))
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=85)
        colours = shown_colours(len(self.classes) - 1)
        labels = "".join(
            f'<span style="white-space:nowrap;margin-right:1em"><span style="color:rgb{colours[i]}">&#9632;</span> '
            f"{escape(self.classes[i])} {self.area[i]:.1%}</span>"
            for i in range(1, len(self.classes))
            if self.area[i] > 0
        )
        source = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
        caption = labels or "background only"
        return f'<figure><img src="{source}" alt="mask over image"><figcaption>{caption}</figcaption></figure>'
