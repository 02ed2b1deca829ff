"""Taught prototypes in the atlas: what a person named, marked as such, with the places that were named."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw

from tagseg.data.images import read_image, reduced_size
from tagseg.data.records import Sample
from tagseg.rca.network import RcaNetwork
from tagseg.report.atlas_data import WORKING_SIDE, CropPicture
from tagseg.report.bank_view import Memory
from tagseg.report.crops import OutlineColour, crop_region
from tagseg.report.overlay import data_uri
from tagseg.run.folder import Run
from tagseg.run.taught import Answer, answers

MOST_TAUGHT, TAUGHT_CROPS = 6, 3
"""Taught prototypes shown per entry, and images of each."""

SPOT = 0.03
"""Radius with which a named cell is drawn, as a share of the image's long side."""


@dataclass(frozen=True)
class TaughtPrototype:
    """A prototype that a person taught.

    number, kind: those of the answer. tag: the class in whose images the cluster was found; empty for a click. nearest,
    similarity: the entry of the mined prototype that it resembles most, and the cosine. crops: places that were named.
    """

    number: int
    kind: str
    tag: str
    nearest: int
    similarity: float
    crops: tuple[CropPicture, ...]


def show_taught(
    run: Run, network: RcaNetwork, memory: Memory, samples: Sequence[Sample], colours: Sequence[OutlineColour]
) -> dict[int, list[TaughtPrototype]]:
    """Return the taught prototypes by entry (0 background, 1..C classes), the latest first, at most `MOST_TAUGHT` each.

    Raises:
        DataError: when a photo can no longer be read.
    """
    found: dict[int, list[TaughtPrototype]] = {}
    taught = network.taught
    if taught is None:
        return found
    given, known = answers(run), {sample.id: sample for sample in samples}
    limit = run.settings().data.max_megapixels
    rows = zip(taught.numbers, taught.labels.tolist(), taught.features.cpu(), strict=True)
    for number, entry, feature in sorted(rows, key=lambda row: -row[0]):
        own = found.setdefault(entry, [])
        if len(own) >= MOST_TAUGHT:
            continue
        cosine = torch.einsum("ekd,d->ek", memory.prototypes, feature).masked_fill(~memory.exists, -2).amax(1)
        nearest, answer = int(cosine.argmax()), given.get(number)
        crops = () if answer is None else _crops(answer, entry, float(cosine[entry]), known, colours[entry], limit)
        kind, tag = ("answer", "") if answer is None else (answer.kind, answer.tag)
        own.append(TaughtPrototype(number, kind, tag, nearest, float(cosine[nearest]), crops))
    return found


def _crops(
    answer: Answer,
    entry: int,
    similarity: float,
    known: Mapping[str, Sample],
    colour: OutlineColour,
    max_megapixels: float,
) -> tuple[CropPicture, ...]:
    drawn = []
    for places in [one for one in answer.places if one.image in known][:TAUGHT_CROPS]:
        sample = known[places.image]
        photo = read_image(sample.image, max_megapixels, WORKING_SIDE)
        photo = photo.resize(reduced_size(photo.size, WORKING_SIDE), Image.Resampling.BICUBIC)
        shape, radius = Image.new("L", photo.size), SPOT * max(photo.size)
        pen = ImageDraw.Draw(shape)
        for x, y in places.points:
            left, top = x * photo.width, y * photo.height
            pen.ellipse((left - radius, top - radius, left + radius, top + radius), fill=255)
        picture = crop_region(photo, np.array(shape) > 0, colour)
        uri = data_uri(picture, "jpeg", quality=80)
        drawn.append(CropPicture(uri, *picture.size, entry, sample.id, sample.tags, similarity, None))
    return tuple(drawn)
